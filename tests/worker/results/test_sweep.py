"""Expired files are swept by one worker of all at a time, and what fails is tried again."""

import logging
import threading
from pathlib import Path

import pytest

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from worker.contract.keys import SWEPT_KEY
from worker.queue.file_sweep import FileSweep
from worker.queue.redis_health import RedisHealth
from worker.results.files import Files, ResultsAway
from worker.results.places import open_files

LONG_S = 600.0


@pytest.fixture
def files(valkey: ValkeyHandle, tmp_path: Path) -> Files:
    return open_files(f"file://{tmp_path}/kept", valkey.client)


def test_of_several_workers_one_sweeps_in_an_interval(
    valkey: ValkeyHandle, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[int] = []
    sweep = files.sweep
    monkeypatch.setattr(files, "sweep", lambda: swept.append(sweep()))
    workers = [FileSweep(valkey.client, files, RedisHealth(), LONG_S) for _ in range(3)]
    for worker in workers:
        worker.pass_once()
    assert len(swept) == 1
    assert 0.8 * LONG_S < valkey.client.ttl(SWEPT_KEY) < LONG_S
    valkey.client.delete(SWEPT_KEY)
    workers[2].pass_once()
    assert len(swept) == 2


def test_a_place_that_is_away_is_told_and_swept_at_the_next_time(
    valkey: ValkeyHandle, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[int | ResultsAway] = [ResultsAway("no route"), 3]

    def sweep() -> int:
        answer = answers.pop(0) if answers else 0
        if isinstance(answer, ResultsAway):
            raise answer
        return answer

    monkeypatch.setattr(files, "sweep", sweep)
    stop = threading.Event()
    thread = threading.Thread(target=FileSweep(valkey.client, files, RedisHealth(), 0.01).run, args=[stop])
    with caplog.at_level(logging.INFO):
        thread.start()
        wait_until(lambda: not answers, "two sweeps")
        stop.set()
        thread.join()
    assert "expired files stay for now: no route" in caplog.text
    assert "deleted 3 files whose time was over" in caplog.text
