"""Old versions are first not offered and then deleted; never what serves, what a job names or what rows run on."""

from pathlib import Path

import pytest

from tests.worker.engine.harness import HandClock, load_float32
from tests.worker.tiny_models import TINY, publish_tiny
from worker.models.pool import ModelPool
from worker.models.retirement import OFFERED_FOR_S
from worker.store.model_store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Four versions, the newest current."""
    store = ModelStore(tmp_path / "store")
    for step in range(1, 5):
        publish_tiny(store, weights_seed=step, step=step)
    return store


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def pool(store: ModelStore, clock: HandClock) -> ModelPool:
    pool = ModelPool(store, load_float32, keep_versions=2, clock=clock)
    look(pool)
    return pool


def look(pool: ModelPool) -> None:
    pool.poll()
    pool.load_pending()


def offered(pool: ModelPool) -> list[str]:
    (info,) = pool.describe()
    return [version.version for version in info.versions]


def test_a_version_is_withdrawn_first_and_deleted_when_no_request_can_name_it_any_more(
    store: ModelStore, pool: ModelPool, clock: HandClock
) -> None:
    names = store.versions(TINY)
    assert offered(pool) == names[2:]
    assert not pool.has_versions_to_prune()
    assert pool.prune(frozenset()) == []
    clock.now += OFFERED_FOR_S
    assert pool.has_versions_to_prune()
    assert pool.prune(frozenset()) == [(TINY, version) for version in names[:2]]
    assert store.versions(TINY) == names[2:]
    look(pool)
    assert not pool.has_versions_to_prune()


def test_a_version_that_a_job_names_stays_until_the_job_has_ended(
    store: ModelStore, pool: ModelPool, clock: HandClock
) -> None:
    names = store.versions(TINY)
    clock.now += OFFERED_FOR_S
    assert pool.prune({(TINY, names[0])}) == [(TINY, names[1])]
    assert store.versions(TINY) == [names[0], *names[2:]]
    assert pool.prune(frozenset()) == [(TINY, names[0])]


def test_a_version_that_rows_run_on_stays(store: ModelStore, pool: ModelPool, clock: HandClock) -> None:
    oldest = store.versions(TINY)[0]
    assert pool.acquire(TINY, oldest) is None
    pool.load_pending()
    model = pool.acquire(TINY, oldest)
    assert model is not None
    clock.now += OFFERED_FOR_S
    pool.prune(frozenset())
    assert oldest in store.versions(TINY)
    pool.release(model)
    assert pool.prune(frozenset()) == [(TINY, oldest)]


def test_an_old_version_that_is_made_current_is_offered_again_and_stays(
    store: ModelStore, pool: ModelPool, clock: HandClock
) -> None:
    oldest = store.versions(TINY)[0]
    store.promote(TINY, oldest)
    look(pool)
    clock.now += OFFERED_FOR_S
    pool.prune(frozenset())
    assert oldest in store.versions(TINY)
    assert oldest in offered(pool)


def test_what_serves_stays_although_a_newer_one_is_current_and_bad(
    store: ModelStore, pool: ModelPool, clock: HandClock
) -> None:
    serving = store.current(TINY)
    for step in (5, 6, 7):
        bad = publish_tiny(store, weights_seed=step, step=step)
        (bad.path / "unet" / "config.json").write_text("{}")
    look(pool)
    clock.now += OFFERED_FOR_S
    pool.prune(frozenset())
    assert serving in store.versions(TINY)
    assert pool.describe()[0].version == serving


def test_without_a_count_nothing_is_ever_withdrawn(store: ModelStore, clock: HandClock) -> None:
    pool = ModelPool(store, load_float32, clock=clock)
    look(pool)
    clock.now += 1e9
    look(pool)
    assert offered(pool) == store.versions(TINY)
    assert not pool.has_versions_to_prune()
