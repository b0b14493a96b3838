"""A real gateway for the tests of the gateway, and what stands at the other end of its queue."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.service.servers import RunningGateway


@pytest.fixture
def start_gateway(valkey: ValkeyHandle) -> Iterator[Callable[..., httpx.Client]]:
    """Starts gateways with the settings given and answers a client of each."""
    with ExitStack() as stack:

        def start(**settings: object) -> httpx.Client:
            gateway = RunningGateway(Settings.model_validate({"redis_url": valkey.url, **settings}))
            stack.enter_context(gateway)
            return stack.enter_context(httpx.Client(base_url=gateway.url, timeout=30))

        yield start


@pytest.fixture
def worker(valkey: ValkeyHandle) -> FakeWorker:
    """A worker that has announced its models and takes jobs when the test says so."""
    worker = FakeWorker(valkey.client)
    worker.announce()
    return worker


@pytest.fixture(scope="session")
def shared_gateway(valkey_session: ValkeyHandle) -> Iterator[httpx.Client]:
    gateway = RunningGateway(Settings(redis_url=valkey_session.url))
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
