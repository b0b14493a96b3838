"""When waiting jobs will be claimed: the order of service, simulated ahead."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from service.catalogue import Reading
from service.job_queue import JobQueue
from service.service_order import Place, in_order
from service.waiting_job import Served, Waiting
from worker.contract import SamplingRequest, WorkerStatus
from worker.contract.queue_order import LOOKED_AT, due_at

MOST_WALKED = 1024
"""Jobs whose turns are computed one by one: Redis reads them in 2 to 7 ms, and ordering takes 5 to 10, in which this
gateway answers nobody. Jobs behind them are estimated by their place in the queue, which short jobs change little that
far back."""
NOBODY_AHEAD = Served()
FRESH_S = 1.0
"""How long a walk is reused when the queue is so long that walking it is not free."""
STALE_S = 5.0
"""How long it is while a newer one is under way: who asks need not wait for that."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A job's place in the order of service."""

    position: int
    """Jobs waiting now that will be served before it."""
    wait_s: float | None
    """Seconds that those take; None while no cost is known, or no live worker can draw the job."""


def turns(
    line: Sequence[Waiting],
    workers: Sequence[WorkerStatus],
    row_step_s: Mapping[str, float],
    served: Served = NOBODY_AHEAD,
) -> dict[str, Turn]:
    """Each job's turn, by its id.

    Jobs of models that no worker has in common don't wait for each other: each such group of models has its own line.

    Args:
        line: as it stands in the queue, each owner's jobs in their order.
        workers: who is alive.
        row_step_s: see `Reading.row_step_s`.
        served: who is ahead of the others.
    """
    own = mean_costs(workers)
    groups = _groups(workers)
    lines: dict[object, list[Place]] = {}
    arrivals: dict[str, float] = {}
    for number, job in enumerate(line):
        queued_at = arrivals.get(job.owner, 0.0) if job.queued_at is None else job.queued_at
        arrivals[job.owner] = queued_at
        seconds = job.row_steps * row_step_s_of(own, job.model)
        due, since = (0.0, 0.0) if job.put_back else (due_at(queued_at, seconds), queued_at)
        place = Place(due, since, job.owner, number, job, seconds)
        lines.setdefault(groups.get(job.model, job.model), []).append(place)
    found: dict[str, Turn] = {}
    for group in lines.values():
        ahead_s = 0.0
        for position, job in enumerate(in_order(group, served)):
            known = bool(row_step_s) and (job.model in groups or not job.model)
            found[job.id] = Turn(position, ahead_s if known else None)
            ahead_s += job.row_steps * row_step_s_of(row_step_s, job.model)
    return found


def first_turn(request: SamplingRequest, reading: Reading) -> Turn:
    """The turn of a job that found nothing waiting."""
    alone = Waiting("", request.model, request.row_steps, queued_at=None, put_back=False)
    return turns([alone], reading.live, reading.row_step_s)[alone.id]


def mean_costs(workers: Sequence[WorkerStatus]) -> dict[str, float]:
    """Mean cost of a row-step over the workers, by model: what a claim would use."""
    costs: dict[str, list[float]] = {}
    for worker in workers:
        for model, seconds in worker.row_step_s.items():
            costs.setdefault(model, []).append(seconds)
    return {model: fmean(seconds) for model, seconds in costs.items()}


def row_step_s_of(row_step_s: Mapping[str, float], model: str) -> float:
    """The cost of a model; one that has not run yet is assumed to cost the mean of the others."""
    known = row_step_s.get(model)
    if known is not None:
        return known
    return fmean(row_step_s.values()) if row_step_s else 0.0


def _groups(workers: Sequence[WorkerStatus]) -> dict[str, str]:
    """By model, a name of its group: models are in one group if workers that have several of them connect them."""
    group: dict[str, str] = {}
    for worker in workers:
        names = [model.name for model in worker.models]
        joined = {group[name] for name in names if name in group}
        into = min([*joined, *names], default="")
        group.update(dict.fromkeys(names, into))
        group.update({name: into for name, known in group.items() if known in joined})
    return group


class QueueOrder:
    """The turns of the jobs that wait now."""

    def __init__(self, queue: JobQueue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._walk = _Walk({}, 0, 0.0, float("-inf"))
        self._walking: asyncio.Task[_Walk] | None = None
        self._next: asyncio.Task[_Walk] | None = None
        """Begins when `_walking` has ended."""

    async def turn(self, job_id: str, place: int, reading: Reading) -> Turn:
        """The turn of the job at this place: exact in a short queue, a second or two old in a long one."""
        walk = self._walk
        age_s = self._clock() - walk.walked_at
        if walk.length <= LOOKED_AT or age_s > STALE_S:
            walk = await self._fresh_walk(reading)
        elif age_s > FRESH_S and (self._walking is None or self._walking.done()):
            self._begin_walk(reading)
        known = walk.turns.get(job_id)
        if known is not None:
            return known
        return Turn(place, None if walk.mean_s is None else walk.mean_s * place)

    async def waiting_s(self, reading: Reading) -> float | None:
        """Seconds that all waiting jobs take the live workers; None while no cost is known."""
        walk = await self._fresh_walk(reading)
        if not walk.length:
            return 0.0
        return None if walk.mean_s is None else walk.mean_s * walk.length

    async def _fresh_walk(self, reading: Reading) -> "_Walk":
        """One that begins after this call. All who ask while another is under way share the next."""
        # Shielded, so that a canceled request doesn't end it for all.
        return await asyncio.shield(self._begin_walk(reading))

    def _begin_walk(self, reading: Reading) -> "asyncio.Task[_Walk]":
        """The walk that begins next."""
        if self._next is None:
            self._next = asyncio.create_task(self._walk_after(self._walking, reading))
            # Nobody may be waiting for it: an error of Redis shows again where somebody is.
            self._next.add_done_callback(lambda walk: walk.cancelled() or walk.exception())
        return self._next

    async def _walk_after(self, before: "asyncio.Task[_Walk] | None", reading: Reading) -> "_Walk":
        if before is not None:
            await asyncio.wait({before})
        self._walking, self._next = self._next, None
        self._walk = await self._walked(reading)
        return self._walk

    async def _walked(self, reading: Reading) -> "_Walk":
        length, line, served = await self._queue.line(MOST_WALKED)
        costs = reading.row_step_s
        seconds = [job.row_steps * row_step_s_of(costs, job.model) for job in line]
        mean_s = fmean(seconds) if seconds and costs else None
        return _Walk(turns(line, reading.live, costs, served), length, mean_s, self._clock())


@dataclass(frozen=True, slots=True)
class _Walk:
    turns: Mapping[str, Turn]
    length: int
    mean_s: float | None
    """Mean seconds of a job."""
    walked_at: float
