"""What diffusers saves can be imported and predicts the same eps; what can't be served is refused with the reason."""

import json
import shutil
from collections.abc import Callable
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

from tests.worker.tiny_checkpoint import publish_tiny
from worker.contract import SamplerName
from worker.store import BadCheckpoint, Checkpoint, ModelStore, StoreError
from worker.store.__main__ import main
from worker.store.manifest import WEIGHTS_PATH, RequestDefaults
from worker.store.pipeline_import import import_pipeline

PLAIN: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SKIP: dict[str, Any] = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
RESNET: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
}


def _unet(**overrides: Any) -> UNet2DModel:
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (32, 32),
        "norm_num_groups": 8,
        "attention_head_dim": None,
    }
    return UNet2DModel(**(config | PLAIN | overrides)).eval()


@torch.no_grad()
def _eps(unet: UNet2DModel) -> torch.Tensor:
    x_t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = None if unet.config.num_class_embeds is None else torch.tensor([0, 1])
    eps: torch.Tensor = unet(x_t, torch.tensor([3, 700]), class_labels=labels).sample
    return eps


def _reopened(checkpoint: Checkpoint) -> UNet2DModel:
    return DDPMPipeline.from_pretrained(checkpoint.path, use_safetensors=True).unet.eval()


@pytest.mark.parametrize("blocks", [PLAIN, SKIP, RESNET], ids=["plain", "skip", "resnet"])
@pytest.mark.parametrize(
    "pipeline",
    [
        lambda unet: DDPMPipeline(
            unet,
            DDPMScheduler(variance_type="fixed_large", beta_schedule="squaredcos_cap_v2", clip_sample_range=1.7),
        ),
        lambda unet: DDIMPipeline(unet, DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")),
        lambda unet: DDPMPipeline(unet, DPMSolverMultistepScheduler(beta_schedule="scaled_linear")),
    ],
    ids=["ddpm", "ddim", "dpm-solver"],
)
def test_a_saved_pipeline_is_imported_and_predicts_the_same_eps(
    tmp_path: Path, blocks: dict[str, Any], pipeline: Callable[[UNet2DModel], Any]
) -> None:
    unet = _unet(**blocks)
    saved = pipeline(unet)
    saved.save_pretrained(tmp_path / "saved")
    store = ModelStore(tmp_path / "store")
    checkpoint = import_pipeline(store, tmp_path / "saved", "imported")
    store.verify("imported", checkpoint.version)
    assert (checkpoint.manifest.height, checkpoint.manifest.channels) == (16, 3)
    torch.testing.assert_close(_eps(_reopened(checkpoint)), _eps(unet), rtol=1e-5, atol=1e-6)
    for config in ("scheduler/scheduler_config.json", "unet/config.json"):
        assert json.loads((checkpoint.path / config).read_text()) == json.loads(
            (tmp_path / "saved" / config).read_text()
        )


def test_files_at_the_root_and_links_are_imported(tmp_path: Path) -> None:
    """The layout of the first public DDPM checkpoints, as a download cache of links shows it."""
    unet = _unet()
    unet.save_pretrained(tmp_path / "blobs")
    DDPMScheduler().save_pretrained(tmp_path / "blobs")
    (tmp_path / "flat").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "flat" / file.name).symlink_to(file)
    checkpoint = import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "flat", "flat")
    torch.testing.assert_close(_eps(_reopened(checkpoint)), _eps(unet), rtol=1e-5, atol=1e-6)


def test_old_attention_names_get_todays(tmp_path: Path) -> None:
    unet = _unet()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "old")
    weights = load_file(tmp_path / "old" / WEIGHTS_PATH)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in weights.items():
        for new_part, old_part in old.items():
            if f"attentions.0.{new_part}." in name:
                name = name.replace(new_part, old_part)
                tensor = tensor[:, :, None, None] if tensor.dim() == 2 and old_part == "query" else tensor
        renamed[name] = tensor.contiguous()
    assert any(".proj_attn.bias" in name for name in renamed)
    save_file(renamed, tmp_path / "old" / WEIGHTS_PATH, metadata={"format": "pt"})
    checkpoint = import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "old", "old")
    imported = load_file(checkpoint.path / WEIGHTS_PATH)
    assert set(imported) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(imported[name], tensor), name
    assert torch.equal(_eps(_reopened(checkpoint)), _eps(unet))


