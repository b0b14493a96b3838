"""Checkpoints in one file, in the original layout: converted offline with a directory's configurations."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from tests.worker.original_layout import write_original
from tests.worker.stable_diffusion import sd_pipeline, wider_unet
from worker.store import ModelStore
from worker.store.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, and a directory with the configurations alone."""
    folder = tmp_path_factory.mktemp("single")
    pipeline = sd_pipeline(unet=wider_unet())
    pipeline.save_pretrained(folder / "config")
    for weights in (folder / "config").rglob("*.safetensors"):
        weights.unlink()
    write_original(pipeline, folder / "model.safetensors")
    return folder


def imported(folder: Path, store: Path, file: str = "model.safetensors", *more: str) -> int:
    return main(["--store", str(store), "import", str(folder / file), "--name", "sd", *more], {})


@pytest.mark.slow
def test_a_file_in_the_original_layout_is_imported_with_all_its_weights(tmp_path: Path, folder: Path) -> None:
    assert imported(folder, tmp_path, "model.safetensors", "--config", str(folder / "config")) == 0
    checkpoint = ModelStore(tmp_path).checkpoint("sd")
    assert checkpoint.manifest.recipe.command == "import model.safetensors"
    opened, made = StableDiffusionPipeline.from_pretrained(checkpoint.path), sd_pipeline(unet=wider_unet())
    for name in ("unet", "vae", "text_encoder"):
        weights, expected = getattr(opened, name).state_dict(), getattr(made, name).state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected), name


def test_what_a_file_needs_is_said(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(folder, tmp_path) == 1
    assert "say with --config where its configurations are" in capsys.readouterr().err
    (tmp_path / "model.ckpt").write_bytes(b"a pickle")
    assert imported(tmp_path, tmp_path, "model.ckpt") == 1
    assert "need a .safetensors file or a directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_or_a_configuration_of_another_kind_is_refused(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert imported(tmp_path, tmp_path / "store", "other.safetensors", "--config", str(folder / "config")) == 1
    assert "error: other.safetensors: " in capsys.readouterr().err
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    assert imported(folder, tmp_path / "store", "model.safetensors", "--config", str(tmp_path)) == 1
    assert "need the configuration of a StableDiffusionPipeline or" in capsys.readouterr().err
    assert not (tmp_path / "store" / "sd").exists()
