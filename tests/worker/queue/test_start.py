"""`python -m worker` from its first line: errors an operator can act on, then real jobs on a real model."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ValkeyHandle, live_workers
from tests.waiting import wait_until
from tests.worker.queue.conftest import REPOSITORY, Jobs
from tests.worker.queue.fake_engine import MODEL
from tests.worker.tiny_models import publish_tiny
from worker.contract import SamplerName, WorkerStatus
from worker.contract.environment import SettingsError
from worker.settings import WorkerSettings
from worker.start import default_model_of
from worker.store import ModelStore

A_URL = "redis://localhost:6379/0"


def run_worker(**settings: object) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("REVERIE_")}
    environment |= {f"REVERIE_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "worker"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_lease_shorter_than_two_heartbeats_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"need REVERIE_LEASE_S >= 2 x REVERIE_HEARTBEAT_S, got 7 and 4"):
        WorkerSettings.read({"REVERIE_REDIS_URL": A_URL, "REVERIE_LEASE_S": "7"})


def test_the_bundled_models_have_a_default_of_their_own_and_a_setting_stands_above_it() -> None:
    def default(**settings: str) -> str | None:
        return default_model_of(WorkerSettings.read({"REVERIE_REDIS_URL": A_URL, **settings}))

    assert default() == "emoji"
    assert default(REVERIE_DEFAULT_MODEL="digits") == "digits"
    assert default(REVERIE_STORE="store") is None, "the first by name"
    assert default(REVERIE_STORE="store", REVERIE_DEFAULT_MODEL="mine") == "mine"


def test_without_an_address_the_worker_says_which_variable_it_needs() -> None:
    ended = run_worker()
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "REVERIE_REDIS_URL is not set" in ended.stderr


def test_a_store_that_is_missing_or_empty_is_one_line(tmp_path: Path) -> None:
    for store in (tmp_path / "missing", tmp_path):
        ended = run_worker(redis_url=A_URL, store=store)
        assert ended.returncode == 1
        assert ended.stderr.count("\n") == 1
        assert "REVERIE_STORE" in ended.stderr
        assert str(store) in ended.stderr


def test_a_server_that_does_not_answer_is_waited_for_and_then_one_line(tmp_path: Path) -> None:
    publish_tiny(ModelStore(tmp_path / "store"), MODEL)
    ended = run_worker(redis_url=f"unix://{tmp_path}/nothing.sock", store=tmp_path / "store", redis_wait_s=0.5)
    assert ended.returncode == 1
    waiting, error = ended.stderr.splitlines()
    assert "waiting up to 0.5 s" in waiting
    assert error.startswith("error: Redis at REVERIE_REDIS_URL=")


@pytest.fixture
def worker(valkey: ValkeyHandle, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m worker` on a store with one tiny, untrained model."""
    publish_tiny(ModelStore(tmp_path / "store"), MODEL)
    environment = os.environ | {
        "REVERIE_REDIS_URL": valkey.url,
        "REVERIE_STORE": str(tmp_path / "store"),
        "REVERIE_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "worker"], cwd=REPOSITORY, env=environment, stderr=log)
    try:
        # Loading torch and diffusers takes most of a minute on a busy machine.
        wait_until(
            lambda: live_workers(valkey.client) or process.poll() is not None,
            "the worker to be ready",
            timeout_s=200,
        )
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_whole_worker_draws_the_same_pixels_in_any_company_and_takes_up_a_new_version(
    worker: "subprocess.Popen[bytes]", jobs: Jobs, valkey: ValkeyHandle, tmp_path: Path
) -> None:
    alone = jobs.add(5, steps=8, batch=2)
    assert jobs.wait([alone]) == ["finished"]
    crowd = [jobs.add(seed, steps=20 + seed, sampler=SamplerName.DDPM) for seed in range(6)]
    again = jobs.add(5, steps=8, batch=2)
    assert jobs.wait([again, *crowd]) == ["finished"] * 7
    first, second = jobs.outcome(alone), jobs.outcome(again)
    assert [image.sha256 for image in first.images] == [image.sha256 for image in second.images]
    assert len({image.sha256 for image in first.images}) == 2
    data = valkey.client.get(valkey.file_keys(again)[1])
    assert isinstance(data, bytes)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (first.images[1].width, first.images[1].height)

    gone = jobs.add(1, version="000000001-deadbeef")
    assert jobs.wait([gone]) == ["failed"]
    assert jobs.error(gone).code == "model_unavailable"

    def status() -> WorkerStatus:
        (live,) = live_workers(valkey.client)
        return live

    assert status().models[0].version == first.version
    wait_until(lambda: status().counters.requests_in_batch_max >= 2, "the status to show shared batches")
    assert status().row_step_s[MODEL] > 0

    published = publish_tiny(ModelStore(tmp_path / "store"), MODEL, weights_seed=1, step=2)
    wait_until(lambda: status().models[0].version == published.version, "the status to show the new version")
    newer = jobs.add(5, steps=8, batch=2)
    assert jobs.wait([newer]) == ["finished"]
    assert jobs.outcome(newer).version == published.version
    assert jobs.outcome(newer).images[0].sha256 != first.images[0].sha256

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
