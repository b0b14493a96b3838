"""Stable Diffusion directories as they were published over the years: taken whole, or told why not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.worker.stable_diffusion import sd_pipeline
from worker.store import BadCheckpoint, ModelStore, PublishFailed
from worker.store.__main__ import main
from worker.store.pipeline_import import import_pipeline

VAE_PATH = "vae/diffusion_pytorch_model.safetensors"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    sd_pipeline().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_whole(folder: Path) -> None:
    """diffusers opens it, with the weights that were saved."""
    opened, made = StableDiffusionPipeline.from_pretrained(folder), sd_pipeline()
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(made, name).state_dict()
        weights = getattr(opened, name).state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected), name


def test_what_was_saved_is_taken_whole_and_opens_in_diffusers(tmp_path: Path, saved: Path) -> None:
    manifest = (checkpoint := import_pipeline(ModelStore(tmp_path / "store"), saved, "sd")).manifest
    assert (manifest.height, manifest.width, manifest.channels) == (16, 16, 3)
    assert manifest.components["vae"].class_name == "AutoencoderKL"
    assert "safety_checker" in manifest.absent
    assert_whole(checkpoint.path)


@pytest.mark.parametrize("form", [{"variant": "fp16"}, {"max_shard_size": "30KB"}])
def test_variants_and_shards_are_taken(tmp_path: Path, form: dict[str, str]) -> None:
    sd_pipeline().save_pretrained(tmp_path / "saved", **form)
    assert_whole(import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "saved", "sd").path)


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_the_old_names_of_a_vaes_attention_are_taken(tmp_path: Path, saved: Path, as_convolutions: bool) -> None:
    weights, renamed = load_file(saved / VAE_PATH), 0
    for name in list(weights):
        for new, old in OLD_NAMES.items():
            if f".{new}." in name:
                tensor = weights.pop(name)
                if as_convolutions and tensor.dim() == 2:
                    tensor = tensor[:, :, None, None]
                weights[name.replace(f".{new}.", f".{old}.")] = tensor
                renamed += 1
    assert renamed == 16
    save_file(weights, saved / VAE_PATH)
    assert_whole(import_pipeline(ModelStore(tmp_path / "store"), saved, "sd").path)


def test_a_text_encoder_with_the_prefix_of_published_files_is_taken(tmp_path: Path, saved: Path) -> None:
    path = saved / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}
    save_file(weights | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path, {"format": "pt"})
    assert_whole(import_pipeline(ModelStore(tmp_path / "store"), saved, "sd").path)


def test_a_safety_checker_is_left_out_and_that_is_reported(
    tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    extractor = ["transformers", "CLIPFeatureExtractor"]
    edit(saved / "model_index.json", safety_checker=checker, feature_extractor=extractor, requires_safety_checker=True)
    (saved / "safety_checker").mkdir()
    (saved / "safety_checker" / "pytorch_model.bin").write_bytes(b"a pickle")
    assert main(["--store", str(tmp_path / "store"), "import", str(saved), "--name", "sd"], {}) == 0
    assert "not taken, nothing runs it: feature_extractor, safety_checker\n" in capsys.readouterr().out
    checkpoint = ModelStore(tmp_path / "store").checkpoint("sd")
    assert checkpoint.manifest.skipped == ["feature_extractor", "safety_checker"]
    assert_whole(checkpoint.path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda folder: edit(folder / "vae/config.json", latent_channels=8),
            "denoises 4 channels, the VAE's latents .* 8",
        ),
        (lambda folder: edit(folder / "vae/config.json", latents_mean=[0.0] * 4), "need latents_mean None"),
        (lambda folder: edit(folder / "vae/config.json", block_out_channels=4), "need block_out_channels as a list"),
        (lambda folder: edit(folder / "vae/config.json", _class_name="AutoencoderTiny"), "vae: need AutoencoderKL"),
        (lambda folder: (folder / VAE_PATH).unlink(), "safetensors is missing"),
        (
            lambda folder: (folder / VAE_PATH).write_bytes((folder / VAE_PATH).read_bytes()[:-8]),
            "bytes for the tensors",
        ),
    ],
    ids=["latents", "means", "levels", "class", "no weights", "cut"],
)
def test_a_vae_that_cannot_be_served_is_named(
    tmp_path: Path, saved: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(saved)
    with pytest.raises((BadCheckpoint, PublishFailed), match=reason):
        import_pipeline(ModelStore(tmp_path / "store"), saved, "sd")


def test_runge_kutta_steps_are_refused_by_name(tmp_path: Path, saved: Path) -> None:
    """They are diffusers' default where the file does not say."""
    scheduler = saved / "scheduler" / "scheduler_config.json"
    for config in ({"skip_prk_steps": False}, {}):
        kept = {key: value for key, value in json.loads(scheduler.read_text()).items() if key != "skip_prk_steps"}
        scheduler.write_text(json.dumps(kept | config))
        with pytest.raises(BadCheckpoint, match="need skip_prk_steps true of a PNDMScheduler"):
            import_pipeline(ModelStore(tmp_path / "store"), saved, "sd")
    edit(saved / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    path = import_pipeline(ModelStore(tmp_path / "store"), saved, "sd").path
    assert json.loads((path / "scheduler" / "scheduler_config.json").read_text())["skip_prk_steps"] is True
