"""The laws of equal pixels for prompts: alone, in company of any kind, taken up again, on another version."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import CPU, Driver, ask, draw, filled_pool, plain, same_pixels
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.engine.test_resume import resumed, saved_states
from tests.worker.text_pipeline import TEXT, publish_text, text_encoder, write_text_pipeline
from tests.worker.tiny_models import TINY, publish_tiny
from worker.conditioning.conditioning import Conditioner, Encoding
from worker.contract import (
    Condition,
    Guidance,
    LabelCondition,
    NoCondition,
    SamplerName,
    SamplingRequest,
    TextCondition,
)
from worker.diffusion.noise import initial_noise
from worker.engine.messages import Failed, Succeeded
from worker.models.errors import BrokenModel
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.device import choose_dtype, cpu_computes_bfloat16
from worker.networks.form import Form
from worker.store import Checkpoint, ModelStore, Recipe


@dataclass(frozen=True)
class FailingText:
    """A text encoder that raises at the prompt "fail"."""

    inner: Conditioner
    error: Exception

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        encoding = self.inner(condition, guidance)
        if isinstance(condition, TextCondition) and condition.prompt == "fail":
            return replace(encoding, calls=[self._fail])
        return encoding

    def _fail(self) -> None:
        raise self.error


PROMPTS = ("a cat", "dog", "", "a cat and a dog and a cat and a dog and a cat", "猫🐱 ́")


def prompted(prompt: str, negative: str = "", *, w: float = 3.0, seed: int = 0, **rest: object) -> SamplingRequest:
    condition = TextCondition(prompt=prompt, negative_prompt=negative)
    return ask(seed, guidance_scale=w, **{"model": TEXT, "condition": condition, **rest})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("prompts"))
    publish_text(store)
    publish_tiny(store)
    return store


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pool(request: pytest.FixtureRequest, store: ModelStore) -> ModelPool:
    dtype = choose_dtype(request.param, CPU)
    return filled_pool(store, lambda checkpoint: load_checkpoint(checkpoint, CPU, dtype))


@st.composite
def requests(draw: st.DrawFn) -> SamplingRequest:
    request = prompted(
        draw(st.sampled_from(PROMPTS)),
        draw(st.sampled_from(PROMPTS)),
        w=draw(st.sampled_from([0.0, 1.0, 3.0])),
        seed=draw(st.integers(0, 3)),
        steps=draw(st.integers(1, 5)),
        batch=draw(st.integers(1, 3)),
        sampler=draw(st.sampled_from(SamplerName)),
    )
    if draw(st.integers(0, 4)) == 0:
        return plain(request, model=TINY, condition=LabelCondition(label=1))
    return request


@settings(max_examples=8, deadline=None)
@given(
    mixture=mixtures(requests()),
    max_batch=st.sampled_from([1, 2, 3, 5, 8, 16]),
    canceled=st.sets(st.integers(0, 5), max_size=1),
)
def test_an_image_of_a_prompt_does_not_depend_on_its_neighbours(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int, canceled: set[int]
) -> None:
    check_neighbours_do_not_matter(Driver(pool, max_batch), alone, mixture, canceled)


def test_the_network_runs_whole_batches(pool: ModelPool) -> None:
    loaded = pool.acquire(TEXT)
    assert loaded is not None
    pool.release(loaded)
    emulated = loaded.execution.dtype == "bfloat16" and not cpu_computes_bfloat16()
    assert emulated or loaded.execution.form in (Form.FAST, Form.DIRECT)


def test_prompt_negative_prompt_and_guidance_all_matter(alone: Alone) -> None:
    asked = [
        prompted("a cat"),
        prompted("a dog"),
        prompted("a cat", "dog"),
        prompted("a cat", w=1),
        prompted("a cat", w=0),
        prompted("a cat", seed=1),
    ]
    drawn = [alone(request) for request in asked]
    assert all(not np.array_equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert all(len(np.unique(image)) > 8 for image in drawn)


def test_each_image_of_a_request_may_have_its_own_prompt(pool: ModelPool, alone: Alone) -> None:
    texts = ("a cat", "dog", "a cat", "cat " * 20)
    condition = TextCondition(prompts=texts, negative_prompt="dog")
    driver = Driver(pool)
    driver.submit("each", plain(prompted("", seed=5, batch=4), condition=condition))
    driver.finish()
    expected = [alone(prompted(text, "dog", seed=5 + index)) for index, text in enumerate(texts)]
    assert same_pixels(driver.images("each"), expected)
    (told,) = driver.reported(Succeeded, "each")
    assert [warning[:12] for warning in told.warnings] == ["prompts[3]: "]


def test_a_request_needs_as_many_prompts_as_images(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("bad", plain(prompted("", batch=3), condition=TextCondition(prompts=("a", "b"))))
    driver.finish()
    assert driver.failure("bad").detail == "need 3 prompts, one for each image, got 2"


@pytest.mark.parametrize("where", [0, 2, 4])
def test_a_chain_of_a_prompt_taken_up_anywhere_ends_on_the_same_pixels(store: ModelStore, where: int) -> None:
    """By an engine that has to encode the prompt anew."""
    request = prompted("a cat", "dog", steps=6, batch=2, sampler=SamplerName.DPMPP_2M)
    state = list(saved_states(filled_pool(store), request, 4))[where]
    driver = resumed(filled_pool(store), request, state)
    assert same_pixels(driver.images("a"), draw(filled_pool(store), request))
    assert driver.engine.counters().requests_resumed == 1


def test_a_request_without_a_prompt_draws_the_unconditional_image(alone: Alone) -> None:
    assert np.array_equal(alone(ask(model=TEXT, condition=NoCondition(), guidance_scale=3.0)), alone(prompted("", w=1)))


def test_a_prompt_that_was_cut_is_reported_with_the_result(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("cut", prompted("cat " * 14 + "dog"))
    driver.submit("whole", prompted("cat"))
    driver.finish()
    (cut,), (whole,) = driver.reported(Succeeded, "cut"), driver.reported(Succeeded, "whole")
    assert cut.warnings == ("prompt: text reads 14 tokens of it, lost: dog",)
    assert whole.warnings == ()


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (prompted("a <|endoftext|>"), "prompt: a prompt can't contain the special token <|endoftext|>"),
        (prompted("cat", model=TINY), "model tiny takes a class_label, got a prompt"),
        (ask(model=TEXT, class_label=1), "model text takes a prompt, got class_label 1"),
    ],
)
def test_what_cannot_be_drawn_fails_alone(pool: ModelPool, request_: SamplingRequest, detail: str) -> None:
    driver = Driver(pool)
    driver.submit("good", prompted("a cat"))
    driver.submit("bad", request_)
    driver.finish()
    assert driver.failure("bad") == Failed("bad", "bad_job", detail, retryable=False)
    assert len(driver.images("good")) == 1


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("broken"), "engine_error"), (MemoryError(), "out_of_memory")]
)
def test_an_encoder_that_raises_fails_its_request_alone(store: ModelStore, error: Exception, code: str) -> None:
    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = load_checkpoint(checkpoint, CPU, torch.float32)
        return replace(model, conditioner=FailingText(model.conditioner, error)) if model.name == TEXT else model

    driver = Driver(filled_pool(store, load))
    driver.submit("good", prompted("a cat"))
    driver.submit("bad", prompted("fail"))
    driver.submit("labelled", ask(class_label=1))
    driver.finish()
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == (code, True)
    assert len(driver.images("good")) == len(driver.images("labelled")) == 1
    assert same_pixels(driver.images("good"), draw(filled_pool(store), prompted("a cat")))


def test_versions_with_the_same_text_encoder_share_it(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    models = [
        load_checkpoint(publish_text(store, name, step=step), CPU, torch.float32)
        for name, step in (("a", 1), ("a", 2), ("b", 1))
    ]
    encoders = {id(model.conditioner.readers[0].encoder) for model in models}  # type: ignore[attr-defined]
    assert len(encoders) == 1
    other = load_checkpoint(publish_text(store, "c", weights_seed=1), CPU, torch.float32)
    assert id(other.conditioner.readers[0].encoder) not in encoders  # type: ignore[attr-defined]


def test_the_image_is_that_of_the_reference_pipeline(store: ModelStore) -> None:
    """diffusers' own pipeline from the same noise: every pixel within one level of 255."""
    checkpoint = store.checkpoint(TEXT)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint.path, vae=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = initial_noise(torch.tensor([4]), (3, 16, 16))
    x_0 = pipeline(
        "a cat",
        negative_prompt="dog",
        num_inference_steps=8,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).images
    expected = ((x_0[0] + 1) * 127.5).clamp(0, 255).permute(1, 2, 0)
    (drawn,) = draw(filled_pool(store), prompted("a cat", "dog", seed=4, steps=8))
    difference = (torch.tensor(drawn).double() - expected.double()).abs()
    assert float(difference.max()) < 0.51


