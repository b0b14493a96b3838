"""A checkpoint of several components: published, imported, verified and told apart by all of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from tests.worker.text_pipeline import publish_text, text_encoder, text_unet, write_text_pipeline, write_tokenizer
from tests.worker.tiny_checkpoint import RECIPE, changed_byte, publish_tiny, write_tiny
from worker.store import BadCheckpoint, Checkpoint, ModelStore, PublishFailed, bundled_store_path
from worker.store.__main__ import main
from worker.store.manifest import MANIFEST_NAME, WEIGHTS_PATH, Manifest
from worker.store.pipeline_import import import_pipeline

ENCODER_PATH = "text_encoder/model.safetensors"
SHARD = "80KB"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_text_pipeline(folder, max_shard_size=SHARD)
    assert len(list((folder / "unet").glob("*-of-*"))) > 2
    assert len(list((folder / "text_encoder").glob("*-of-*"))) > 1
    return folder


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_the_same_weights(checkpoint: Checkpoint) -> None:
    """Both networks open, as their libraries open them, with the weights that were saved."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint.path, subfolder="unet")
    encoder = CLIPTextModel.from_pretrained(checkpoint.path, subfolder="text_encoder")
    for opened, made in ((unet, text_unet()), (encoder, text_encoder())):
        expected = made.state_dict()
        assert opened.state_dict().keys() == expected.keys()
        for name, weight in opened.state_dict().items():
            assert torch.equal(weight, expected[name]), name


def test_a_text_to_image_model_is_published_with_the_hash_of_each_component(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    checkpoint = publish_text(store)
    manifest = checkpoint.manifest
    assert {name: (each.library, each.class_name) for name, each in manifest.components.items()} == {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", "DDPMScheduler"),
    }
    assert manifest.absent == ["feature_extractor", "image_encoder", "safety_checker", "vae"]
    assert (manifest.format_version, manifest.height, manifest.width, manifest.channels) == (2, 16, 16, 3)
    encoder = [path for path in sorted(manifest.files) if path.startswith("text_encoder/")]
    assert encoder == ["text_encoder/config.json", ENCODER_PATH]
    store.verify("text", checkpoint.version)


def test_one_other_component_makes_another_version_and_leaves_the_hashes_of_the_rest(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = publish_text(store)

    def write(folder: Path) -> None:
        write_text_pipeline(folder)
        edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=15)

    second = store.publish("text", write, step=1, recipe=RECIPE)
    assert second.version != first.version
    assert publish_text(store).version == first.version
    one, other = first.manifest.components, second.manifest.components
    assert {name for name in one if one[name] != other[name]} == {"tokenizer"}


def test_diffusers_runs_what_is_published(tmp_path: Path) -> None:
    checkpoint = publish_text(ModelStore(tmp_path))
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint.path, vae=None)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    x_0 = pipeline("a cat", num_inference_steps=2, output_type="latent", generator=generator).images
    assert x_0.shape == (1, 3, 16, 16)


def test_the_versions_of_format_1_keep_their_names_and_hashes(tmp_path: Path) -> None:
    path = ModelStore(bundled_store_path()).checkpoint("digits").path / MANIFEST_NAME
    written = json.loads(path.read_text())
    manifest = Manifest.model_validate(written)
    assert written["format_version"] == 1
    assert (manifest.version, manifest.weights_sha256) == (written["version"], written["weights_sha256"])
    assert {name: each.class_name for name, each in manifest.components.items()} == {"unet": "UNet2DModel"}
    assert publish_tiny(ModelStore(tmp_path)).manifest.weights_sha256 == _sha256_of_weights(tmp_path)


def _sha256_of_weights(root: Path) -> str:
    return ModelStore(root).checkpoint("digits").manifest.files[WEIGHTS_PATH].sha256


def test_the_same_weights_published_again_find_their_version_of_format_1(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    checkpoint = publish_tiny(store)
    written = json.loads((checkpoint.path / MANIFEST_NAME).read_text())
    del written["components"], written["absent"]
    old = json.dumps(written | {"format_version": 1})
    (checkpoint.path / MANIFEST_NAME).write_text(old)
    store.verify("digits", checkpoint.version)
    assert publish_tiny(store).version == checkpoint.version
    assert (checkpoint.path / MANIFEST_NAME).read_text() == old


@pytest.mark.parametrize("pipeline", ["saved", "sharded"])
def test_a_pipeline_is_imported_whole(tmp_path: Path, request: pytest.FixtureRequest, pipeline: str) -> None:
    folder: Path = request.getfixturevalue(pipeline)
    store = ModelStore(tmp_path)
    checkpoint = import_pipeline(store, folder, "text")
    store.verify("text", checkpoint.version)
    assert_the_same_weights(checkpoint)
    published = {path.relative_to(checkpoint.path).as_posix() for path in checkpoint.path.rglob("*") if path.is_file()}
    assert published == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} | {
        MANIFEST_NAME
    }
    assert checkpoint.manifest.absent == ["feature_extractor", "image_encoder", "safety_checker", "vae"]


