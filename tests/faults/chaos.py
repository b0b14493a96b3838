"""The randomised run: clients place orders while faults happen; then every promise is looked at."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.faults.clients import Clients
from tests.faults.processes import Machines, Slot, pid_of, text
from worker.contract import QUEUE_NAME

STARTED_REGISTRY = f"rq:wip:{QUEUE_NAME}"


@dataclass
class Recoveries:
    """How long the jobs of killed workers took until they ran elsewhere or had ended."""

    bar_s: float
    taken_s: list[float] = field(default_factory=list)
    jobs: int = 0


class Chaos:
    """Does harm, one fault after the other, each drawn from one seed.

    Args:
        lease_s, maintenance_s: what the workers run with.
        slack_s: what a recovery may take beyond these; a machine that is busy with other tests needs more.
    """

    def __init__(
        self, machines: Machines, seed: int, *, lease_s: float, maintenance_s: float, slack_s: float = 2.0
    ) -> None:
        self._machines = machines
        self._rng = random.Random(seed)
        self._lease_s = lease_s
        self._maintenance_s = maintenance_s
        self._trusted_at = 0.0
        """Until then maintenance gives live workers time to renew their leases after a fault of Redis."""
        self.faults: Counter[str] = Counter()
        self.recoveries = Recoveries(lease_s + maintenance_s + slack_s)
        self._kinds: Mapping[str, Callable[[], None]] = {
            "worker kill -9": self._kill_worker,
            "both workers kill -9": self._kill_all_workers,
            "worker SIGSTOP past its lease": self._pause_worker,
            "worker SIGTERM": self._end_worker,
            "gateway kill -9": self._kill_gateway,
            "redis kill -9": self._kill_redis,
            "redis stalled": self._stall_redis,
        }

    def run(self, faults: int, clients: Clients, *, only: str | None = None) -> None:
        """Do `faults` faults, every kind equally often or one kind only, while the clients place their orders."""
        failures: list[BaseException] = []

        def place() -> None:
            try:
                clients.place_all()
            except BaseException as error:
                failures.append(error)

        placing = threading.Thread(target=place, name="clients")
        placing.start()
        names: list[str] = []
        try:
            for _ in range(faults):
                if not names:
                    names = [only] if only else self._rng.sample(list(self._kinds), len(self._kinds))
                name = names.pop()
                time.sleep(self._rng.uniform(0.1, 0.8))
                self._kinds[name]()
                self.faults[name] += 1
        finally:
            clients.hurry.set()
            placing.join()
        if failures:
            raise failures[0]

    def _kill_and_measure(self, victim: Slot) -> None:
        """kill -9, then wait until the jobs that were its own run elsewhere or have ended."""
        others = [slot for slot in self._machines.workers if slot is not victim]
        starts = [slot.starts for slot in others]
        dead = {victim.pid}
        victim.send(signal.SIGKILL)
        began = time.monotonic()
        orphans = self._held_by(dead)
        if not orphans:
            return
        taken = len(orphans)
        while orphans:
            orphans = {job_id for job_id in orphans if self._runs_on(job_id, dead) or self._waits(job_id)}
            assert time.monotonic() < began + 120, f"not back in work: {orphans}"
            time.sleep(0.02)
        if [slot.starts for slot in others] == starts:  # else a poison job killed the other, and Python's start counts
            self.recoveries.jobs += taken
            self.recoveries.taken_s.append(time.monotonic() - began)

    def _held_by(self, pids: set[int]) -> set[str]:
        entries = self._machines.client.zrange(STARTED_REGISTRY, 0, -1)
        jobs = {text(entry).partition(":")[0] for entry in entries}
        return {job_id for job_id in jobs if self._runs_on(job_id, pids)}

    def _fields(self, job_id: str) -> tuple[str, str]:
        status, worker = self._machines.client.hmget(f"rq:job:{job_id}", ["status", "worker_name"])
        return text(status), text(worker)

    def _runs_on(self, job_id: str, pids: set[int]) -> bool:
        status, worker = self._fields(job_id)
        return status == "started" and worker != "" and pid_of(worker) in pids

    def _waits(self, job_id: str) -> bool:
        return self._fields(job_id)[0] == "queued"

    def _stop_fairly(self, slot: Slot) -> bool:
        """SIGSTOP, unless the worker runs a job on its last try: that one's loss is promised, and would say nothing."""
        slot.send(signal.SIGSTOP)
        held = self._held_by({slot.pid})
        left = [self._machines.client.hget(f"rq:job:{job_id}", "retries_left") for job_id in held]
        if any(text(retries) == "0" for retries in left):
            slot.send(signal.SIGCONT)
            return False
        return True

    def _stop_one_fairly(self, slots: list[Slot]) -> Slot:
        """The first of them that may lose its jobs, stopped; one that must end a last try first is waited for."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for slot in slots:
                if slot.is_alive and self._stop_fairly(slot):
                    return slot
            time.sleep(0.05)
        raise AssertionError("every worker has been on a job's last try for 30 s")

    def _kill_worker(self) -> None:
        # One that works, if any does: an idle one takes nothing along.
        self._machines.wait_until_ready()
        time.sleep(max(0.0, self._trusted_at - time.monotonic()))
        victims = self._rng.sample(self._machines.workers, len(self._machines.workers))
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and not any(self._held_by({slot.pid}) for slot in victims):
            time.sleep(0.01)
        victims.sort(key=lambda slot: not self._held_by({slot.pid}))
        self._kill_and_measure(self._stop_one_fairly(victims))

    def _kill_all_workers(self) -> None:
        # Not measured: two new processes must start first, and how long Python takes for that is not the lease's doing.
        for slot in self._machines.workers:
            self._stop_one_fairly([slot]).send(signal.SIGKILL)

    def _pause_worker(self) -> None:
        slot = self._stop_one_fairly(self._rng.sample(self._machines.workers, len(self._machines.workers)))
        process = slot.process
        assert process is not None
        time.sleep(self._lease_s + self._maintenance_s + self._rng.uniform(0, 1))
        process.send_signal(signal.SIGCONT)

    def _end_worker(self) -> None:
        self._rng.choice(self._machines.workers).send(signal.SIGTERM)

    def _kill_gateway(self) -> None:
        self._rng.choice(self._machines.gateways).send(signal.SIGKILL)

    def _kill_redis(self) -> None:
        self._machines.valkey.kill()
        time.sleep(self._rng.uniform(0, 1.5))
        self._machines.valkey.start()
        self._distrust()

    def _stall_redis(self) -> None:
        process = self._machines.valkey.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 1.5 * self._lease_s if self._lease_s < 5 else 8))
        process.send_signal(signal.SIGCONT)
        self._distrust()

    def _distrust(self) -> None:
        # A lease's length after the last failed call, and a worker may wait 5 s for the answer of a stalled one.
        self._trusted_at = time.monotonic() + self._lease_s + 6


@dataclass
class Report:
    """What became of the orders. All lists are empty when every promise was kept."""

    seed: int
    jobs: int
    faults: Counter[str]
    recoveries: Recoveries
    lost: list[str]
    """Accepted, and not ended as they had to: with the reason."""
    doubled: list[str]
    wrong: list[str]
    """Other pixels than in a calm run, or images that are not there."""
    mistold: list[str]
    """Another end in a stream of events than the job's own, or a state told twice."""
    miscounted: list[str]
    """Metrics that differ from what the clients saw."""
    left: list[str]
    """Keys without an expiry, entries in registries."""
    ends: Counter[str]

    def lines(self) -> list[str]:
        taken = self.recoveries.taken_s
        return [
            f"seed: {self.seed}",
            f"jobs: {self.jobs}  ({', '.join(f'{name} {count}' for name, count in sorted(self.ends.items()))})",
            f"faults: {sum(self.faults.values())}",
            *(f"  {name}: {count}" for name, count in sorted(self.faults.items())),
            f"lost: {len(self.lost)}",
            f"doubled: {len(self.doubled)}",
            f"other pixels than a calm run: {len(self.wrong)}",
            f"told wrongly by a stream: {len(self.mistold)}",
            f"metrics that miscount: {len(self.miscounted)}",
            f"left behind: {len(self.left)}",
            f"longest recovery: {max(taken, default=0):.1f} s of {self.recoveries.bar_s:.1f} s allowed"
            f" ({len(taken)} kills with {self.recoveries.jobs} jobs running)",
        ]

    @property
    def troubles(self) -> list[str]:
        slow = [f"back in work after {s:.1f} s" for s in self.recoveries.taken_s if s > self.recoveries.bar_s]
        return [*self.lost, *self.doubled, *self.wrong, *self.mistold, *self.miscounted, *self.left, *slow]
