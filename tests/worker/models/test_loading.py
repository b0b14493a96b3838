"""What a checkpoint must be to be served, and what its configuration means."""

import base64
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from safetensors.torch import load_file, save_file

from tests.worker.engine.harness import CPU, FaultyDenoiser, ask, draw, filled_pool, load_float32
from tests.worker.tiny_models import CHAIN_CONFIG, TINY, publish_tiny
from worker.contract import SamplerName, Spacing
from worker.diffusion.prediction import PredictionType
from worker.diffusion.update import Clip
from worker.models.chain_config import read_chain_config
from worker.models.errors import BrokenModel, UnsupportedModel
from worker.models.golden_sample import check_golden_sample
from worker.models.loaded_model import PLANS_KEPT
from worker.networks.device import choose_device, choose_dtype
from worker.store.manifest import GoldenSample
from worker.store.model_store import Checkpoint, ModelStore


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return publish_tiny(ModelStore(tmp_path))


def edit_config(checkpoint: Checkpoint, file: str, **changes: object) -> None:
    path = checkpoint.path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(checkpoint: Checkpoint, name: str, value: torch.Tensor | None) -> None:
    path = checkpoint.path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.full((16,), torch.nan), "conv_in.bias is not finite"),
        (torch.zeros(3), "conv_in.bias"),
        (None, "missing keys.*conv_in.bias"),
    ],
)
def test_weights_that_are_not_whole_are_refused(checkpoint: Checkpoint, value: torch.Tensor | None, text: str) -> None:
    edit_weights(checkpoint, "conv_in.bias", value)
    with pytest.raises(BrokenModel, match=text):
        load_float32(checkpoint)


def test_weights_that_the_network_does_not_have_are_refused(checkpoint: Checkpoint) -> None:
    edit_weights(checkpoint, "extra.weight", torch.zeros(1))
    with pytest.raises(BrokenModel, match=r"unexpected keys.*extra.weight"):
        load_float32(checkpoint)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"_class_name": "UNet1DModel"}, "need a _class_name of UNet2DModel, .*, got 'UNet1DModel'"),
        ({"_class_name": "UNet2DConditionModel", "num_class_embeds": None}, "the checkpoint has no text encoder"),
        ({"class_embed_type": "timestep"}, "need class_embed_type None"),
        ({"time_embedding_type": "fourier"}, "need time_embedding_type positional"),
        ({"out_channels": 3}, "need out_channels 1 or 2, got 3"),
    ],
)
def test_networks_that_the_engine_cannot_call_are_refused(
    checkpoint: Checkpoint, changes: dict[str, object], text: str
) -> None:
    edit_config(checkpoint, "unet/config.json", **changes)
    with pytest.raises(UnsupportedModel, match=text):
        load_float32(checkpoint)


def test_the_scheduler_configuration_is_read_as_diffusers_means_it() -> None:
    chain = read_chain_config(
        {
            **CHAIN_CONFIG,
            "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 400,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "steps_offset": 1,
            "clip_sample": False,
            "clip_sample_range": 2.0,
            "rescale_betas_zero_snr": True,
        },
        "here",
    )
    assert (chain.prediction_type, chain.spacing, chain.steps_offset) == (PredictionType.V, Spacing.TRAILING, 1)
    assert (chain.schedule.num_train_timesteps, chain.clip) == (400, Clip(clip_sample=False, clip_sample_range=2.0))
    assert chain.schedule.has_zero_terminal_snr


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize(
    "kind",
    [
        DDPMScheduler,
        DDIMScheduler,
        PNDMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        LCMScheduler,
    ],
    ids=lambda kind: kind.__name__,
)
def test_what_a_configuration_leaves_out_is_diffusers_default(kind: Any) -> None:
    theirs, ours = kind().config, read_chain_config({"_class_name": kind.__name__}, "here")
    # A class that knows no clip_sample does not clip.
    assert ours.clip.clip_sample == theirs.get("clip_sample", False)
    assert ours.spacing == theirs["timestep_spacing"]
    assert ours.steps_offset == theirs["steps_offset"]
    assert ours.prediction_type == theirs["prediction_type"]
    if kind in (DDIMScheduler, PNDMScheduler):
        assert ours.set_alpha_to_one == theirs["set_alpha_to_one"]
    assert ours.final_sigma_zero == (theirs.get("final_sigmas_type", "zero") == "zero")
    assert ours.original_inference_steps == theirs.get("original_inference_steps", 50)
    assert ours.timestep_scaling == theirs.get("timestep_scaling", 10.0)
    betas = kind().betas.double()
    torch.testing.assert_close(ours.schedule.betas, betas, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        ({"_class_name": "DDPMScheduler"}, "ddpm"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, "ddpm_large"),
        ({"_class_name": "DDIMScheduler"}, "ddim"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "plms"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "euler"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_ancestral"),
        ({"_class_name": "LCMScheduler"}, "lcm"),
    ],
)
def test_a_checkpoint_ships_with_the_sampler_of_its_file(config: dict[str, object], sampler: str) -> None:
    chain = read_chain_config(config, "here")
    assert chain.sampler == sampler
    assert chain.karras == ("use_karras_sigmas" in config)


