"""Attacks on keys: guesses, and what a refusal gives away."""

import logging
import time

import httpx
import pytest

from tests.service.access.conftest import Keys, bearer

GUESSES = 300


def test_guesses_are_all_refused_alike_and_do_not_fill_the_log(
    keyed: httpx.Client, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = keys.admin[:13]
    with caplog.at_level(logging.WARNING, logger="service"):
        began = time.monotonic()
        answers = [keyed.get("/models", headers=bearer(f"{prefix}{number:043d}")) for number in range(GUESSES)]
        took_s = time.monotonic() - began
    assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}
    unknown = keyed.get("/models", headers=bearer(f"rvr_00000000_{0:043d}"))
    assert unknown.text == answers[0].text, "a prefix that exists looks like one that does not"
    lines = [record for record in caplog.records if "unknown API key" in record.getMessage()]
    assert 1 <= len(lines) <= took_s + 2
    assert keyed.get("/models", headers=bearer(keys.admin)).status_code == 200


def test_a_refusal_takes_no_longer_the_nearer_the_guess(keyed: httpx.Client, keys: Keys) -> None:
    def once_s(key: str) -> float:
        began = time.perf_counter()
        assert keyed.get("/models", headers=bearer(key)).status_code == 401
        return time.perf_counter() - began

    last = "A" if keys.admin[-1] != "A" else "B"
    guesses = keys.admin[:-1] + last, f"rvr_00000000_{0:043d}"
    # In turns, and the least of each: what others do on the machine meets both alike.
    near, far = (min(times) for times in zip(*(map(once_s, guesses) for _ in range(60)), strict=True))
    assert near < 3 * far
    assert far < 3 * near


@pytest.mark.parametrize("beside", ["\x00", "%00", " x", ",Bearer x", "\t", "\x0b"])
def test_nothing_beside_a_key_passes_for_it(keyed: httpx.Client, keys: Keys, beside: str) -> None:
    try:
        answer = keyed.get("/models", headers=bearer(keys.alice + beside))
    except httpx.LocalProtocolError:
        return  # what can't be sent can't attack
    assert answer.status_code in (400, 401) or beside.strip() == ""
