"""Clients are told at least once, whoever dies: the worker that ends the job, the gateway that tells, Redis."""

import base64
import signal
from collections import Counter

import httpx
import pytest
from standardwebhooks import Webhook as Verifier

from service.webhooks.deliveries import LEASE_S
from tests.faults.processes import Machines
from tests.service.webhook_receiver import Receiver, hang, take
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from tests.worker.queue.fake_engine import FAILS, KILLS_ITS_PROCESS
from worker.contract.keys import WEBHOOKS_KEY

pytestmark = pytest.mark.slow

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def test_every_end_is_told_through_deaths_of_all_processes() -> None:
    with (
        Receiver(hang, take) as receiver,
        Machines(workers=2, gateways=2, webhook_hosts=f"http://{receiver.host}", webhook_secret=SECRET) as machines,
    ):
        webhook = {"url": receiver.url}
        expected = {}
        with httpx.Client(timeout=30, trust_env=False) as http:

            def submit(seed: int, ending: str) -> None:
                answer = http.post(
                    machines.urls[0] + "/generate", json={"seed": seed, "steps": 20, "batch": 1, "webhook": webhook}
                )
                expected[str(answer.json()["id"])] = f"job.{ending}"

            # The first is told by a gateway that is killed while the receiver hangs.
            submit(1, "succeeded")
            wait_until(lambda: receiver.received, "the first attempt")
            for gateway in machines.gateways:
                gateway.send(signal.SIGKILL)
            machines.wait_until_ready()
            for seed in range(2, 8):
                submit(seed, "succeeded")
            submit(FAILS, "failed")
            submit(KILLS_ITS_PROCESS, "failed")
        machines.valkey.restart()
        jobs = Jobs(machines.valkey)
        jobs.wait(list(expected))

        def told() -> Counter[tuple[str, str]]:
            verified = [Verifier(SECRET).verify(request.body, request.headers) for request in list(receiver.received)]
            return Counter((str(body["data"]["id"]), str(body["type"])) for body in verified)

        def all_told() -> bool:
            return set(told()) == set(expected.items()) and machines.client.zcard(WEBHOOKS_KEY) == 0

        wait_until(all_told, "every end to be told", timeout_s=2 * LEASE_S + 60)
        assert set(told()) == set(expected.items())
