"""Images of other sizes than the model's own: the same law, one line for all, batches of one size each."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.harness import CPU, Driver, ask, draw, filled_pool, load_float32, same_pixels
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.engine.test_resume import resumed, saved_states
from tests.worker.networks.prepared import TINY_SPEC, tiny_inputs
from tests.worker.stable_diffusion import BETAS, SD, import_sd, wider_unet
from tests.worker.tiny_models import TINY, publish_tiny
from worker.contract import SamplerName, SamplingRequest, TextCondition
from worker.diffusion.noise import initial_noise
from worker.engine.messages import Failed
from worker.models.pool import ModelPool
from worker.networks.exactness import OneByOne
from worker.networks.form import Form
from worker.networks.image_sizes import OtherSizes
from worker.networks.network_input import NetworkInput
from worker.store import ModelStore

SIZES = ((16, 16), (24, 16), (16, 32), (30, 14), (2, 2))
DDIM = DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("sizes"))
    import_sd(store, scheduler=DDIM, unet=wider_unet())
    publish_tiny(store)
    return store


def sized(width: int | None, height: int | None, *, seed: int = 0, steps: int = 3, **rest: object) -> SamplingRequest:
    condition = TextCondition(prompt="a cat", negative_prompt="dog")
    fields = {"model": SD, "condition": condition, "guidance_scale": 3.0, "width": width, "height": height, **rest}
    return ask(seed, steps, **fields)  # type: ignore[arg-type]


@st.composite
def requests(draw: st.DrawFn) -> SamplingRequest:
    width, height = draw(st.sampled_from(SIZES))
    return sized(
        width,
        height,
        seed=draw(st.integers(0, 2)),
        steps=draw(st.integers(1, 4)),
        batch=draw(st.integers(1, 2)),
        sampler=draw(st.sampled_from([SamplerName.DDIM, SamplerName.DPMPP_2M])),
    )


def test_the_network_runs_whole_batches_of_its_own_and_of_other_sizes(pool: ModelPool) -> None:
    draw(pool, sized(24, 16, steps=1))
    model = pool.acquire(SD)
    assert model is not None
    pool.release(model)
    assert model.execution.form in (Form.FAST, Form.DIRECT)
    assert not isinstance(model.denoiser_of((4, 8, 12)), OneByOne)


@settings(max_examples=6, deadline=None)
@given(mixture=mixtures(requests(), most=5), max_batch=st.sampled_from([1, 3, 8]))
def test_an_image_does_not_depend_on_neighbours_of_any_size(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int
) -> None:
    check_neighbours_do_not_matter(Driver(pool, max_batch), alone, mixture)


def test_a_size_is_that_of_the_image_and_one_side_may_be_left_to_the_model(alone: Alone) -> None:
    assert alone(sized(24, 32)).shape == (32, 24, 3)
    assert alone(sized(24, None)).shape == (16, 24, 3)
    assert np.array_equal(alone(sized(16, 16)), alone(sized(None, None)))


@pytest.mark.parametrize(("width", "height"), [(24, 40), (30, 14)])
def test_an_image_of_another_size_is_that_of_the_reference(store: ModelStore, width: int, height: int) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(store.checkpoint(SD).path)
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_noise(torch.tensor([4]), (4, height // 2, width // 2))
    size = {"width": width, "height": height, "num_inference_steps": 8, "guidance_scale": 3.0}
    # It would refuse what is no multiple of 8, as real autoencoders need.
    pipeline.check_inputs = lambda *args, **rest: None
    expected = pipeline("a cat", negative_prompt="dog", **size, latents=noise, output_type="np").images[0]
    (drawn,) = draw(filled_pool(store), sized(width, height, seed=4, steps=8))
    difference = np.abs(drawn - (expected * 255).round())
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.99


def test_pixel_models_draw_other_sizes_too(pool: ModelPool) -> None:
    (drawn,) = draw(pool, ask(class_label=1, width=12, height=8))
    assert drawn.shape == (8, 12, 1)


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (sized(17, 16), "model sd needs width and height that are multiples of 2, got 17x16"),
        (ask(model=TINY, width=9), "model tiny needs width and height that are multiples of 2, got 9x8"),
    ],
)
def test_a_size_that_the_codec_or_the_network_cannot_make_is_refused(
    pool: ModelPool, request_: SamplingRequest, detail: str
) -> None:
    driver = Driver(pool)
    driver.submit("bad", request_)
    driver.finish()
    assert driver.failure("bad") == Failed("bad", "bad_job", detail, retryable=False)


def test_a_chain_of_another_size_is_taken_up_by_an_engine_that_never_drew_it(store: ModelStore) -> None:
    request = sized(24, 32, steps=5, batch=2)
    states = list(saved_states(filled_pool(store), request, 4))
    expected = draw(filled_pool(store), request)
    for state in (states[1], states[-1]):
        driver = resumed(filled_pool(store), request, state)
        assert same_pixels(driver.images("a"), expected)
        assert driver.engine.counters().requests_resumed == 1


def test_a_larger_image_takes_the_place_of_as_many_rows_as_it_has_pixels(pool: ModelPool) -> None:
    driver = Driver(pool, max_batch=8)
    driver.submit("large", sized(32, 32, batch=3, steps=1))
    driver.finish()
    counted = driver.engine.counters()
    assert (counted.steps, counted.batch_size_max) == (3, 1), "two guided rows of four times the pixels are a batch"


def test_what_weights_take_for_other_sizes_is_counted_and_kept(store: ModelStore) -> None:
    pool = filled_pool(store)
    model = pool.acquire(SD)
    assert model is not None
    assert model.sizes is not None
    draw(pool, sized(24, 16))
    found = model.denoiser_of((4, 8, 12))
    draw(pool, sized(24, 16))
    assert model.denoiser_of((4, 8, 12)) is found
    assert model.memory_bytes == model.weight_bytes + model.sizes.network.extra_bytes
    assert pool.memory().weight_bytes == sum(each.memory_bytes for each in pool.loaded())


def test_a_size_whose_batches_are_not_exact_runs_image_by_image() -> None:
    called: list[int] = []

    def leaky(inputs: NetworkInput) -> Tensor:
        called.append(len(inputs))
        return inputs.x + len(inputs) * (inputs.x.shape[-1] > 8)

    sizes = OtherSizes(leaky, TINY_SPEC.of_shape, CPU)
    for shape in ((1, 8, 8), (1, 8, 16)):
        while shape not in sizes:
            sizes.prepare_some(shape)
    rows = tiny_inputs(3)
    called.clear()
    sizes.of((1, 8, 8))(rows)
    sizes.of((1, 8, 16))(rows)
    assert called == [3, 1, 1, 1]


def test_others_run_between_the_parts_of_a_new_sizes_probe(store: ModelStore) -> None:
    pool = filled_pool(store, load_float32)
    driver = Driver(pool)
    driver.submit("sized", sized(40, 40, steps=1))
    driver.submit("other", ask(class_label=1, steps=3))
    for _ in range(6):
        assert driver.step()
    assert driver.engine.counters().steps == 3
    model = pool.acquire(SD)
    assert model is not None
    assert not model.is_ready_for((4, 20, 20))
    driver.finish()
    assert driver.images("sized")[0].shape == (40, 40, 3)
