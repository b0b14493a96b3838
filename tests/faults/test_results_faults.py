"""Workers and gateways that are killed while they keep files in a folder or in S3: nothing half shows or stays."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import obstore
import pytest
from PIL import Image

from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.s3_server import BUCKET
from tests.service.servers import RunningGateway
from tests.waiting import wait_until
from tests.worker.queue.conftest import REPOSITORY, Jobs, Workers
from tests.worker.queue.fake_engine import pixels_of
from worker.results.object_files import ObjectFiles
from worker.results.objects import open_store


@pytest.fixture(params=["folder", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://{BUCKET}/reverie"
    return f"file://{tmp_path}/kept"


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def kept(address: str) -> set[str]:
    return {one["path"] for listed in obstore.list(open_store(address)) for one in listed}


def sweep_later(address: str, valkey: ValkeyHandle) -> int:
    return ObjectFiles(open_store(address), valkey.client, now=lambda: time.time() + 3600).sweep()


def bytes_in_redis(valkey: ValkeyHandle) -> Iterator[bytes]:
    """Every value that is there."""
    client: Any = valkey.client
    for key in valkey.all_keys():
        match client.type(key):
            case b"string":
                yield client.get(key) or b""
            case b"hash":
                yield from client.hgetall(key).values()
            case b"stream":
                for _, fields in client.xrange(key):
                    yield from fields.values()
            case b"list":
                yield from client.lrange(key, 0, -1)
            case kind:
                assert kind in (b"zset", b"set", b"none")


def test_what_a_killed_worker_left_never_shows_and_is_swept(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle, tmp_path: Path, address: str
) -> None:
    job_id = jobs.add(5, steps=20, batch=2)
    settings = {"REDIS_URL": valkey.url, "RESULTS": address, "LEASE_S": "2", "HEARTBEAT_S": "0.5", "WORKER_TTL_S": "3"}
    with (tmp_path / "dying.log").open("wb") as log:
        dying = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.dying_worker", "stored"],
            cwd=REPOSITORY,
            env=os.environ | {f"REVERIE_{name}": value for name, value in settings.items()},
            stderr=log,
        )
    assert dying.wait(60) == -9, (tmp_path / "dying.log").read_text()
    left = kept(address)
    assert len(left) == 2
    with RunningGateway(Settings(redis_url=valkey.url, results=address)) as gateway:
        url = f"{gateway.url}/jobs/{job_id}/images/1"
        assert httpx.get(url).status_code == 409, "stored, and not yet the job's"
        workers.start(results=address)
        assert jobs.wait([job_id]) == ["finished"]
        with Image.open(io.BytesIO(httpx.get(url).content)) as image:
            assert image.tobytes() == pixels_of(6).tobytes()
    assert {str(image.file) for image in jobs.outcome(job_id).images} == kept(address) - left
    assert not any(b"PNG" in value for value in bytes_in_redis(valkey))
    valkey.client.delete(*ObjectFiles(open_store(address), valkey.client).witnesses(sorted(left)))  # its time is over
    assert sweep_later(address, valkey) == 2
    assert kept(address).isdisjoint(left)
    assert len(kept(address)) == 2


@pytest.mark.slow
def test_a_gateway_killed_during_uploads_keeps_every_one_that_it_answered(
    valkey: ValkeyHandle, tmp_path: Path, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"REVERIE_REDIS_URL": valkey.url, "REVERIE_RESULTS": address, "REVERIE_PORT": str(port)}
    answered: dict[str, bytes] = {}
    over = threading.Event()

    def upload_again_and_again(number: int) -> None:
        chance = Random(number)
        while not over.is_set():
            picture = Image.frombytes("RGB", (40, 30), chance.randbytes(3600))
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            try:
                answer = httpx.post(
                    f"{url}/uploads",
                    content=buffer.getvalue(),
                    headers={"Content-Type": "image/png"},
                    timeout=10,
                    trust_env=False,
                )
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            assert answer.status_code == 201, answer.text
            answered[answer.json()["sha256"]] = picture.tobytes()

    def start() -> "subprocess.Popen[bytes]":
        with (tmp_path / "gateway.log").open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "service"], cwd=REPOSITORY, env=environment, stderr=stderr
            )
        wait_until(lambda: answers(url), "the gateway to listen")
        return process

    clients = [threading.Thread(target=upload_again_and_again, args=[number]) for number in range(4)]
    for life in range(3):
        process = start()
        if life == 0:
            for client in clients:
                client.start()
        before = len(answered)
        wait_until(lambda before=before: len(answered) >= before + 10, "some uploads")  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.wait()
    over.set()
    for client in clients:
        client.join()
    process = start()
    try:
        for sha256, pixels in answered.items():
            with Image.open(io.BytesIO(httpx.get(f"{url}/uploads/{sha256}", trust_env=False).content)) as picture:
                assert picture.tobytes() == pixels
        files = kept(address)
        assert {name.split("/")[1] for name in files} >= answered.keys()
        assert not any(b"PNG" in value for value in bytes_in_redis(valkey))
        # Those of requests that nobody answered go like all others when their time is over.
        valkey.client.flushall()
        assert sweep_later(address, valkey) == len(files)
        assert kept(address) == set()
    finally:
        process.kill()
        process.wait()
