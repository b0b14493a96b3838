"""A gateway with keys: one for each scope of alice, and one of bob."""

from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from service.access.api_key import CostLimit, Scope, new_key
from tests.service.fake_worker import FakeWorker


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Keys:
    """Keys that clients hold, and the lines that the gateway has."""

    alice: str
    reader: str
    """alice's too."""
    bob: str
    admin: str
    lines: str

    @classmethod
    def make(cls, limit: CostLimit | None = None) -> "Keys":
        made = [
            new_key("alice", Scope.GENERATE, limit=limit),
            new_key("alice", Scope.READ),
            new_key("bob", Scope.GENERATE, limit=limit),
            new_key("root", Scope.ADMIN),
        ]
        alice, reader, bob, admin = (key for key, _ in made)
        return cls(alice, reader, bob, admin, lines="\n".join(kept.line() for _, kept in made))


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys.make()


@pytest.fixture
def keyed(keys: Keys, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    """A gateway with keys; its worker has announced itself, its streams are short."""
    return start_gateway(api_keys=keys.lines, stream_s=0.2)