def test_a_reload_that_changes_the_text_encoder_alone_leaves_running_chains_on_theirs(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    old = publish_text(store)
    pool, request = filled_pool(store), prompted("a cat", "dog", steps=5)
    driver = Driver(pool)
    driver.submit("old", request)
    for _ in range(4):
        driver.step()

    def write(folder: Path) -> None:
        write_text_pipeline(folder)
        text_encoder(1).save_pretrained(folder / "text_encoder")

    new = store.publish(TEXT, write, step=1, recipe=Recipe(command="", data=""))
    assert new.manifest.components["unet"] == old.manifest.components["unet"]
    pool.poll()
    pool.load_pending()
    driver.submit("new", request)
    driver.finish()
    versions = {event.job_id: event.version for event in driver.reported(Succeeded)}
    assert versions == {"old": old.version, "new": new.version}
    assert not same_pixels(driver.images("old"), driver.images("new"))
    assert same_pixels(driver.images("new"), draw(filled_pool(store), request))
    store.promote(TEXT, old.version)
    assert same_pixels(driver.images("old"), draw(filled_pool(store), request))


@pytest.mark.parametrize("broken", ["text_encoder/model.safetensors", "tokenizer/vocab.json"])
def test_a_broken_text_part_keeps_the_version_from_serving(tmp_path: Path, broken: str) -> None:
    store = ModelStore(tmp_path)
    good = publish_text(store)
    pool = filled_pool(store)
    bad = publish_text(store, weights_seed=1, step=2)
    (bad.path / broken).write_bytes((bad.path / broken).read_bytes()[:-9])
    pool.poll()
    pool.load_pending()
    (info,) = pool.describe()
    assert info.version == good.version
    assert broken in str(info.reload_error)
    assert len(draw(pool, prompted("a cat"))) == 1


def test_the_model_says_that_it_takes_a_prompt(pool: ModelPool) -> None:
    assert {info.name: info.takes for info in pool.describe()} == {TEXT: "prompt", TINY: "class_label"}


def test_a_text_encoder_with_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_text_pipeline(folder)
        encoder = text_encoder()
        encoder.final_layer_norm.weight.data[3] = float("nan")
        encoder.save_pretrained(folder / "text_encoder")

    checkpoint = ModelStore(tmp_path).publish("m", write, step=1, recipe=Recipe(command="", data=""))
    with pytest.raises(BrokenModel, match=r"text encoder: weight .*final_layer_norm\.weight is not finite"):
        load_checkpoint(checkpoint, CPU, torch.float32)
