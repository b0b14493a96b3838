"""How each model's network runs is reported in `/models`, in the counters and with each job."""

import errno
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.worker.engine.harness import CPU, Driver, HandClock, ask, draw, filled_pool, load_float32, same_pixels
from tests.worker.tiny_models import TINY, publish_tiny
from worker.engine.messages import Succeeded
from worker.models.loaded_model import Execution, LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.device import choose_dtype
from worker.networks.form import Form
from worker.networks.shared_choices import LocalChoices
from worker.store.model_store import Checkpoint, ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "store")
    publish_tiny(store)
    return store


def load_running(execution: Execution, checkpoint: Checkpoint) -> LoadedModel:
    return replace(load_float32(checkpoint), execution=execution)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_tells_how_it_runs(store: ModelStore, dtype: torch.dtype) -> None:
    pool = ModelPool(store, lambda checkpoint: load_checkpoint(checkpoint, CPU, dtype))
    pool.poll()
    (info,) = pool.describe()
    assert (info.dtype, info.exact, info.form) == (None, None, None), "before it is loaded"
    pool.load_pending()
    (info,) = pool.describe()
    assert (info.dtype, info.exact) == (str(dtype).removeprefix("torch."), True)
    assert info.form in ("fast", "one_by_one")


def test_images_that_run_one_by_one_are_counted_and_reported(store: ModelStore) -> None:
    """Not in the log alone: the same job takes as many times longer as there are images."""
    for form, counted in ((Form.ONE_BY_ONE, 6), (Form.FAST, 0)):
        driver = Driver(filled_pool(store, partial(load_running, Execution("bfloat16", form is not Form.FAST, form))))
        driver.submit("job", ask(steps=3, batch=2))
        driver.finish()
        assert driver.engine.counters().image_steps_one_by_one == counted
        (info,) = driver.pool.describe()
        assert info.form == form
        (succeeded,) = driver.reported(Succeeded)
        assert succeeded.dtype == "bfloat16"
        assert succeeded.exact is (form is not Form.FAST)


def test_a_new_version_that_runs_in_another_way_is_reported(store: ModelStore) -> None:
    executions = [Execution("float32", True, Form.FAST), Execution("bfloat16", False, Form.KERNELS)]
    upcoming = iter(executions)
    pool = filled_pool(store, lambda checkpoint: load_running(next(upcoming), checkpoint))
    publish_tiny(store, weights_seed=1, step=2)
    for execution in executions:
        (info,) = pool.describe()
        assert Execution(str(info.dtype), bool(info.exact), Form(str(info.form))) == execution
        pool.poll()
        pool.load_pending()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_that_was_chosen_first_is_kept_through_restarts(store: ModelStore, dtype: str) -> None:
    """So that a restart changes no pixel, whatever would be measured now."""

    class Chosen(LocalChoices):
        def get(self, key: str) -> str | None:
            return self.settle(key, dtype)

    choices = Chosen()
    explicit = filled_pool(store, lambda c: load_checkpoint(c, CPU, getattr(torch, dtype)))
    expected = draw(explicit, ask(steps=3, batch=2, class_label=1))
    for _ in range(2):
        pool = filled_pool(store, lambda c: load_checkpoint(c, CPU, None, choices=choices))
        (info,) = pool.describe()
        assert info.dtype == dtype
        assert same_pixels(draw(pool, ask(steps=3, batch=2, class_label=1)), expected)


def test_the_first_worker_measures_and_chooses_one_dtype_for_the_kind(store: ModelStore) -> None:
    """Of both versions, since they differ in their weights only."""
    choices = LocalChoices()
    second = publish_tiny(store, weights_seed=1, step=2, make_current=False)
    for checkpoint in (store.checkpoint(TINY), second):
        model = load_checkpoint(checkpoint, CPU, None, choices=choices, threads=1)
        assert [model.execution.dtype] == list(choices.all().values())


def test_a_model_is_loaded_once_the_choices_can_be_read(store: ModelStore) -> None:
    class Away(LocalChoices):
        is_away = True

        def get(self, key: str) -> str | None:
            if self.is_away:
                raise OSError(errno.EAGAIN, "can't read what other workers chose")
            return super().get(key)

    choices, clock = Away(), HandClock()
    pool = ModelPool(store, lambda c: load_checkpoint(c, CPU, None, choices=choices), clock=clock)
    pool.poll()
    pool.load_pending()
    (info,) = pool.describe()
    assert info.reload_error is not None
    assert "can't read what other workers chose" in info.reload_error
    choices.is_away = False
    clock.now += 60
    pool.poll()
    pool.load_pending()
    (info,) = pool.describe()
    assert (info.version, info.reload_error) == (store.current(TINY), None)


def test_auto_measures_where_the_processor_computes_in_bfloat16_and_nowhere_else() -> None:
    native = any(torch.cpu.get_capabilities().get(unit) for unit in ("avx512_bf16", "amx_bf16", "amx_tile"))
    assert choose_dtype("auto", CPU) == (None if native else torch.float32)
    assert choose_dtype("bfloat16", CPU) is torch.bfloat16
