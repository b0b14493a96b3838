"""Who watches which job: one subscription to Redis serves all open streams of this gateway."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from service.errors import REDIS_AWAY
from worker.contract import events_channel

log = logging.getLogger(__name__)

TURN_S = 0.1
"""How soon a new watch is subscribed to; until then only its own looks at the job tell it anything."""
RECONNECT_S = 0.5


class Watch:
    """One stream's interest in one job."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    async def news(self, timeout_s: float) -> None:
        """Return when the job may have changed since the last call, and after `timeout_s` whether it has or not."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()


class JobEvents:
    """Wakes the watches of a job when a worker, or a gateway that cancels it, says that it has changed.

    A message says only that: whoever is woken looks at the job itself. So a message that is lost costs nothing but the
    time until the next look, and any number of messages that come while a client is slow are one.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._watches: dict[str, set[Watch]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def watched(self) -> int:
        """How many watches there are."""
        return sum(map(len, self._watches.values()))

    @property
    def ending(self) -> bool:
        """This gateway is shutting down: whoever watches should come to an end."""
        return self._ending

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        channel, watch = events_channel(job_id), Watch()
        self._watches.setdefault(channel, set()).add(watch)
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="job-events")
        if self._ending:
            watch.wake()
        try:
            yield watch
        finally:
            self._watches[channel].remove(watch)
            if not self._watches[channel]:
                del self._watches[channel]

    def end(self) -> None:
        self._ending = True
        for channel in self._watches:
            self._wake(channel)

    async def aclose(self) -> None:
        self.end()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    def _wake(self, channel: str) -> None:
        for watch in self._watches.get(channel, ()):
            watch.wake()

    async def _listen(self) -> None:
        """Holds a connection of its own for as long as anybody watches."""
        while self._watches:
            try:
                # One task alone subscribes, reads and connects again: the client is not made for two.
                async with self._redis.pubsub() as pubsub:
                    await self._hear(pubsub)
            except REDIS_AWAY as error:
                log.warning("no news of %d job(s) from Redis, looking at them instead: %s", len(self._watches), error)
                await asyncio.sleep(RECONNECT_S)

    async def _hear(self, pubsub: PubSub) -> None:
        subscribed: set[str] = set()
        while self._watches:
            wanted = set(self._watches)
            if wanted - subscribed:
                await pubsub.subscribe(*wanted - subscribed)
            if subscribed - wanted:
                await pubsub.unsubscribe(*subscribed - wanted)
            subscribed = wanted
            message = await pubsub.get_message(timeout=TURN_S)
            if message is not None:
                # The confirmation of a subscription is news too: what was said before it was not heard.
                self._wake(message["channel"].decode())
