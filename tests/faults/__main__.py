"""`make soak`: the long randomised run over the whole stack, its figures, and whether each keeps its bar."""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bundled_digits import digits_store
from tests.faults.bodies import Drawn
from tests.faults.chaos import Chaos, Report
from tests.faults.clients import Clients, Order, orders
from tests.faults.figures import measure
from tests.faults.processes import DEFAULT_LEASES, REAL_WORKER, Machines
from tests.faults.promises import by_the_fake_engine, look
from tests.worker.stable_diffusion import SD, import_sd, wider_unet
from worker.store import ModelStore

REAL_MODELS = (Drawn("digits", 8, "L"), Drawn(SD, 16, "RGB", by_prompt=True))


def chaos_with_short_leases(seed: int, jobs: int, faults: int) -> Report:
    """For volume: the fake engine, leases of 2 s, every kind of fault."""
    with Machines() as machines:
        chaos = Chaos(machines, seed, lease_s=2, maintenance_s=0.5)
        placed = orders(random.Random(seed), jobs, poisons=max(1, jobs // 150))
        chaos.run(faults, Clients(machines.urls, placed, 3.5 * faults, seed))
        return look(machines, chaos, placed, seed, by_the_fake_engine)


def kills_with_default_leases(seed: int, kills: int) -> Report:
    """For the time to recover: what an operator gets who sets nothing."""
    with Machines(gateways=1, **DEFAULT_LEASES) as machines:
        chaos = Chaos(machines, seed, lease_s=15, maintenance_s=5)
        placed = orders(random.Random(seed), 40 * kills, poisons=0, most_steps=800, only_plain=True)
        clients = Clients(machines.urls, placed, 20.0 * kills, seed)
        chaos.run(kills, clients, only="worker kill -9")
        return look(machines, chaos, placed, seed, by_the_fake_engine)


def chaos_with_a_real_model(seed: int, jobs: int, faults: int) -> Report:
    """For the pixels: the bundled digits and a tiny Stable Diffusion, first in calm, then again with faults."""
    with (
        TemporaryDirectory(prefix="reverie-soak-") as folder,
        Machines(worker_command=REAL_WORKER, save_interval_s=0.5, store=_store(Path(folder))) as machines,
    ):
        calm_orders = orders(random.Random(seed), jobs, poisons=0, most_steps=60, only_plain=True, models=REAL_MODELS)
        Clients(machines.urls, calm_orders, 0, seed).place_all()
        quiet = Chaos(machines, seed, lease_s=2, maintenance_s=0.5)
        pixels: dict[str, list[str]] = {}

        def learn(order: Order, hashes: list[str]) -> None:
            pixels[str(order.body)] = hashes

        look(machines, quiet, calm_orders, seed, lambda _: [], learn=learn)
        machines.client.flushall()
        machines.wait_until_ready()
        chaos = Chaos(machines, seed, lease_s=2, maintenance_s=0.5)
        placed = [Order(f"again-{order.key}", order.kind, order.body) for order in calm_orders]
        chaos.run(faults, Clients(machines.urls, placed, 6.0 * faults, seed))
        return look(machines, chaos, placed, seed, lambda order: pixels[str(order.body)], patience_s=300)


def _store(folder: Path) -> Path:
    """With the models that are really drawn with."""
    store = digits_store(folder)
    import_sd(ModelStore(store), unet=wider_unet())
    return store


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--jobs", type=int, default=1200)
    parser.add_argument("--faults", type=int, default=105)
    parser.add_argument("--kills", type=int, default=4, help="with default leases")
    parser.add_argument("--real-jobs", type=int, default=40)
    parser.add_argument("--real-faults", type=int, default=7)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    kept = True
    parts: list[tuple[str, Callable[[], Report]]] = [
        ("fake engine, leases of 2 s", lambda: chaos_with_short_leases(asked.seed, asked.jobs, asked.faults)),
        ("fake engine, default leases", lambda: kills_with_default_leases(asked.seed, asked.kills)),
        ("real models", lambda: chaos_with_a_real_model(asked.seed, asked.real_jobs, asked.real_faults)),
    ]
    for name, run in parts:
        began = time.monotonic()
        report = run()
        print(f"\n{name}: {time.monotonic() - began:.0f} s, {_load()}")
        print("\n".join(f"  {line}" for line in report.lines()))
        for trouble in report.troubles[:50]:
            print(f"  BROKEN: {trouble}")
        kept &= not report.troubles
        sys.stdout.flush()

    lines, fast = measure()
    print("\n" + "\n".join(lines))
    kept &= fast
    print("every bar is kept" if kept else "NOT every bar is kept")
    return 0 if kept else 1


def _load() -> str:
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
