"""Choices that all workers of a queue must share for a seed to give the same pixels everywhere."""

import threading
from typing import Protocol


class SharedChoices(Protocol):
    """Choices by key; the first for a key is final. Thread-safe.

    Raises:
        OSError: they can't be reached now; the errno marks the error as temporary.
    """

    def get(self, key: str) -> str | None:
        """The choice, or None if there is none yet."""

    def settle(self, key: str, choice: str) -> str:
        """Propose a choice; returns the final one, which may be another worker's."""


class GivenChoice:
    """One choice for every key: another worker's, whose pixels are to be drawn again."""

    def __init__(self, choice: str) -> None:
        self._choice = choice

    def get(self, key: str) -> str | None:
        return self._choice

    def settle(self, key: str, choice: str) -> str:
        return self._choice


class LocalChoices:
    """Choices of this process, for programs that serve no queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choices: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        with self._lock:
            return self._choices.get(key)

    def settle(self, key: str, choice: str) -> str:
        with self._lock:
            return self._choices.setdefault(key, choice)

    def all(self) -> dict[str, str]:
        """All choices by key."""
        with self._lock:
            return dict(self._choices)
