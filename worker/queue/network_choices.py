"""The choices that all workers of the queue share, kept in Redis so that they outlive every worker."""

import errno
from typing import TYPE_CHECKING

from worker.contract.keys import NETWORK_CHOICES_KEY
from worker.contract.redis_errors import REDIS_AWAY

if TYPE_CHECKING:
    import redis


class RedisChoices:
    """Implements `worker.networks.shared_choices.SharedChoices`."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    def get(self, key: str) -> str | None:
        try:
            choice = self._client.hget(NETWORK_CHOICES_KEY, key)
        except REDIS_AWAY as error:
            raise OSError(errno.EAGAIN, f"can't read what other workers chose: {error}") from error
        return choice.decode() if isinstance(choice, bytes) else choice

    def settle(self, key: str, choice: str) -> str:
        try:
            self._client.hsetnx(NETWORK_CHOICES_KEY, key, choice)
        except REDIS_AWAY as error:
            raise OSError(errno.EAGAIN, f"can't share a choice with other workers: {error}") from error
        return self.get(key) or choice
