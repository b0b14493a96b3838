"""What every worker of a queue must do alike for the same seed to give the same pixels, chosen once for all."""

import threading
from typing import Protocol


class SharedChoices(Protocol):
    """Choices by key; the first one for a key holds for ever. Safe from any thread.

    Raises:
        OSError: they can't be reached now, with an errno that says that this may pass.
    """

    def get(self, key: str) -> str | None:
        """None: nobody has chosen yet."""

    def settle(self, key: str, choice: str) -> str:
        """Propose a choice; returns the one that holds, which may be another's."""


class LocalChoices:
    """Choices of this process alone, for a program that serves no queue."""

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
        """What was chosen, by key."""
        with self._lock:
            return dict(self._choices)