def test_labels_are_the_rows_of_the_embedding_without_the_null_label(tmp_path: Path) -> None:
    DDPMPipeline(_unet(num_class_embeds=4), DDPMScheduler()).save_pretrained(tmp_path / "saved")
    store = ModelStore(tmp_path / "store")
    assert import_pipeline(store, tmp_path / "saved", "a").manifest.labels == ["0", "1", "2", "3"]
    with_null = import_pipeline(store, tmp_path / "saved", "b", null_label=3).manifest
    assert (with_null.labels, with_null.null_label) == (["0", "1", "2"], 3)
    assert import_pipeline(store, tmp_path / "saved", "c", labels=["x", "y"]).manifest.labels == ["x", "y"]
    with pytest.raises(BadCheckpoint, match="null label below 4"):
        import_pipeline(store, tmp_path / "saved", "d", null_label=4)
    with pytest.raises(BadCheckpoint, match="5 labels"):
        import_pipeline(store, tmp_path / "saved", "d", labels=list("abcde"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    DDPMPipeline(_unet(), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "lacks text_encoder, tokenizer"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "need time_embedding_type positional"),
        ("unet/config.json", {"out_channels": 4}, "need out_channels 3 or 6, got 4"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "need class_embed_type None"),
        ("scheduler/scheduler_config.json", {"_class_name": "HeunDiscreteScheduler"}, "got 'HeunDiscreteScheduler'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "got 'flow'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "got 'sigmoid'"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "got 'learned'"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "needs a network of 6 out_channels"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    tmp_path: Path, saved: Path, file: str, change: dict[str, object], reason: str
) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / file).read_text())
    (tmp_path / "copy" / file).write_text(json.dumps(config | change))
    with pytest.raises(BadCheckpoint, match=reason):
        import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "copy", "m")
    assert not (tmp_path / "store").exists()


def test_pickles_pieces_and_nothing_are_refused(tmp_path: Path, saved: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    store = ModelStore(tmp_path / "store")
    (copy / WEIGHTS_PATH).rename(copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"diffusion_pytorch_model\.bin is a pickle"):
        import_pipeline(store, copy, "m")
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="need a weight_map"):
        import_pipeline(store, copy, "m")
    (copy / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"scheduler lacks scheduler_config\.json"):
        import_pipeline(store, copy, "m")
    (copy / "model_index.json").unlink()
    shutil.rmtree(copy / "scheduler")
    with pytest.raises(BadCheckpoint, match="noise schedule"):
        import_pipeline(store, copy, "m")
    with pytest.raises(StoreError, match="nowhere"):
        import_pipeline(store, tmp_path / "nowhere", "m")


def test_the_command_imports_lists_promotes_and_verifies(
    tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "store")
    first = publish_tiny(ModelStore(Path(root)), "m")
    assert main(["--store", root, "import", str(saved), "--name", "m", "--step", "9"]) == 0
    imported = ModelStore(Path(root)).current("m")
    assert imported.startswith("000000009-")
    assert main(["--store", root, "promote", "m", first.version]) == 0
    assert main(["--store", root, "verify", "m"]) == 0
    capsys.readouterr()
    assert main(["--store", root, "list"]) == 0
    assert capsys.readouterr().out == f"* m {first.version}\n  m {imported}\n"
    assert main(["--store", root, "prune", "m", "--keep", "0"]) == 0
    assert ModelStore(Path(root)).versions("m") == [first.version]
    assert main(["--store", root, "verify", "cats"]) == 1
    assert "error: no model cats" in capsys.readouterr().err


def test_an_import_says_what_requests_get_that_name_nothing(
    tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ModelStore(tmp_path / "store")
    command = ["--store", str(store.root), "import", str(saved), "--name", "m"]
    steps, prompts = ["--request-steps", "30"], ["--example-prompts", "a red, ripe apple | a cat|"]
    assert main([*command, *steps, "--request-sampler", "ddim", "--request-guidance-scale", "7.5", *prompts]) == 0
    manifest = store.checkpoint("m").manifest
    assert manifest.request_defaults == RequestDefaults(sampler=SamplerName.DDIM, steps=30, guidance_scale=7.5)
    assert manifest.example_prompts == ["a red, ripe apple", "a cat"]
    assert main(command) == 0, "as it is there"
    other = publish_tiny(store, "m", step=5)
    for wrong, told in (
        (["--request-steps", "20"], "was there already, and a version keeps its defaults"),
        (["--request-steps", "0"], "--request-steps: Input should be greater than or equal to 1, got '0'"),
        (["--request-sampler", "eulre"], "got 'eulre'"),
        (["--request-guidance-scale", "much"], "got 'much'"),
        (["--example-prompts", "a|" * 33], "need at most 32"),
    ):
        assert main([*command, *wrong]) == 1
        assert told in capsys.readouterr().err
    assert store.current("m") == other.version, "what is refused changes nothing"
    assert store.checkpoint("m", manifest.version).manifest == manifest


def test_the_store_is_named_by_option_or_environment_and_the_bundled_one_is_only_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ModelStore(tmp_path / "store")
    first, second = publish_tiny(store, "m", step=1), publish_tiny(store, "m", step=2)
    assert main(["promote", "m", first.version], {"REVERIE_STORE": str(store.root)}) == 0
    assert store.current("m") == first.version
    assert main(["promote", "--store", str(store.root), "m", second.version], {}) == 0
    assert store.current("m") == second.version
    assert main(["verify", "digits"], {}) == 0
    for command in (["promote", "digits", first.version], ["import", str(tmp_path), "--name", "m"]):
        capsys.readouterr()
        assert main(command, {"REVERIE_STORE": ""}) == 1
        assert "the bundled models are read-only" in capsys.readouterr().err