@pytest.mark.parametrize("max_shard_size", ["1GB", SHARD])
def test_a_variant_is_imported_under_the_plain_names(tmp_path: Path, max_shard_size: str) -> None:
    write_text_pipeline(tmp_path / "saved", variant="fp16", max_shard_size=max_shard_size)
    assert list((tmp_path / "saved" / "unet").glob("*fp16*"))
    store = ModelStore(tmp_path / "store")
    checkpoint = import_pipeline(store, tmp_path / "saved", "text")
    assert_the_same_weights(checkpoint)
    assert not list(checkpoint.path.rglob("*fp16*"))
    assert import_pipeline(store, tmp_path / "saved", "text", variant="fp16").version == checkpoint.version
    with pytest.raises(BadCheckpoint, match="no weights of the variant 'ema'; variants there: 'fp16'"):
        import_pipeline(store, tmp_path / "saved", "text", variant="ema")


def test_of_several_variants_the_plain_one_is_taken_unless_another_is_named(tmp_path: Path, saved: Path) -> None:
    folder = copied(saved, tmp_path / "both")
    for name in (WEIGHTS_PATH, ENCODER_PATH):
        path = folder / name
        halves = {key: tensor.half() for key, tensor in load_file(path).items()}
        save_file(halves, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    store = ModelStore(tmp_path / "store")
    assert_the_same_weights(import_pipeline(store, folder, "text"))
    half = import_pipeline(store, folder, "text", variant="fp16")
    assert load_file(half.path / WEIGHTS_PATH)["conv_in.weight"].dtype == torch.float16
    (folder / WEIGHTS_PATH).rename(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(BadCheckpoint, match=r"which variant of the weights is meant\? fp16, non_ema"):
        import_pipeline(store, folder, "text")


INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


def _map(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: next((folder / "unet").glob("*-00002-of-*")).unlink(), "No such file"),
        (lambda folder: _map(folder, lambda names: names.update({"conv_in.bias": "../../secret"})), "can't be one of"),
        (lambda folder: _map(folder, lambda names: names.pop("conv_in.bias")), r"has conv_in\.bias in None"),
        (lambda folder: _map(folder, lambda names: names.update(other=names["conv_in.bias"])), "has other in"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": 1}}'), "need a weight_map"),
        (lambda folder: shutil.copy(next((folder / "unet").glob("*-00001-of-*")), folder / WEIGHTS_PATH), "which weig"),
    ],
    ids=["file missing", "path outside", "not listed", "not there", "no map", "both forms"],
)
def test_sharded_weights_that_are_not_whole_are_refused(
    tmp_path: Path, sharded: Path, damage: Callable[[Path], object], reason: str
) -> None:
    folder = copied(sharded, tmp_path / "copy")
    damage(folder)
    store = ModelStore(tmp_path / "store")
    with pytest.raises((BadCheckpoint, PublishFailed), match=reason):
        import_pipeline(store, folder, "text")

    def write(to: Path) -> None:
        shutil.copytree(folder, to, dirs_exist_ok=True)

    with pytest.raises(PublishFailed, match=reason):
        store.publish("text", write, step=1, recipe=RECIPE)
    assert not (tmp_path / "store" / "text" / "current").exists()


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, r"vae lacks config\.json"),
        ("model_index.json", {"vae": ["diffusers", "VQModel"]}, "vae: need AutoencoderKL, got 'VQModel'"),
        ("model_index.json", {"vocoder": ["x", "Y"]}, r"can't take vocoder \(Y\)"),
        (
            "unet/config.json",
            {"in_channels": 5, "out_channels": 5},
            "need in_channels 1 or 3 or 4 or 9, got 5",
        ),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "need CLIPTextModel, got 'T5Enc"),
        ("model_index.json", {"text_encoder": [None, None]}, "UNet2DConditionModel lacks text_encoder"),
        ("model_index.json", {"unet": [None, None]}, "need one component unet or transformer, got neither"),
        ("model_index.json", {"unet": ["diffusers"]}, r"need \[library, class\] for unet"),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, "can't take text_encoder, tokenizer: not sup"),
        ("unet/config.json", {"cross_attention_dim": 48}, "reads text of width 48, the text encoder writes 32"),
        ("unet/config.json", {"cross_attention_dim": [32, 32]}, "need one number for cross_attention_dim"),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "and addition_time_embed_dim as whole numbers with text_time",
        ),
        ("unet/config.json", {"encoder_hid_dim": 32}, "need encoder_hid_dim None, got 32"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 77}, "model_max_length of 3 to 16 tokens"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 1e30}, "model_max_length of 3 to 16 tokens"),
        ("text_encoder/config.json", {"vocab_size": 517}, "has an id 517, the text encoder knows ids below 517"),
        ("tokenizer/vocab.json", {"x": "y"}, "must give an id for each of its tokens"),
    ],
)
def test_components_that_are_unknown_or_do_not_fit_are_named(
    tmp_path: Path, saved: Path, file: str, changes: dict[str, object], reason: str
) -> None:
    folder = copied(saved, tmp_path / "copy")
    edit(folder / file, **changes)
    with pytest.raises((BadCheckpoint, PublishFailed), match=reason):
        import_pipeline(ModelStore(tmp_path / "store"), folder, "text")
    assert not (tmp_path / "store" / "text" / "current").exists()


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("tokenizer/merges.txt", r"needs tokenizer\.json or vocab\.json and merges\.txt"),
        ("tokenizer/tokenizer_config.json", r"tokenizer/tokenizer_config\.json is missing"),
        ("text_encoder/config.json", r"text_encoder/config\.json is missing"),
        (ENCODER_PATH, r"text_encoder/model\.safetensors is missing"),
        ("model_index.json", r"model_index\.json missing"),
    ],
)
def test_a_component_that_lacks_a_file_is_not_published(tmp_path: Path, missing: str, reason: str) -> None:
    def write(folder: Path) -> None:
        write_text_pipeline(folder)
        (folder / missing).unlink()

    with pytest.raises(PublishFailed, match=reason):
        ModelStore(tmp_path).publish("text", write, step=1, recipe=RECIPE)


