"""Wakes the event streams of a job when it changes: one subscription to Redis, and a poll every second."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from service.job_queue import JobQueue
from service.previews import Previews
from worker.contract import events_channel

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Poll interval: the longest that a change goes unnoticed whose message was lost, or that has none (a moved queue)."""
TURN_S = 0.1
"""How soon a new watch is subscribed."""
RECONNECT_S = 0.5
READS_AT_ONCE = 8
"""When the queue moves, all streams of waiting jobs wake: so many read at once, and requests are served between."""


class Watch:
    """One stream's interest in one job."""

    def __init__(self, is_allowed: Callable[[], bool], *, previews: bool = False) -> None:
        self._news = asyncio.Event()
        self.is_allowed = is_allowed
        """Whether whoever watches may still; asked at each poll, and one who may not is woken."""
        self.previews = previews
        """Whether it wants to see what the images become."""
        self.behind = False
        """Set when the job could not be read: the next poll wakes it even if the job has not changed."""

    def wake(self) -> None:
        self._news.set()

    async def news(self, timeout_s: float) -> bool:
        """Wait until the job may have changed since the last call; False when it has not within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        self.behind = False
        return True


class JobEvents:
    """Wakes the watches of a job when a worker, or a gateway that cancels it, publishes that it has changed.

    A message carries nothing else: whoever is woken reads the job. So a lost message only costs the time until the next
    poll, and any number of messages that arrive while a client is slow count as one.
    """

    def __init__(self, redis: Redis, queue: JobQueue, previews: Previews) -> None:
        self._redis = redis
        self._queue = queue
        self._previews = previews
        self._watches: dict[str, set[Watch]] = {}
        self._seen: dict[str, bytes] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._away_since: float | None = None
        self._ending = False
        self.reading = asyncio.Semaphore(READS_AT_ONCE)
        """Held while reading a job that has changed."""

    @property
    def watched(self) -> int:
        """How many watches there are."""
        return sum(map(len, self._watches.values()))

    @property
    def ending(self) -> bool:
        """This gateway is shutting down: streams should end."""
        return self._ending

    @property
    def outage_s(self) -> float:
        """For how long Redis has not answered; 0 while it does."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    @contextmanager
    def watch(
        self, job_id: str, is_allowed: Callable[[], bool] = lambda: True, *, previews: bool = False
    ) -> Iterator[Watch]:
        watch = Watch(is_allowed, previews=previews)
        self._watches.setdefault(job_id, set()).add(watch)
        for name, work in (("listen", self._listen), ("look", self._look)):
            if name not in self._tasks or self._tasks[name].done():
                self._tasks[name] = asyncio.create_task(work(), name=f"job events: {name}")
        if self._ending:
            watch.wake()
        try:
            yield watch
        finally:
            self._watches[job_id].remove(watch)
            if not self._watches[job_id]:
                del self._watches[job_id]

    def end(self) -> None:
        self._ending = True
        self._wake_all()

    async def aclose(self) -> None:
        self.end()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _wake(self, job_id: str) -> None:
        for watch in self._watches.get(job_id, ()):
            watch.wake()

    def _wake_all(self) -> None:
        for job_id in self._watches:
            self._wake(job_id)

    async def _look(self) -> None:
        """Poll as long as there is a watch."""
        while self._watches:
            job_ids = list(self._watches)
            for watch in [watch for watches in self._watches.values() for watch in watches]:
                if not watch.is_allowed():
                    watch.wake()
            try:
                seen = dict(zip(job_ids, await self._queue.look(job_ids), strict=True))
                await self._previews.ask(
                    [id_ for id_ in job_ids if any(w.previews for w in self._watches.get(id_, ()))]
                )
            except RedisError as error:
                if self._away_since is None:
                    log.warning("can't poll %d watched job(s): %s", len(job_ids), error)
                    self._away_since = time.monotonic()
                self._wake_all()
            else:
                self._away_since = None
                for job_id, state in seen.items():
                    if state != self._seen.get(job_id) or any(watch.behind for watch in self._watches.get(job_id, ())):
                        self._wake(job_id)
                self._seen = seen
            await asyncio.sleep(LOOK_S)
        self._away_since, self._seen = None, {}

    async def _listen(self) -> None:
        """Listen on a connection of its own as long as there is a watch."""
        while self._watches:
            try:
                # A single task subscribes, reads and reconnects: the client does not support two.
                async with self._redis.pubsub() as pubsub:
                    await self._hear(pubsub)
            except RedisError as error:
                log.warning("lost the subscription for %d job(s), polling instead: %s", len(self._watches), error)
                await asyncio.sleep(RECONNECT_S)

    async def _hear(self, pubsub: PubSub) -> None:
        subscribed: dict[str, str] = {}
        while self._watches:
            wanted = {events_channel(job_id): job_id for job_id in self._watches}
            if new := wanted.keys() - subscribed.keys():
                await pubsub.subscribe(*new)
            if gone := subscribed.keys() - wanted.keys():
                await pubsub.unsubscribe(*gone)
            subscribed = wanted
            message = await pubsub.get_message(timeout=TURN_S)
            if message is not None:
                # A subscription confirmation wakes too: earlier messages were not received.
                self._wake(subscribed.get(message["channel"].decode(), ""))