def test_the_pipelines_of_stable_diffusion_override_their_file() -> None:
    """`StableDiffusionPipeline` sets both when it opens a directory; that of SDXL does not."""
    config = {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True, "set_alpha_to_one": False}
    chain = read_chain_config(config, "here", "StableDiffusionPipeline")
    assert (chain.steps_offset, chain.clip.clip_sample, chain.set_alpha_to_one) == (1, False, False)
    chain = read_chain_config(config, "here", "StableDiffusionXLPipeline")
    assert (chain.steps_offset, chain.clip.clip_sample) == (0, True)


def test_a_file_of_dpm_solver_keeps_its_spacing_and_others_lend_it_none() -> None:
    request = ask(steps=9, sampler="dpmpp_2m")
    own = {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "leading"}
    assert read_chain_config(own, "here").plan(request).timesteps == tuple(range(900, 0, -100))
    assert read_chain_config({"_class_name": "DDIMScheduler"}, "here").plan(request).timesteps[0] == 999


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, "got HeunDiscreteScheduler"),
        ({"beta_schedule": "sigmoid"}, "'sigmoid'"),
        ({"prediction_type": "flow"}, "flow"),
        ({"beta_start": 0.5}, "beta_start < beta_end"),
        ({"beta_start": "small"}, "need a number for beta_start"),
        ({"rescale_betas_zero_snr": True}, "zero-terminal-SNR"),
        ({"trained_betas": "some"}, "trained_betas"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_reason(changes: dict[str, object], text: str) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        read_chain_config({**CHAIN_CONFIG, **changes}, "here")


@pytest.mark.parametrize("sampler", [SamplerName.DDIM, SamplerName.DDPM])
def test_the_golden_sample_is_drawn_again_and_compared(tiny_store: ModelStore, sampler: SamplerName) -> None:
    """What the engine draws is what the check draws, and another picture is refused."""
    model = load_float32(tiny_store.checkpoint(TINY))
    (image,) = draw(filled_pool(tiny_store), ask(seed=9, steps=4, class_label=1, sampler=sampler))

    def golden(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> GoldenSample:
        text = base64.b64encode(pixels.tobytes()).decode()
        return GoldenSample(seed=9, steps=4, sampler=sampler, class_label=1, pixels_base64=text, tolerance=0.5)

    check_golden_sample(model, golden(image))
    with pytest.raises(BrokenModel, match="golden sample"):
        check_golden_sample(model, golden(255 - image))
    with pytest.raises(BrokenModel, match="32 pixels"):
        check_golden_sample(model, golden(image[:4]))
    nothing = FaultyDenoiser(model.denoise, lambda x_t, timesteps: torch.full_like(x_t, torch.nan))
    with pytest.raises(BrokenModel, match="off by nan"):
        check_golden_sample(replace(model, denoise=nothing), golden(image))

    checkpoint = tiny_store.checkpoint(TINY)
    for pixels, is_ours in ((image, True), (255 - image, False)):
        published = replace(checkpoint, manifest=checkpoint.manifest.model_copy(update={"golden": golden(pixels)}))
        with nullcontext() if is_ours else pytest.raises(BrokenModel, match="golden sample"):
            load_float32(published)


def test_devices_and_number_formats_are_checked() -> None:
    assert choose_device("cpu") == CPU
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    for wanted in ("tpu", "mps"):
        with pytest.raises(ValueError, match=wanted):
            choose_device(wanted)
    for wanted in ("float8", "float16", "tf32"):
        with pytest.raises(ValueError, match=wanted):
            choose_dtype(wanted, CPU)


def test_requests_for_the_same_chain_share_one_table(tiny_store: ModelStore) -> None:
    """A table is made once, and no more are kept than a model needs."""
    model = load_float32(tiny_store.checkpoint(TINY))
    first = model.plan(ask(seed=1, steps=20))
    assert model.plan(ask(seed=2, steps=20, batch=3)) is first
    others = [ask(steps=21), ask(steps=20, sampler=SamplerName.DDPM), ask(steps=20, eta=1.0)]
    others.append(ask(steps=20, spacing="trailing"))
    assert len({id(model.plan(request)) for request in others} | {id(first)}) == 5
    for steps in range(100, 100 + PLANS_KEPT - 1):
        model.plan(ask(steps=20))
        model.plan(ask(steps=steps))
    assert model.plan(ask(steps=20)) is first
    for steps in range(300, 300 + PLANS_KEPT):
        model.plan(ask(steps=steps))
    assert model.plan(ask(steps=20)) is not first
