"""The disk is full, below the queue and below everybody's logs: clear refusals, and all goes on when there is room."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.processes import Machines
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from tests.worker.queue.fake_engine import pixels_sha256

pytestmark = pytest.mark.slow

DISK_BYTES = 24 * 2**20


@pytest.fixture
def machines() -> Iterator[Machines]:
    started = Machines(workers=1, gateways=1, lease_s=15, heartbeat_s=4, maintenance_s=5, worker_ttl_s=30)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "reverie-test", str(started.folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system can be mounted by root only")
    try:
        with started:
            try:
                # As `reverie up` runs it; with `always` a server ends itself at a full disk.
                started.client.config_set("appendfsync", "everysec")
                yield started
            finally:
                # Away from the folder at once, from the processes when they end.
                subprocess.run(["umount", "--lazy", str(started.folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(started.folder)], capture_output=True, check=False)


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def test_a_full_disk_is_503_and_what_was_accepted_is_drawn_when_there_is_room_again(machines: Machines) -> None:
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:

        def submit(seed: int) -> httpx.Response:
            return http.post("/generate", json={"seed": seed, "steps": 20, "batch": 1})

        accepted = {0: submit(0).json()["id"]}
        filler = fill(machines.folder)
        refused: list[httpx.Response] = []

        def is_refused() -> bool:
            seed = len(accepted)
            answer = submit(seed)
            if answer.status_code == 202:
                accepted[seed] = answer.json()["id"]
            else:
                refused.append(answer)
            return bool(refused)

        wait_until(is_refused, "a submit to be refused")
        assert refused[0].status_code == 503, refused[0].text
        assert refused[0].json()["code"] == "redis_unavailable"
        assert int(refused[0].headers["Retry-After"]) >= 1
        # What is known is still told.
        assert http.get(f"/jobs/{accepted[0]}").status_code == 200
        assert http.get("/livez").status_code == 200
        assert "reverie_redis_up" in http.get("/metrics").text

        filler.unlink()
        wait_until(lambda: submit(1_000).status_code == 202, "a submit to be taken again")
        jobs = Jobs(machines.valkey)
        assert jobs.wait(list(accepted.values())) == ["finished"] * len(accepted)
        for seed, job_id in accepted.items():
            (image,) = http.get(f"/jobs/{job_id}").json()["images"]
            assert image["sha256"] == pixels_sha256(seed)
            assert http.get(image["url"]).status_code == 200
    assert all(slot.starts == 1 for slot in machines.slots), "nobody ended for want of room"
