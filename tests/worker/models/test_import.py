"""What diffusers saved is served: the worker's U-Net says what diffusers' own says, and the engine draws with it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file

from tests.worker.engine.harness import ask, draw, filled_pool, load_float32, plain, same_pixels
from tests.worker.store.test_import import PLAIN, RESNET, SKIP, _unet
from worker.contract import SamplerName, Spacing
from worker.diffusion.prediction import PredictionType
from worker.networks.network_input import NetworkInput
from worker.store import Checkpoint, ModelStore
from worker.store.manifest import WEIGHTS_PATH
from worker.store.pipeline_import import import_pipeline

NAME = "imported"


@torch.no_grad()
def assert_the_same_eps(unet: UNet2DModel, checkpoint: Checkpoint) -> None:
    x_t = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0, 3, 700, 999])
    expected: torch.Tensor = unet(x_t, timesteps).sample
    served = load_float32(checkpoint).denoise(NetworkInput(x_t, timesteps))
    assert float((served - expected).norm() / expected.norm()) < 1e-5


def imported(tmp_path: Path, pipeline: Any) -> tuple[ModelStore, Checkpoint]:
    pipeline.save_pretrained(tmp_path / "saved")
    store = ModelStore(tmp_path / "store")
    return store, import_pipeline(store, tmp_path / "saved", NAME)


@pytest.mark.parametrize("blocks", [PLAIN, SKIP, RESNET], ids=["plain", "skip", "resnet"])
def test_the_served_network_predicts_what_diffusers_does(tmp_path: Path, blocks: dict[str, Any]) -> None:
    unet = _unet(**blocks)
    store, checkpoint = imported(tmp_path, DDPMPipeline(unet, DDPMScheduler()))
    assert_the_same_eps(unet, checkpoint)
    (info,) = filled_pool(store).describe()
    assert (info.name, info.version, info.reload_error) == (NAME, checkpoint.version, None)


def test_a_dpm_solver_configuration_is_served_with_its_schedule_prediction_and_spacing(tmp_path: Path) -> None:
    unet = _unet()
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=500,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        thresholding=True,
        dynamic_thresholding_ratio=0.9,
        sample_max_value=1.5,
    )
    store, checkpoint = imported(tmp_path, DDPMPipeline(unet, scheduler))
    chain = load_float32(checkpoint).chain
    torch.testing.assert_close(chain.schedule.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=1e-5, atol=0)
    assert (chain.prediction_type, chain.spacing) == (PredictionType.V, Spacing.TRAILING)
    assert (chain.clip.thresholding, chain.clip.dynamic_thresholding_ratio, chain.clip.sample_max_value) == (
        True,
        0.9,
        1.5,
    )
    request = plain(ask(steps=3), model=NAME, sampler=SamplerName.DPMPP_2M)
    assert draw(filled_pool(store), request)[0].shape == (16, 16, 3)


def test_a_ddim_configuration_of_zero_terminal_snr_is_served(tmp_path: Path) -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    store, checkpoint = imported(tmp_path, DDIMPipeline(_unet(), scheduler))
    assert load_float32(checkpoint).chain.schedule.has_zero_terminal_snr
    assert draw(filled_pool(store), plain(ask(steps=2), model=NAME))[0].shape == (16, 16, 3)


def test_the_range_that_x_0_is_clipped_to_is_served(tmp_path: Path) -> None:
    unet = _unet()
    _, checkpoint = imported(tmp_path, DDPMPipeline(unet, DDPMScheduler(clip_sample_range=2.5)))
    clip = load_float32(checkpoint).chain.clip
    assert (clip.clip_sample, clip.clip_sample_range) == (True, 2.5)


def test_old_attention_names_draw_the_same_pixels(tmp_path: Path) -> None:
    store, _ = imported(tmp_path, DDPMPipeline(_unet(), DDPMScheduler()))
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "saved", old)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(old / WEIGHTS_PATH).items():
        for today, before in names.items():
            name = name.replace(f".{today}.", f".{before}.") if ".attentions." in name else name
        weights[name] = tensor
    assert not any(".to_q." in name for name in weights)
    save_file(weights, old / WEIGHTS_PATH, metadata={"format": "pt"})
    import_pipeline(store, old, "old")
    pool, request = filled_pool(store), ask(steps=2)
    assert same_pixels(draw(pool, plain(request, model="old")), draw(pool, plain(request, model=NAME)))
