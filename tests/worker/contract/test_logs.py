"""What a log line is: one JSON object for a machine, or one plain line that nobody can forge for a person."""

import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from worker.contract.logs import LogFormat, LogSettings, configure_logs

JOB = "0123456789abcdef" * 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()


def configured(stream: io.StringIO, log_format: LogFormat = "auto") -> logging.Logger:
    configure_logs(LogSettings(log_format=log_format), "gateway", stream)
    return logging.getLogger("service.somewhere")


def test_a_line_is_one_json_object_with_the_fields_of_its_request() -> None:
    stream = io.StringIO()
    log = configured(stream)
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        log.info("job %s: queued behind %d job(s)", JOB, 3, extra={"took_ms": 1.5})
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "process": "gateway",
        "pid": os.getpid(),
        "logger": "service.somewhere",
        "message": f"job {JOB}: queued behind 3 job(s)",
        "job_id": JOB,
        "request_id": "r-1",
        "took_ms": 1.5,
    }


def test_an_exception_is_a_field_of_its_line() -> None:
    stream = io.StringIO()
    log = configured(stream)
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("it broke")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: a\nb" in json.loads(line)["exception"]


def test_at_a_terminal_a_line_is_for_reading_and_tells_nothing_twice() -> None:
    stream = Terminal()
    log = configured(stream)
    log.warning("job %s: its lease ran out", JOB, extra={"request_id": "r-1"})
    line = stream.getvalue()
    assert line.endswith(f"WARNING service.somewhere: job {JOB}: its lease ran out  request_id=r-1\n")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_a_client_sends_forges_no_line_and_commands_no_terminal(log_format: LogFormat) -> None:
    stream = io.StringIO()
    log = configured(stream, log_format)
    log.info("GET %s", "/\n21:00:00 INFO all is well \x1b[2J\u2028", extra={"path": "/x\r\ny\x9b"})
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()


def test_the_level_is_a_setting() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings.read({"REVERIE_LOG_LEVEL": "warning"}), "worker", stream)
    logging.getLogger("a").info("no")
    logging.getLogger("a").warning("yes")
    assert json.loads(stream.getvalue())["message"] == "yes"
