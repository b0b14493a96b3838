"""Whatever dies, in whatever order: every accepted job ends once, with its pixels, and leaves nothing behind."""

import os
import random

import pytest

from tests.faults.chaos import Chaos
from tests.faults.clients import Clients, Kind, orders
from tests.faults.processes import Machines
from tests.faults.promises import by_the_fake_engine, look

pytestmark = pytest.mark.slow

SEED_VARIABLE = "REVERIE_CHAOS_SEED"
JOBS, FAULTS = 150, 14
OVER_S = 30.0


def test_no_accepted_job_is_lost_or_doubled_whatever_dies(capsys: pytest.CaptureFixture[str]) -> None:
    """REVERIE_CHAOS_SEED reruns the faults and orders of a run that failed; their timing is the machine's."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().getrandbits(32))
    with Machines() as machines:
        chaos = Chaos(machines, seed, lease_s=2, maintenance_s=0.5, slack_s=20)
        placed = orders(random.Random(seed), JOBS, poisons=1)
        chaos.run(FAULTS, Clients(machines.urls, placed, OVER_S, seed))
        report = look(machines, chaos, placed, seed, by_the_fake_engine)
        with capsys.disabled():
            print("\n" + "\n".join(report.lines()))
        assert report.troubles == [], f"{SEED_VARIABLE}={seed}\n{machines.logs(machines.workers)[-20000:]}"
    assert len(chaos.faults) >= 7
    assert {order.kind for order in placed} == set(Kind)
    assert any(order.events for order in placed), "no client followed its job"
    assert all(any(field in order.body for order in placed) for field in ("prompt", "init_image", "mask"))
