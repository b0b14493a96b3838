"""What is seen of an image on its way, and that looking changes nothing."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.harness import CPU, Driver, HandClock, SlowDevice, ask, draw, filled_pool, same_pixels
from tests.worker.engine.two_legs import Doubling, Journal, two_leg_model
from tests.worker.tiny_models import publish_tiny
from worker.contract import SamplerName
from worker.diffusion.noise import Shape
from worker.diffusion.pixels import to_pixels
from worker.engine import runner
from worker.engine.messages import Previewed, Succeeded
from worker.engine.pictures import small
from worker.engine.previews import MOST_PREVIEWED, PREVIEW_PX, PREVIEW_S
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.store.model_store import Checkpoint, ModelStore


def finish(driver: Driver, step_s: float = 1.0) -> None:
    """Each step takes so long by the driver's clock."""
    assert isinstance(driver.clock, HandClock)
    idle = 0
    while idle < 3:
        idle = 0 if driver.step() else idle + 1
        driver.clock.now += step_s


def seen(driver: Driver, job_id: str) -> list[tuple[int, int]]:
    """Image and step of each preview, in order."""
    return [(index, step) for told in driver.reported(Previewed, job_id) for index, (step, _) in told.images.items()]


def test_a_preview_is_the_x_0_that_the_step_predicts(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.engine.watch(["job"])
    driver.submit("job", ask(seed=5, steps=3, sampler=SamplerName.DDPM))
    expected: list[Tensor] = []
    driver.engine.take_messages()
    (row,) = driver.engine._batcher
    for _ in range(2):
        expected.append(runner.run_step([row], 4).x_0[0])
        driver.step()
        driver.clock.now += PREVIEW_S  # type: ignore[attr-defined]
    driver.finish()
    told = [told.images[0] for told in driver.reported(Previewed, "job")]
    assert [step for step, _ in told] == [1, 2], "the third step makes the image itself"
    for (_, pixels), x_0 in zip(told, expected, strict=True):
        assert np.array_equal(pixels, to_pixels(x_0).numpy())


@settings(max_examples=25, deadline=None)
@given(
    watched=st.sets(st.sampled_from("abc")),
    delays=st.lists(st.integers(0, 3), max_size=30),
    sampler=st.sampled_from(SamplerName),
    max_batch=st.sampled_from([2, 4, 16]),
)
def test_looking_changes_no_pixel(
    pool: ModelPool, watched: set[str], delays: list[int], sampler: SamplerName, max_batch: int
) -> None:
    driver = Driver(pool, max_batch, read_back=SlowDevice(delays))
    driver.engine.watch(watched)
    asked = {name: ask(seed=7 * i, steps=3 + i, batch=1 + i, sampler=sampler) for i, name in enumerate("abc")}
    for name, request in asked.items():
        driver.submit(name, request)
    finish(driver)
    for name, request in asked.items():
        assert same_pixels(driver.images(name), draw(pool, request))
        assert bool(seen(driver, name)) == (name in watched)


def test_nothing_is_made_or_copied_while_nobody_watches(pool: ModelPool) -> None:
    copied: list[int] = []

    class Counting(SlowDevice):
        def __call__(self, tensors):  # type: ignore[no-untyped-def]
            copied.append(len(tensors))
            return super().__call__(tensors)

    driver = Driver(pool, read_back=Counting())
    driver.submit("job", ask(steps=5))
    finish(driver)
    assert copied == [1, 1, 1, 1, 2], "whether each step is finite, and at last the pixels"
    assert driver.reported(Previewed) == []


def test_an_image_is_seen_a_few_times_a_second_and_those_that_wait_for_their_turn_too(pool: ModelPool) -> None:
    driver = Driver(pool, max_batch=2)
    driver.engine.watch(["job"])
    driver.submit("job", ask(steps=30, batch=4))
    finish(driver, step_s=0.05)
    for index in range(4):
        steps = [step for image, step in seen(driver, "job") if image == index]
        assert steps, "none is left out"
        assert all(later - earlier >= PREVIEW_S / 0.05 - 1 for earlier, later in pairwise(steps))


def test_of_very_many_images_the_first_ones_are_seen(pool: ModelPool) -> None:
    driver = Driver(pool, max_batch=32)
    driver.engine.watch(["job"])
    driver.submit("job", ask(steps=2, batch=MOST_PREVIEWED + 4))
    finish(driver)
    assert {index for index, _ in seen(driver, "job")} == set(range(MOST_PREVIEWED))


def test_who_stops_watching_gets_no_more_and_a_request_that_ended_none_late(pool: ModelPool) -> None:
    driver = Driver(pool, read_back=SlowDevice([9] * 9))
    driver.engine.watch(["job", "other"])
    driver.submit("job", ask(steps=6))
    driver.step()
    driver.engine.cancel("job")
    driver.submit("other", ask(steps=6))
    driver.step()
    driver.engine.watch([])
    finish(driver)
    assert seen(driver, "job") == []
    assert seen(driver, "other") == [(0, 1)]


def test_a_preview_that_can_t_be_made_costs_nobody_his_image(tiny_store: ModelStore) -> None:
    class Blind:
        in_step = True
        is_narrow = False

        def encode(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
            return images

        def decode(self, x_0: Tensor) -> Tensor:
            return x_0

        def tile_px(self, shape: Shape) -> int | None:
            return None

        def preview(self, x_0: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def load(checkpoint: Checkpoint) -> LoadedModel:
        from dataclasses import replace

        return replace(load_checkpoint(checkpoint, CPU, torch.float32), codec=Blind())

    driver = Driver(filled_pool(tiny_store, load))
    driver.engine.watch(["job"])
    driver.submit("job", ask(steps=3))
    finish(driver)
    assert driver.reported(Succeeded, "job")
    assert seen(driver, "job") == []


def test_each_leg_of_a_request_is_seen(tiny_store: ModelStore) -> None:
    journal = Journal()
    pool = filled_pool(tiny_store, lambda c: two_leg_model(load_checkpoint(c, CPU, torch.float32), journal))
    driver = Driver(pool)
    driver.engine.watch(["job"])
    driver.submit("job", ask(steps=4))
    finish(driver)
    sides = [pixels.shape[0] for told in driver.reported(Previewed, "job") for _, pixels in told.images.values()]
    assert sorted(set(sides)) == [8, 16]


@pytest.mark.parametrize(("side", "expected"), [(8, 8), (128, 128), (129, 65), (512, 128), (1000, 125)])
def test_a_preview_is_small(side: int, expected: int) -> None:
    flat = torch.full((1, 3, side, side // 2), 0.25)
    made = small(flat, PREVIEW_PX)
    assert max(made.shape) == expected <= PREVIEW_PX
    assert torch.allclose(made, torch.tensor(0.25))


@dataclass(frozen=True, eq=False)
class Tinted(Doubling):
    """All pictures on the way are of one shade."""

    shade: float = 0.0

    def tile_px(self, shape: Shape) -> int | None:
        return None

    def preview(self, x_0: Tensor) -> Tensor:
        return torch.full_like(x_0, self.shade)


def test_models_that_share_a_leg_and_not_the_codec_are_each_previewed_by_their_own(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    shades = {"dark": -1.0, "light": 1.0}
    for seed, name in enumerate(shades):
        publish_tiny(store, name, weights_seed=seed)
    journal = Journal()
    shared: list[LoadedModel] = []

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = two_leg_model(load_checkpoint(checkpoint, CPU, torch.float32), journal)
        shared.append(model)
        return replace(model, later_legs=shared[0].later_legs, codec=Tinted(journal, shade=shades[model.name]))

    driver = Driver(filled_pool(store, load), max_batch=8)
    driver.engine.watch(shades)
    driver.submit("dark", ask(model="dark", steps=20, class_label=1))
    while "enter" not in journal.entries:
        driver.step()
        driver.clock.now += 1.0  # type: ignore[attr-defined]
    driver.submit("light", ask(model="light", steps=2, class_label=1))
    finish(driver)
    assert journal.entries.count("enter") == 2
    for name, shade in shades.items():
        told = driver.reported(Previewed, name)
        assert len(told) > 2, "in both legs"
        assert {int(level) for each in told for level in np.unique(each.images[0][1])} == {int((shade + 1) * 127.5)}
