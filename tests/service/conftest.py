"""A real Valkey and a real gateway for each test of the gateway."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.service.fake_worker import FakeWorker
from tests.service.servers import RunningGateway, ValkeyProcess


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[ValkeyProcess]:
    # Not pytest's tmp_path: a unix socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="reverie-") as folder:
        valkey = ValkeyProcess(Path(folder))
        valkey.start()
        yield valkey
        valkey.kill()


@pytest.fixture
def valkey(shared_valkey: ValkeyProcess) -> ValkeyProcess:
    """Running and empty."""
    shared_valkey.client.flushall()
    return shared_valkey


@pytest.fixture
def start_gateway(valkey: ValkeyProcess) -> Iterator[Callable[..., httpx.Client]]:
    """Starts gateways with the settings given and answers a client of each."""
    with ExitStack() as stack:

        def start(**settings: object) -> httpx.Client:
            gateway = RunningGateway(Settings.model_validate({"redis_url": valkey.url, **settings}))
            stack.enter_context(gateway)
            return stack.enter_context(httpx.Client(base_url=gateway.url, timeout=30))

        yield start


@pytest.fixture
def worker(valkey: ValkeyProcess) -> FakeWorker:
    """A worker that has announced its models and takes jobs when the test says so."""
    worker = FakeWorker(valkey.client)
    worker.announce()
    return worker


@pytest.fixture(scope="session")
def shared_gateway(shared_valkey: ValkeyProcess) -> Iterator[httpx.Client]:
    gateway = RunningGateway(Settings(redis_url=shared_valkey.url))
    with gateway, httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture
def http(worker: FakeWorker, shared_gateway: httpx.Client) -> httpx.Client:
    """A gateway with default settings whose worker has announced itself. It remembers the announcement for a moment:
    a test that announces something else, or stops Redis, starts its own.
    """
    return shared_gateway


@pytest.fixture
def own_http(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    """The same, for this test alone."""
    return start_gateway()
