"""The status of each live worker, as the other workers read it."""

from typing import TYPE_CHECKING

from pydantic import ValidationError

from worker.contract import WorkerStatus
from worker.contract.live_workers import READ_LIVE

if TYPE_CHECKING:
    import redis


class LiveWorkers:
    def __init__(self, client: "redis.Redis") -> None:
        self._read_live = client.register_script(READ_LIVE)

    def statuses(self) -> list[WorkerStatus]:
        """Raises redis.exceptions.RedisError: no answer."""
        _announced, *live = self._read_live()
        return [status for text in live if (status := _parsed(text)) is not None]


def _parsed(text: bytes) -> WorkerStatus | None:
    try:
        return WorkerStatus.model_validate_json(text)
    except ValidationError:
        return None  # of a worker of another release
