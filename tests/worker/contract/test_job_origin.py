"""Which request ids and traces of strangers are taken: what may stand in a header, a log line and a job's hash."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.contract.job_origin import JobOrigin, valid_request_id, valid_traceparent

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
"""The example of W3C Trace Context, 3.2.4."""


@pytest.mark.parametrize("text", ["a", "01HZX-3", "req_1:2/3+4=", "x" * 128])
def test_a_plain_request_id_is_kept(text: str) -> None:
    assert valid_request_id(text) == text


@pytest.mark.parametrize("text", [None, "", "x" * 129, "two words", "line\nbreak", "a\r\nSet-Cookie: b", "é", "a\0"])
def test_a_request_id_that_could_forge_a_line_or_a_header_is_not(text: str | None) -> None:
    assert valid_request_id(text) is None


def test_a_traceparent_names_its_trace() -> None:
    assert valid_traceparent(TRACEPARENT) == TRACEPARENT
    assert JobOrigin(None, TRACEPARENT).log_fields == {"trace_id": TRACE_ID}


def test_a_later_version_may_have_more_fields() -> None:
    assert valid_traceparent(f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-brings") == TRACEPARENT


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        TRACEPARENT.upper(),
        TRACEPARENT + "\n",
    ],
)
def test_what_the_specification_tells_to_ignore_is_ignored(text: str | None) -> None:
    assert valid_traceparent(text) is None


@given(st.text())
def test_whatever_is_taken_is_one_short_printable_word(text: str) -> None:
    for taken in (valid_request_id(text), valid_traceparent(text)):
        assert taken is None or (taken.isascii() and taken.isprintable() and " " not in taken and len(taken) <= 128)
