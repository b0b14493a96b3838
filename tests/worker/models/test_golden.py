"""A loader distinguishes the published weights from others, in every dtype and from either form of the manifest."""

import base64
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import UNet2DModel
from pydantic import ValidationError
from torch import Tensor

from tests.worker.engine.harness import CPU, FaultyDenoiser
from training.__main__ import main
from training.network import Conditions, Denoiser
from training.publishing import golden_output
from training.sampling import draw_images
from worker.contract import SamplerName
from worker.diffusion import NoiseSchedule
from worker.diffusion.golden import KEPT_VALUES, spread_values
from worker.models.errors import BrokenModel
from worker.models.golden import TOLERANCES, check_golden
from worker.models.loading import load_checkpoint
from worker.networks.unet2d import UNet2DDenoiser
from worker.store import Checkpoint, GoldenOutput, GoldenSample, ModelStore
from worker.store.manifest import Manifest

DTYPES = [torch.float32, torch.bfloat16]
QUICK = ["--steps", "3", "--width", "16", "--layers", "2", "--batch", "8"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model after 3 steps of training."""
    root = tmp_path_factory.mktemp("golden") / "store"
    assert main(["--store", str(root), "--state", str(root.parent / "state"), *QUICK]) == 0
    return ModelStore(root).checkpoint("digits")


def with_golden(checkpoint: Checkpoint, golden: GoldenOutput | GoldenSample) -> Checkpoint:
    return replace(checkpoint, manifest=checkpoint.manifest.model_copy(update={"golden": golden}))


def unet_of(checkpoint: Checkpoint) -> UNet2DModel:
    return UNet2DModel.from_pretrained(str(checkpoint.path / "unet"))


def other_weights(checkpoint: Checkpoint) -> UNet2DModel:
    """As published, but for each weight another of the same tensor's."""
    unet = unet_of(checkpoint)
    generator = torch.Generator().manual_seed(0)
    for weight in unet.parameters():
        weight.data = weight.data.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight)
    return unet


def plain_denoiser(checkpoint: Checkpoint) -> UNet2DDenoiser:
    return UNet2DDenoiser(unet_of(checkpoint), torch.float32)


def scaled(factor: float, x_t: Tensor, timesteps: Tensor) -> Tensor:
    return x_t * factor


def golden_sample(unet: UNet2DModel) -> GoldenSample:
    """What manifests had before: an image at the end of a chain of ten steps."""
    pixels = draw_images(
        Denoiser(unet), NoiseSchedule.linear(), (1, 8, 8), [0], Conditions(torch.tensor([0])), steps=10
    )
    text = base64.b64encode(pixels[0].numpy().tobytes()).decode()
    return GoldenSample(seed=0, steps=10, sampler=SamplerName.DDIM, class_label=0, pixels_base64=text, tolerance=12.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_published_after_three_steps_of_training_is_accepted(published: Checkpoint, dtype: torch.dtype) -> None:
    assert isinstance(published.manifest.golden, GoldenOutput)
    load_checkpoint(published, CPU, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_its_image_of_an_older_manifest_is_accepted(published: Checkpoint, dtype: torch.dtype) -> None:
    """In bfloat16 ten steps draw it 17.6 levels off, and the manifest tolerates 12."""
    load_checkpoint(with_golden(published, golden_sample(unet_of(published))), CPU, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["output", "sample"])
def test_other_weights_are_refused(published: Checkpoint, dtype: torch.dtype, form: str) -> None:
    other = other_weights(published)
    schedule = NoiseSchedule.linear()
    golden = golden_output(Denoiser(other), schedule, (1, 8, 8), 10) if form == "output" else golden_sample(other)
    with pytest.raises(BrokenModel, match=f"golden {form}"):
        load_checkpoint(with_golden(published, golden), CPU, dtype)


def test_weights_off_by_a_few_percent_are_refused_in_float32(published: Checkpoint) -> None:
    """As the raw ones are in the place of the averaged."""
    unet = unet_of(published)
    generator = torch.Generator().manual_seed(0)
    for weight in unet.parameters():
        weight.data += 0.02 * weight.data.std(unbiased=False) * torch.randn(weight.shape, generator=generator)
    golden = golden_output(Denoiser(unet), NoiseSchedule.linear(), (1, 8, 8), 10)
    with pytest.raises(BrokenModel, match=r"need the golden output within 0\.005 of its norm in float32"):
        load_checkpoint(with_golden(published, golden), CPU, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_form_that_computes_something_else_is_refused_though_the_weights_are_right(
    published: Checkpoint, dtype: torch.dtype
) -> None:
    for golden in (published.manifest.golden, golden_sample(unet_of(published))):
        assert golden is not None
        model = load_checkpoint(published, CPU, dtype)
        for wrong in (torch.nan, 0.0, 1.5):
            broken = FaultyDenoiser(model.denoise, partial(scaled, wrong))
            with pytest.raises(BrokenModel, match="golden"):
                check_golden(replace(model, denoise=broken), golden, partial(plain_denoiser, published))


def test_what_is_not_of_the_network_is_refused(published: Checkpoint) -> None:
    golden = published.manifest.golden
    assert isinstance(golden, GoldenOutput)
    too_long = base64.b64encode(bytes(4 * 4 * 65)).decode()
    for changes, reason in (
        ({"class_labels": None}, "classes None, the network 11"),
        ({"class_labels": [0, 1, 2, 11]}, "classes .*11.*, the network 11"),
        ({"values_base64": too_long}, "65 values a row, the network's 64"),
    ):
        with pytest.raises(BrokenModel, match=reason):
            load_checkpoint(with_golden(published, golden.model_copy(update=changes)), CPU, torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"values_base64": "no base64"},
        {"values_base64": ""},
        {"values_base64": base64.b64encode(bytes(12)).decode()},
        {"class_labels": [0]},
        {"timesteps": []},
        {"pixels_base64": ""},
    ],
)
def test_a_golden_output_that_disagrees_with_itself_makes_a_bad_manifest(
    published: Checkpoint, changes: dict[str, object]
) -> None:
    manifest = published.manifest.model_dump(mode="json")
    Manifest.model_validate(manifest)
    with pytest.raises(ValidationError):
        Manifest.model_validate({**manifest, "golden": {**manifest["golden"], **changes}})


def test_a_large_images_golden_output_stays_small() -> None:
    output = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).view(2, 3, 64, 64)
    kept = spread_values(output)
    assert kept.shape == (2, KEPT_VALUES)
    assert kept[1, 0] == output[1, 0, 0, 0]
    assert float(kept[0].diff().max()) == 3 * 64 * 64 / KEPT_VALUES
    assert torch.equal(spread_values(output[:, :1, :8, :8]), output[:, :1, :8, :8].flatten(1))


def test_every_dtype_that_can_be_chosen_has_its_tolerance() -> None:
    assert set(TOLERANCES) == {"float32", "tf32", "float16", "bfloat16"}
    assert list(TOLERANCES.values()) == sorted(TOLERANCES.values())
