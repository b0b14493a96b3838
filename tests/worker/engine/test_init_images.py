"""Images that begin at a picture: the same pixels in every company, and what is dark in a mask is kept."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from tests.worker.engine.harness import Driver, ask, plain, same_pixels
from worker.contract import InitImage, SamplerName, SamplingRequest
from worker.engine.engine import Engine
from worker.engine.messages import Saved, SavedChain
from worker.models.pool import ModelPool

Pixels = NDArray[np.uint8]

A, B, COLOURED, MASK, LARGE = (digit * 64 for digit in "abcde")


def noise_picture(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def half_mask() -> Pixels:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 3:] = 200
    return mask


PICTURES: Mapping[str, Pixels] = {
    A: noise_picture(1, 8, 8),
    B: noise_picture(2, 8, 8),
    COLOURED: noise_picture(3, 8, 8, 4),
    MASK: half_mask(),
    LARGE: noise_picture(4, 16, 8),
}
WITHOUT_PLMS = [name for name in SamplerName if name != SamplerName.PLMS]


def driver_with_pictures(pool: ModelPool, max_batch: int = 4, save_interval_s: float | None = None) -> Driver:
    driver = Driver(pool, max_batch)
    driver.pictures.update(PICTURES)
    if save_interval_s is not None:
        driver.engine = Engine(pool, max_batch, clock=driver.clock, save_interval_s=save_interval_s)
    return driver


def drawn(pool: ModelPool, request: SamplingRequest, resume: SavedChain | None = None) -> Sequence[Pixels]:
    driver = driver_with_pictures(pool, max_batch=4 if resume else 1)
    driver.submit("only", request, resume)
    driver.finish()
    return driver.images("only")


@st.composite
def requests(draw: st.DrawFn) -> SamplingRequest:
    init = draw(
        st.none()
        | st.builds(
            InitImage,
            picture=st.sampled_from([A, B, COLOURED]),
            strength=st.sampled_from([0.34, 0.7, 1.0]),
            mask=st.sampled_from([None, MASK]),
            paste_back=st.booleans(),
        )
    )
    return ask(
        seed=draw(st.integers(0, 5)),
        steps=draw(st.integers(3, 7)),
        batch=draw(st.integers(1, 2)),
        sampler=draw(st.sampled_from(WITHOUT_PLMS)),
        class_label=draw(st.sampled_from([None, 1])),
        guidance_scale=draw(st.sampled_from([1.0, 3.5])),
        init=init,
    )


@settings(max_examples=8, deadline=None)
@given(mixture=st.lists(requests(), min_size=2, max_size=5), max_batch=st.sampled_from([1, 3, 8]))
def test_an_image_that_begins_at_a_picture_does_not_depend_on_its_neighbours(
    pool: ModelPool, mixture: list[SamplingRequest], max_batch: int
) -> None:
    driver = driver_with_pictures(pool, max_batch)
    for number, request in enumerate(mixture):
        driver.submit(str(number), request)
        driver.step()
    driver.finish()
    assert driver.engine.counters().image_steps == sum(request.batch * request.calls for request in mixture)
    for number, request in enumerate(mixture):
        alone = [drawn(pool, plain(request, seed=request.seed + i, batch=1))[0] for i in range(request.batch)]
        assert same_pixels(driver.images(str(number)), alone)


@pytest.mark.parametrize("sampler", [SamplerName.DDPM, SamplerName.DPMPP_2M_SDE])
@pytest.mark.parametrize("mask", [None, MASK])
def test_it_is_the_same_when_it_is_taken_up_anywhere(pool: ModelPool, sampler: SamplerName, mask: str | None) -> None:
    init = InitImage(picture=A, strength=0.8, mask=mask)
    request = ask(seed=3, steps=6, batch=2, sampler=sampler, init=init)
    driver = driver_with_pictures(pool, save_interval_s=0.0)
    driver.submit("a", request)
    driver.finish()
    states = [saved.chain for saved in driver.reported(Saved)]
    assert len(states) >= request.calls - 1
    for state in states:
        assert same_pixels(drawn(pool, request, state), driver.images("a"))


@pytest.mark.parametrize("sampler", WITHOUT_PLMS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_is_dark_in_the_mask_is_the_picture_and_the_rest_is_not(
    pool: ModelPool, sampler: SamplerName, strength: float
) -> None:
    init = InitImage(picture=A, strength=strength, mask=MASK)
    (image,) = drawn(pool, ask(seed=1, steps=6, sampler=sampler, init=init))
    dark = PICTURES[MASK] < 128
    assert np.array_equal(image[:, :, 0][dark], PICTURES[A][dark])
    assert not np.array_equal(image[:, :, 0][~dark], PICTURES[A][~dark])


def test_less_strength_leaves_more_of_the_picture(pool: ModelPool) -> None:
    def distance(strength: float) -> float:
        init = InitImage(picture=A, strength=strength)
        (image,) = drawn(pool, ask(seed=1, steps=20, init=init))
        return float(np.abs(image[:, :, 0].astype(float) - PICTURES[A]).mean())

    distances = [distance(strength) for strength in (0.05, 0.3, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < 20


def test_the_picture_the_noise_and_the_mask_each_count(pool: ModelPool) -> None:
    base = ask(seed=1, steps=6, init=InitImage(picture=A, strength=0.7))
    others = [
        plain(base, seed=2),
        plain(base, init=InitImage(picture=B, strength=0.7)),
        plain(base, init=InitImage(picture=A, strength=0.5)),
        plain(base, init=InitImage(picture=A, strength=0.7, mask=MASK)),
    ]
    images = [drawn(pool, request)[0].tobytes() for request in (base, *others)]
    assert len(set(images)) == len(images)
    assert drawn(pool, base)[0].tobytes() == images[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"init": {"picture": "f" * 64}}, "init_image: upload f{64} is not there"),
        ({"init": {"picture": A, "mask": "f" * 64}}, "mask: upload f{64} is not there"),
        ({"init": {"picture": LARGE}}, "init_image: need 8 x 8 pixels, as the model draws, got 8 x 16"),
        ({"init": {"picture": A, "mask": LARGE}}, "mask: need 8 x 8 pixels, as the model draws, got 8 x 16"),
        ({"init": {"picture": A, "strength": 0.5}, "sampler": "plms"}, "plms"),
    ],
)
def test_a_picture_that_cannot_be_begun_at_fails_its_job_alone(
    pool: ModelPool, changes: dict[str, object], reason: str
) -> None:
    driver = driver_with_pictures(pool)
    driver.submit("good", ask(seed=1, steps=4))
    driver.submit("bad", plain(ask(seed=1, steps=4), **changes))
    driver.finish()
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == ("bad_job", False)
    assert failed.detail.count(reason.replace("f{64}", "f" * 64)) == 1
    assert len(driver.images("good")) == 1


def test_a_strength_that_leaves_no_step_is_no_request() -> None:
    """The product is cut off, as the reference does it."""
    assert ask(steps=50, init=InitImage(picture=A, strength=0.58)).calls == 28
    with pytest.raises(ValidationError, match=r"need strength x steps of at least 1, got 0.2 x 4"):
        ask(steps=4, init=InitImage(picture=A, strength=0.2))
