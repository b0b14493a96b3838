"""LoRAs are trained on published models, and draw as they were trained: in the worker, and in diffusers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor

from tests.training.started import StartedRun, wait_for_state
from tests.training.tiny import quick, write_captioned_squares
from tests.worker.engine import test_sdxl
from tests.worker.engine.harness import filled_pool
from tests.worker.engine.reference import FIELDS, NEGATIVE, PROMPT, prompted
from tests.worker.engine.test_stable_diffusion import DDIM, latent_of
from tests.worker.stable_diffusion import BETAS, LATENT, SD, import_sd, sdxl_pipeline, tiny_unet
from tests.worker.text_pipeline import TEXT, publish_text
from tests.worker.tiny_models import TINY, publish_tiny
from training.__main__ import main
from training.ema import AveragedWeights, power_decay
from training.errors import ConfigurationError
from training.lora.base_model import BaseModel, open_base_model
from training.lora.prompted import PromptedDenoiser
from training.lora.publishing import LoraPublication
from training.network import Conditions
from training.state import StateFolder
from worker.contract import Condition, Guidance, LoraUse, NoCondition, SamplerName, TextCondition
from worker.diffusion.noise import initial_noise
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.networks.network_input import NetworkInput
from worker.store import ModelStore
from worker.store.lora_store import LoraStore
from worker.store.pipeline_import import import_pipeline

XL = "xl"
NAME = "squares"
QUICK = ["--batch", "4", "--held-out-rows", "8", "--threads", "1", "--model", NAME]
LARGE_CHANGE = ["--lora-rank", "4", "--lora-alpha", "8", "--lora-text", "--learning-rate", "0.02"]
EVERYWHERE = "to_q,to_k,to_v,to_out.0,conv_in,conv1,conv2,conv_out"


def import_xl(store: ModelStore, folder: Path) -> None:
    sdxl_pipeline().save_pretrained(folder)
    import_pipeline(store, folder, XL)


def command(root: Path, *arguments: str, on: str = SD) -> list[str]:
    """Whatever it is for, it trains on the squares in `root`."""
    where = ["--store", str(root / "store"), "--state", str(root / "state"), "--latents", str(root / "latents")]
    return ["--lora-on", on, "--data", str(root / "pictures"), *where, *QUICK, *arguments]


def loaded(pool: ModelPool, model: str, name: str = NAME, scale: float = 1.0) -> LoadedModel:
    loras = (LoraUse(name=name, scale=scale),)
    if pool.acquire(model, None, loras) is None:
        pool.load_pending()
    found = pool.acquire(model, None, loras)
    assert found is not None
    return found


@dataclass
class Trained:
    """A LoRA on a tiny Stable Diffusion, and a pool that was there before it."""

    root: Path
    store: ModelStore
    pool: ModelPool

    @property
    def file(self) -> Path:
        return LoraStore(self.store.root).find(NAME).file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("lora")
    write_captioned_squares(root / "pictures")
    store = ModelStore(root / "store")
    import_sd(store, scheduler=DDIM)
    pool = filled_pool(store)
    assert main(command(root, "--steps", "60", *LARGE_CHANGE, "--lora-targets", EVERYWHERE), {}) == 0
    return Trained(root, store, pool)


def test_what_it_has_learnt_is_told_beside_the_model_without_it(trained: Trained) -> None:
    publication = LoraPublication(trained.store, NAME, SD, quick(lora_on=SD), {})
    metrics = publication.current_metrics()
    assert metrics is not None
    assert metrics["held_out_loss"] < 0.9 * metrics["held_out_loss_base"]


def test_a_worker_that_runs_offers_it_for_the_model_that_it_was_trained_on(trained: Trained) -> None:
    import_sd(trained.store, "other")
    trained.pool.poll()
    offered = {model.name: [lora.name for lora in model.loras] for model in trained.pool.describe()}
    assert offered == {SD: [NAME], "other": []}
    assert LoraStore(trained.store.root).find(NAME).manifest.components == ["text_encoder", "unet"]


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_diffusers_opens_the_file_and_draws_as_the_worker_does(trained: Trained, scale: float) -> None:
    request, noise = prompted(seed=4, sampler=SamplerName.DDIM), initial_noise(torch.tensor([4]), LATENT)
    latent = latent_of(loaded(filled_pool(trained.store), SD, scale=scale), request, noise)
    pipeline = StableDiffusionPipeline.from_pretrained(trained.store.checkpoint(SD).path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    fields: dict[str, Any] = {**FIELDS, "latents": noise, "output_type": "latent"}
    without = pipeline(PROMPT, **fields).images
    pipeline.load_lora_weights(str(trained.file.parent), weight_name=trained.file.name, adapter_name=NAME)
    pipeline.set_adapters([NAME], [scale])
    expected = pipeline(PROMPT, **fields).images
    assert float((latent - expected).norm() / expected.norm()) < 1e-5
    assert float((expected - without).norm() / expected.norm()) > 1e-2, "it is seen that it is there"


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of peft, for the second encoder
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Euler
def test_a_lora_on_xl_is_drawn_by_diffusers_as_by_the_worker(tmp_path: Path) -> None:
    """Its U-Net and both of its text encoders are changed, by one command."""
    write_captioned_squares(tmp_path / "pictures")
    store = ModelStore(tmp_path / "store")
    import_xl(store, tmp_path / "saved")
    assert main(command(tmp_path, "--steps", "20", *LARGE_CHANGE, "--lora-targets", EVERYWHERE, on=XL), {}) == 0
    trained = LoraStore(store.root).find(NAME)
    assert trained.manifest.components == ["text_encoder", "text_encoder_2", "unet"]

    noise = initial_noise(torch.tensor([4]), LATENT)
    latent = test_sdxl.latent_of(loaded(filled_pool(store), XL), test_sdxl.prompted(NEGATIVE), noise)
    pipeline = StableDiffusionXLPipeline.from_pretrained(store.checkpoint(XL).path, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    fields: dict[str, Any] = {**FIELDS, "guidance_scale": test_sdxl.W, "num_inference_steps": test_sdxl.STEPS}
    fields |= {"width": 16, "height": 16, "latents": noise, "output_type": "latent"}
    without = pipeline(PROMPT, **fields).images
    pipeline.load_lora_weights(str(trained.file.parent), weight_name=trained.file.name, adapter_name=NAME)
    expected = pipeline(PROMPT, **fields).images
    assert float((latent - expected).norm() / expected.norm()) < 1e-5
    assert float((expected - without).norm() / expected.norm()) > 1e-2, "it is seen that it is there"


def test_the_state_holds_the_lora_alone(trained: Trained) -> None:
    state = StateFolder(trained.root / "state").load()
    assert state is not None
    for part in ("denoiser", "ema"):
        assert state.tensors[part]
        assert all(".lora_" in name for name in state.tensors[part])
    trained.store.verify(SD, trained.store.checkpoint(SD).version)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """Of each kind one: in latents, in latents with two text encoders, and in pixel space."""
    root = tmp_path_factory.mktemp("bases")
    store = ModelStore(root / "store")
    import_sd(store)
    import_xl(store, root / "saved")
    publish_text(store)
    return store


def with_random_adapters(base: BaseModel) -> PromptedDenoiser:
    denoiser = base.denoiser(quick(lora_rank=2, lora_alpha=3, lora_text=True)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def as_served(model: LoadedModel, prompt: str | None, x_t: Tensor, t: float) -> Tensor:
    condition: Condition = NoCondition() if prompt is None else TextCondition(prompt=prompt)
    encoding = model.conditioner(condition, Guidance(scale=1.0))
    (texts,) = encoding.assemble([call() for call in encoding.calls])
    named = texts.extended(model.named_of_size(model.shape)).named
    return model.denoise(NetworkInput(x_t, torch.tensor([t]), named))


@pytest.mark.parametrize("model", [SD, XL, TEXT])
@torch.no_grad()
def test_what_is_trained_is_what_is_served(bases: ModelStore, model: str) -> None:
    base = open_base_model(model, bases)
    denoiser = with_random_adapters(base)
    configuration = quick(lora_on=model, lora_rank=2, lora_alpha=3, lora_text=True)
    LoraPublication(bases, f"random-{model}", model, configuration, {}).publish(denoiser, step=1, metrics={})
    served = loaded(filled_pool(bases), model, f"random-{model}")
    x_t = initial_noise(torch.tensor([4]), served.shape)
    for prompt in ("a cat and a dog!", "a cat " * 60, None):
        ours = denoiser(x_t, torch.tensor([500]), Conditions(tokens=base.tokens([prompt or ""])))
        expected = as_served(served, prompt, x_t, 500.0)
        assert float((ours - expected).norm() / expected.norm()) < 1e-5, prompt


def test_the_average_shares_what_is_frozen(bases: ModelStore) -> None:
    denoiser = with_random_adapters(open_base_model(TEXT, bases))
    average = AveragedWeights(denoiser, power_decay(3.0))
    before = {name: weight.clone() for name, weight in denoiser.named_parameters()}
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    average.update(denoiser, 2)
    pairs = zip(denoiser.named_parameters(), average.network.parameters(), strict=True)
    for (name, weight), averaged in pairs:
        assert (weight is averaged) == (not weight.requires_grad), name
        torch.testing.assert_close(averaged, torch.lerp(before[name], weight, 1 - power_decay(3.0)(2)))


def test_a_run_that_went_on_has_the_bits_of_one_that_did_not(trained: Trained, tmp_path: Path) -> None:
    store = LoraStore(trained.store.root)
    hashes = []
    for number, parts in enumerate((["4"], ["2", "4"])):
        state = ["--state", str(tmp_path / f"state-{number}"), "--model", f"run-{number}", "--decay", "constant"]
        for part, steps in enumerate(parts):
            resume = ["--resume"] if part else []
            assert main([*command(trained.root, *state), "--steps", steps, *resume], {}) == 0
        hashes.append(store.current(f"run-{number}"))
    assert hashes[0] == hashes[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_killed_at_any_step_goes_on_to_the_same_bits(trained: Trained, tmp_path: Path, precision: str) -> None:
    store = LoraStore(trained.store.root)

    def start(name: str) -> StartedRun:
        where = ["--model", name, "--state", str(tmp_path / name / "state"), "--save-every", "1"]
        settings = ["--steps", "12", "--lora-text", "--precision", precision]
        return StartedRun(*command(trained.root, *where, *settings))

    whole, killed = f"whole-{precision}", f"killed-{precision}"
    start(whole).finish()
    for step in (1, 5):
        process = start(killed)
        wait_for_state(tmp_path / killed, step)
        process.kill()
    assert killed not in store.names(), "it was killed before its end"
    assert "going on at step" in start(killed).finish()
    assert store.current(killed) == store.current(whole)


def test_only_what_is_better_is_published(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = LoraStore(trained.store.root).current(NAME)
    arguments = ["--steps", "1", "--publish-best", "held_out_loss", "--state", str(tmp_path / "state")]
    assert main(command(trained.root, *arguments, "--learning-rate", "1e-9"), {}) == 0
    assert "not published at step 1: held_out_loss" in capsys.readouterr().out
    assert LoraStore(trained.store.root).current(NAME) == before


def test_a_log_has_sheets_of_few_images(trained: Trained, tmp_path: Path) -> None:
    where = [
        "--state",
        str(tmp_path / "state"),
        "--model",
        "logged",
        "--log",
        str(tmp_path / "log"),
        "--log-every",
        "1",
    ]
    assert main(command(trained.root, *where, "--steps", "2", "--publish-dtype", "float16"), {}) == 0
    assert (tmp_path / "log" / "samples-000000001.png").is_file()
    tensors = load_file(LoraStore(trained.store.root).find("logged").file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert not any(name.startswith("text_encoder") for name in tensors)


def uncaptioned(root: Path) -> list[str]:
    (root / "pictures" / "metadata.jsonl").unlink()
    return []


def import_inpainting(store: ModelStore) -> None:
    import_sd(store, "inpaint", unet=tiny_unet(in_channels=9))


MODELS: dict[str, Callable[[ModelStore], object]] = {
    TINY: publish_tiny,
    TEXT: publish_text,
    "inpaint": import_inpainting,
}


@pytest.mark.parametrize(
    ("on", "arguments", "reason"),
    [
        (TINY, [], "need a text-to-image model for --lora-on, got tiny/"),
        ("nobody", [], "nobody"),
        (f"{SD}@000000001-00000000", [], "000000001-00000000"),
        ("inpaint", [], "reads a mask"),
        (SD, ["--width", "16"], "--width is what sd/"),
        (SD, ["--prediction", "epsilon"], "--prediction is what sd/"),
        (SD, ["--lora-targets", "to_nothing"], "can't lay a LoRA upon to_nothing"),
        (SD, ["--lora-targets", "norm1"], "can't lay a LoRA upon norm1"),
        (SD, ["--lora-rank", "0"], "--lora-rank"),
        (SD, ["--flips"], "need no flips with an autoencoder"),
        (SD, ["--data", "digits"], "need images with captions"),
        (SD, uncaptioned, "need images with captions"),
        (TEXT, uncaptioned, "need images with captions"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    on: str,
    arguments: list[str] | Callable[[Path], list[str]],
    reason: str,
) -> None:
    store = ModelStore(tmp_path / "store")
    MODELS.get(on, import_sd)(store)
    write_captioned_squares(tmp_path / "pictures", count=6)
    given = arguments(tmp_path) if callable(arguments) else arguments
    assert main(command(tmp_path, "--steps", "1", *given, on=on), {}) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert reason in message
    assert "\n" not in message
    assert LoraStore(store.root).names() == []


def test_betas_that_no_setting_gives_are_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    import_sd(store, scheduler=DDIMScheduler(**{**BETAS, "beta_end": 0.011}, steps_offset=1, clip_sample=False))
    with pytest.raises(ConfigurationError, match="was trained with betas that no --schedule has"):
        open_base_model(SD, store).settled(quick(lora_on=SD))
