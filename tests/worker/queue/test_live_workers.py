"""Who counts as alive, and that finding out costs the same however many keys others keep in the same Redis."""

import os
import socket
import subprocess
import sys
import time

import httpx

from service.settings import Settings
from tests.conftest import ValkeyHandle, live_workers
from tests.service.servers import RunningGateway
from tests.waiting import wait_until
from tests.worker.queue.conftest import REPOSITORY, Workers
from tests.worker.queue.test_retention import retention
from worker.contract.keys import WORKERS_KEY
from worker.contract.live_workers import ANNOUNCE, READ_LIVE, WITHDRAW

WALKS = {"cmdstat_scan", "cmdstat_keys", "cmdstat_randomkey", "cmdstat_dbsize"}
"""Commands whose cost, or whose number, grows with what others keep."""


def container_is_healthy(valkey: ValkeyHandle) -> bool:
    check = [sys.executable, str(REPOSITORY / "docker/worker_health.py")]
    environment = os.environ | {"REVERIE_REDIS_URL": valkey.url, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(check, env=environment, capture_output=True, timeout=60, check=False).returncode == 0


def test_nobody_walks_the_keys_of_others(workers: Workers, valkey: ValkeyHandle) -> None:
    with valkey.client.pipeline(transaction=False) as pipeline:
        for number in range(20_000):
            pipeline.set(f"other:{number}", number, ex=600)
        pipeline.execute()
    valkey.client.config_resetstat()

    worker = workers.start()
    with RunningGateway(Settings(redis_url=valkey.url)) as gateway, httpx.Client(base_url=gateway.url) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200, "the gateway to see the worker")
        assert http.get("/models").json()["models"]
    assert retention(valkey).named_versions()
    assert container_is_healthy(valkey)
    # A worker's name begins with its host's.
    assert live_workers(valkey.client)[0].worker.startswith(f"{socket.gethostname()}-{worker.process.pid}-")
    worker.kill()
    assert WALKS & valkey.client.info("commandstats").keys() == set()
    wait_until(lambda: not live_workers(valkey.client), "the killed worker to count as dead")
    assert not container_is_healthy(valkey)


def test_a_worker_that_says_nothing_for_its_ttl_is_dead_and_the_next_heartbeat_of_any_forgets_it(
    valkey: ValkeyHandle,
) -> None:
    announce, read = (valkey.client.register_script(text) for text in (ANNOUNCE, READ_LIVE))
    announce(args=["dead", "dead's", 1, 60])
    announce(args=["alive", "alive's", 60, 60])
    assert sorted(read()) == [b"alive's", b"alive's", b"dead's"]
    wait_until(lambda: read() == [b"alive's", b"alive's"], "the first to count as dead")
    announce(args=["alive", "alive's", 60, 60])
    assert valkey.client.zrange(WORKERS_KEY, 0, -1) == [b"alive"]
    assert 0 < valkey.client.ttl(WORKERS_KEY) <= 60


def test_a_long_announcement_is_not_cut_short_by_another_workers(valkey: ValkeyHandle) -> None:
    announce = valkey.client.register_script(ANNOUNCE)
    announce(args=["patient", "p", 60, 60])
    announce(args=["hasty", "h", 1, 60])
    time.sleep(1.1)
    assert valkey.client.register_script(READ_LIVE)() == [b"h", b"p"]


def test_a_worker_that_signs_off_is_gone_at_once_and_what_it_could_draw_stays_known(valkey: ValkeyHandle) -> None:
    valkey.client.register_script(ANNOUNCE)(args=["w", "w's", 60, 60])
    valkey.client.register_script(WITHDRAW)(args=["w"])
    assert valkey.client.register_script(READ_LIVE)() == [b"w's"]
    assert valkey.all_keys() == ["reverie:catalogue"]