def test_a_folder_of_no_component_is_not_published(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_tiny(folder)
        write_tokenizer(folder / "tokenizer")

    with pytest.raises(PublishFailed, match=r"tokenizer/merges\.txt belongs to no component"):
        ModelStore(tmp_path).publish("m", write, step=1, recipe=RECIPE)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelStore, Checkpoint]:
    store = ModelStore(tmp_path_factory.mktemp("published"))
    return store, publish_text(store)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_of_any_component_is_seen(
    published: tuple[ModelStore, Checkpoint], data: st.DataObject, position: float, flip: int
) -> None:
    store, checkpoint = published
    file = checkpoint.path / data.draw(st.sampled_from(sorted(checkpoint.manifest.files)))
    with changed_byte(file, position, flip), pytest.raises(BadCheckpoint):
        store.verify("text", checkpoint.version)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda manifest: manifest["components"].pop("tokenizer"), "belongs to no component"),
        (lambda manifest: manifest["components"]["unet"].update(sha256="0" * 64), "sha256 of component unet"),
        (lambda manifest: manifest["components"].update(vae=manifest["components"]["unet"]), "vae has no files"),
        (lambda manifest: manifest.update(components={}), "components is empty"),
        (lambda manifest: manifest.update(weights_sha256="0" * 64), "weights_sha256 is not the hash"),
        (lambda manifest: manifest.update(format_version=1), "format 1"),
        (lambda manifest: manifest.update(format_version=3), "format_version"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict[str, dict[str, object]]], object], reason: str
) -> None:
    store = ModelStore(tmp_path)
    checkpoint = publish_text(store)
    manifest = json.loads((checkpoint.path / MANIFEST_NAME).read_text())
    change(manifest)
    (checkpoint.path / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BadCheckpoint, match=reason):
        store.checkpoint("text")


def test_the_command_tells_what_the_pipeline_lacks(
    tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--store", str(tmp_path), "import", str(saved), "--name", "text"], {}) == 0
    assert "not in the pipeline: feature_extractor, image_encoder, safety_checker, vae" in capsys.readouterr().out


def test_verify_without_a_model_checks_all_and_tells_each_that_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ModelStore(tmp_path)
    versions = [publish_tiny(store, "a", step=1), publish_tiny(store, "a", step=2), publish_text(store, "b")]
    assert main(["--store", str(tmp_path), "verify"], {}) == 0
    assert capsys.readouterr().out.splitlines() == [f"{each.model}/{each.version} is whole" for each in versions]
    (versions[0].path / WEIGHTS_PATH).write_bytes(b"")
    (versions[2].path / ENCODER_PATH).unlink()
    assert main(["--store", str(tmp_path), "verify"], {}) == 1
    answer = capsys.readouterr()
    assert answer.out == f"a/{versions[1].version} is whole\n"
    assert f"a/{versions[0].version}: {WEIGHTS_PATH} has 0 bytes" in answer.err
    assert f"b/{versions[2].version}: {ENCODER_PATH} is missing" in answer.err
    assert answer.err.endswith("error: 2 versions are bad\n")
