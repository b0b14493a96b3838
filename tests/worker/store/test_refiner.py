"""Stable Diffusion XL imported together with its refiner: what is taken of it, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from tests.worker.stable_diffusion import refiner_pipeline, sd_pipeline, sdxl_pipeline
from worker.store import BadCheckpoint, ModelStore, PublishFailed
from worker.store.__main__ import main
from worker.store.pipeline_import import import_pipeline
from worker.store.pipeline_index import REFINER_ZEROS_FLAG, ZEROS_FLAG

XL = "xl"


def saved(folder: Path, text_seed: int = 0) -> tuple[Path, Path]:
    """A model and its refiner."""
    sdxl_pipeline().save_pretrained(folder / "base")
    refiner_pipeline(text_seed=text_seed).save_pretrained(folder / "refiner")
    return folder / "base", folder / "refiner"


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_is_taken_with_its_refiner_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, refiner = saved(tmp_path)
    # What differs in a file and not in what it says.
    edit(refiner / "text_encoder_2" / "config.json", _name_or_path="elsewhere", transformers_version="4.0")
    options = ["--store", str(tmp_path / "store"), "import", str(base), "--refiner", str(refiner), "--name", XL]
    assert main(options, {}) == 0
    assert "xl/" in capsys.readouterr().out
    store = ModelStore(tmp_path / "store")
    checkpoint = store.checkpoint(XL)
    store.verify(XL, checkpoint.version)
    manifest = checkpoint.manifest
    assert manifest.components["refiner_unet"].class_name == "UNet2DConditionModel"
    assert not {"refiner_text_encoder_2", "refiner_tokenizer_2"} & manifest.components.keys(), "it is the model's own"
    assert manifest.recipe.command == "import base --refiner refiner"
    opened = StableDiffusionXLPipeline.from_pretrained(checkpoint.path, add_watermarker=False)
    assert opened.config.force_zeros_for_empty_prompt
    index = json.loads((checkpoint.path / "model_index.json").read_text())
    assert (index[ZEROS_FLAG], index[REFINER_ZEROS_FLAG]) == (True, False)
    network = UNet2DConditionModel.from_pretrained(checkpoint.path, subfolder="refiner_unet")
    expected = refiner_pipeline().unet.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in network.state_dict().items())

    again = import_pipeline(ModelStore(tmp_path / "another"), checkpoint.path, XL)
    assert again.version == checkpoint.version, "what was published is taken as it is"
    without = import_pipeline(ModelStore(tmp_path / "without"), base, XL)
    assert without.version != checkpoint.version


def test_a_refiner_with_another_text_encoder_brings_its_own(tmp_path: Path) -> None:
    base, refiner = saved(tmp_path, text_seed=3)
    manifest = import_pipeline(ModelStore(tmp_path / "store"), base, XL, refiner=refiner).manifest
    assert {"refiner_text_encoder_2", "refiner_tokenizer_2"} <= manifest.components.keys()
    encoders = [manifest.components[name].sha256 for name in ("text_encoder_2", "refiner_text_encoder_2")]
    assert encoders[0] != encoders[1]


def test_a_damaged_refiner_is_found(tmp_path: Path) -> None:
    base, refiner = saved(tmp_path)
    store = ModelStore(tmp_path / "store")
    checkpoint = import_pipeline(store, base, XL, refiner=refiner)
    weights = checkpoint.path / "refiner_unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=r"refiner_unet/.*\.safetensors has SHA-256"):
        store.verify(XL, checkpoint.version)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: edit(folder / "model_index.json", unet=[None, None]), "a refiner lacks unet"),
        (
            lambda folder: edit(folder / "model_index.json", text_encoder_2=[None, None]),
            "a refiner lacks text_encoder_2",
        ),
        (
            lambda folder: edit(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModel"]),
            "can't take text_encoder of a refiner",
        ),
        (
            lambda folder: edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"),
            "scheduler: need prediction_type 'epsilon' as the model, got 'v_prediction'",
        ),
        (
            lambda folder: edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.02),
            "need beta_end 0.012 as the model, got 0.02",
        ),
        (
            lambda folder: edit(folder / "unet" / "config.json", cross_attention_dim=64),
            "the refiner reads text of width 64, its text encoder writes 32",
        ),
        (
            lambda folder: edit(folder / "unet" / "config.json", projection_class_embeddings_input_dim=64),
            "the refiner: need projection_class_embeddings_input_dim 80 or 72, got 64",
        ),
        (lambda folder: edit(folder / "unet" / "config.json", in_channels=3, out_channels=3), "the refiner denoises 3"),
        (
            lambda folder: edit(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=100),
            "need a tokenizer_2 with a model_max_length of 3 to 77",
        ),
        (
            lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
            "diffusion_pytorch_model.safetensors is missing",
        ),
    ],
    ids=[
        "unet",
        "encoder",
        "two encoders",
        "prediction",
        "betas",
        "width",
        "time ids",
        "channels",
        "tokens",
        "weights",
    ],
)
def test_a_refiner_that_does_not_fit_is_named(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    base, refiner = saved(tmp_path)
    damage(refiner)
    store = ModelStore(tmp_path / "store")
    with pytest.raises(BadCheckpoint, match=reason):
        import_pipeline(store, base, XL, refiner=refiner)
    assert not store.root.exists()


def test_a_refiner_goes_with_stable_diffusion_xl_alone(tmp_path: Path) -> None:
    _, refiner = saved(tmp_path)
    sd_pipeline().save_pretrained(tmp_path / "sd")
    with pytest.raises(BadCheckpoint, match="goes with a Stable Diffusion XL model, which lacks text_encoder_2"):
        import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "sd", "sd", refiner=refiner)


def test_a_published_directory_with_half_a_refiner_is_refused(tmp_path: Path) -> None:
    base, refiner = saved(tmp_path, text_seed=3)
    folder = import_pipeline(ModelStore(tmp_path / "store"), base, XL, refiner=refiner).path
    for absent, reason in (
        ("refiner_unet", "refiner_text_encoder_2 and refiner_tokenizer_2 without a refiner_unet"),
        ("refiner_tokenizer_2", "refiner_text_encoder_2 and refiner_tokenizer_2 need each other"),
    ):
        index = folder / "model_index.json"
        before = index.read_text()
        edit(index, **{absent: [None, None]})
        with pytest.raises((BadCheckpoint, PublishFailed), match=reason):
            import_pipeline(ModelStore(tmp_path / "another"), folder, XL)
        index.write_text(before)
