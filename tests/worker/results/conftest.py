"""Every place for files: Redis, a folder, S3."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.conftest import ValkeyHandle
from tests.s3_server import BUCKET
from worker.results.files import AsyncFiles, Files
from worker.results.places import open_async_files, open_files


@dataclass(frozen=True, slots=True)
class Place:
    address: str
    files: Files
    """A worker's access."""
    open_async: Callable[[], tuple[AsyncFiles, Redis]]
    """A gateway's, and the connection that it uses."""


@pytest.fixture(params=["redis", "folder", "s3"])
def place(request: pytest.FixtureRequest, valkey: ValkeyHandle, tmp_path: Path) -> Place:
    if request.param == "s3":
        request.getfixturevalue("s3")
    address = {"redis": "redis://", "folder": f"file://{tmp_path}/kept", "s3": f"s3://{BUCKET}/of/reverie"}[
        request.param
    ]

    def open_async() -> tuple[AsyncFiles, Redis]:
        client = Redis.from_url(valkey.url)
        return open_async_files(address, client, nullcontext), client

    return Place(address, open_files(address, valkey.client), open_async)
