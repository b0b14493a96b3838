"""The Redis server's time of day, kept by a worker between two looks at it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis


class ServerClock:
    """The server's time of day, so that what one worker writes agrees with what another reads."""

    def __init__(self, local: Callable[[], datetime] | None = None) -> None:
        self._local = local or steady_time_of_day()
        self._offset = timedelta()

    def adjust(self, client: "redis.Redis") -> None:
        seconds, microseconds = client.time()
        self._offset = datetime.fromtimestamp(seconds + microseconds / 1e6, UTC) - self._local()

    def now(self) -> datetime:
        return self._local() + self._offset


def steady_time_of_day(
    monotonic: Callable[[], float] = time.monotonic, today: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Callable[[], datetime]:
    """The time of day as it was set when this was called: who sets the machine's clock later changes nothing here."""
    began, began_at = monotonic(), today()
    return lambda: began_at + timedelta(seconds=monotonic() - began)
