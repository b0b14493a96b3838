"""LoRA files on their way into the store: taken in every layout, or told why not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.loras import Pairs, random_pairs, write_kohya, write_peft
from tests.worker.stable_diffusion import SD, import_sd, sd_pipeline
from tests.worker.tiny_models import TINY, publish_tiny
from worker.store import ModelStore
from worker.store.__main__ import main
from worker.store.errors import BadLora, LoraNotFound, StoreError
from worker.store.lora_file import LoraTarget, read_pairs, read_target
from worker.store.lora_import import import_lora
from worker.store.lora_names import read_name, resolved
from worker.store.lora_store import LoraStore

BOTH = ("unet", "text_encoder")
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("loras"))
    import_sd(store)
    publish_tiny(store)
    return store


@pytest.fixture(scope="module")
def target(store: ModelStore) -> LoraTarget:
    checkpoint = store.checkpoint(SD)
    classes = {name: each.class_name for name, each in checkpoint.manifest.components.items()}
    return read_target(checkpoint.path, classes, SD)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return random_pairs(sd_pipeline(), components=BOTH)


def write_old(pairs: Pairs, file: Path) -> Path:
    """As diffusers named them before peft."""
    kinds = {"unet": "lora", "text_encoder": "lora_linear_layer"}
    tensors: Tensors = {}
    for (component, module), (down, up) in pairs.items():
        name = f"{component}.{module}.{kinds[component]}"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("write", [write_peft, write_kohya, write_old])
def test_each_layout_names_the_same_weights(
    tmp_path: Path, target: LoraTarget, pairs: Pairs, write: Callable[[Pairs, Path], Path]
) -> None:
    found = read_pairs(write(pairs, tmp_path / "a.safetensors"), target, "a", SD)
    expected = {(component, module.removeprefix("text_model.")) for component, module in pairs}
    assert {(pair.component, pair.module) for pair in found} == expected
    assert {pair.rank for pair in found} == {2}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("input_blocks_8_1_proj_in", "down_blocks.2.attentions.1.proj_in"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("middle_block_1_proj_out", "mid_block.attentions.0.proj_out"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("output_blocks_5_1_proj_in", "up_blocks.1.attentions.2.proj_in"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_8_0_skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("label_emb_0_0", "add_embedding.linear_1"),
    ],
)
def test_the_original_names_of_stable_diffusion_xl_are_known(name: str, module: str) -> None:
    read = read_name(f"lora_unet_{name}.lora_down.weight")
    assert read is not None
    assert resolved(read, {module.replace(".", "_"): module}, layers_per_block=2) == module


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without_ups(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "lora_A" in name}


def widened(tensors: Tensors) -> Tensors:
    return {name: torch.cat([t, t], 1) if "lora_A" in name else t for name, t in tensors.items()}


def as_integers(tensors: Tensors) -> Tensors:
    return {name: tensor.to(torch.int32) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed("lora_A", "hada_w1_a"), "can't take text_encoder.*hada_w1_a.* more: LoHa, which is no LoRA"),
        (renamed("unet.", "prior."), "can't take prior.*: neither diffusers' layout nor kohya's"),
        (renamed("attn1", "attn9"), "has no unet.down_blocks.*attn9"),
        (without_ups, "lacks its up matrix"),
        (widened, r"need down \[rank, \d+\] and up \[\d+, rank\] for a weight of"),
        (as_integers, "need tensors of F16, BF16, F32, F64, got I32"),
        (lambda tensors: {}, "holds no tensors"),
    ],
)
def test_what_cannot_be_taken_is_named(
    store: ModelStore, tmp_path: Path, pairs: Pairs, change: Callable[[Tensors], Tensors], reason: str
) -> None:
    file = write_peft(pairs, tmp_path / "a.safetensors")
    save_file(change(load_file(file)), file)
    with pytest.raises(BadLora, match=reason):
        import_lora(store, file, "bad", SD)
    assert "bad" not in LoraStore(store.root).names()


@pytest.mark.parametrize("setting", ["use_dora", "use_rslora"])
def test_settings_that_change_the_formula_are_refused(
    store: ModelStore, tmp_path: Path, pairs: Pairs, setting: str
) -> None:
    file = write_peft(pairs, tmp_path / "a.safetensors")
    save_file(load_file(file), file, {"lora_adapter_metadata": f'{{"unet.{setting}": true}}'})
    with pytest.raises(BadLora, match=f"can't take a LoRA with {setting}"):
        import_lora(store, file, "bad", SD)


def test_alpha_of_the_metadata_is_read(store: ModelStore, target: LoraTarget, tmp_path: Path, pairs: Pairs) -> None:
    file = write_peft(pairs, tmp_path / "a.safetensors")
    save_file(load_file(file), file, {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 6}'})
    found = read_pairs(file, target, "a", SD)
    assert {pair.component: pair.alpha_value for pair in found} == {"unet": 6.0, "text_encoder": None}


def test_the_command_takes_a_file_and_says_what_it_fits(
    tmp_path: Path, pairs: Pairs, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ModelStore(tmp_path / "store")
    import_sd(store)
    publish_tiny(store)
    file = write_kohya(pairs, tmp_path / "a.safetensors")
    command = ["--store", str(store.root), "import-lora", str(file), "--name", "style"]
    assert main(command, {}) == 0
    assert "style changes text_encoder, unet; it fits sd\n" in capsys.readouterr().out
    loras = LoraStore(store.root)
    assert loras.find("style").file.read_bytes() == file.read_bytes()
    assert store.models() == [SD, TINY], "a LoRA is no model"
    assert main([*command, "--for", TINY], {}) == 1
    assert "tiny/" in capsys.readouterr().err
    assert main([*command, "--for", SD], {}) == 0
    assert loras.find("style").manifest.made_for == SD
    assert main(["--store", str(store.root), "verify"], {}) == 0
    loras.find("style").file.write_bytes(b"damaged")
    assert main(["--store", str(store.root), "verify"], {}) == 1
    assert "LoRA style: lora.safetensors has SHA-256" in capsys.readouterr().err


def test_a_damaged_record_is_told_with_the_lora(tmp_path: Path, pairs: Pairs) -> None:
    store = ModelStore(tmp_path / "store")
    import_sd(store)
    taken, _ = import_lora(store, write_kohya(pairs, tmp_path / "a.safetensors"), "style")
    other, _ = import_lora(store, write_peft(pairs, tmp_path / "b.safetensors"), "other")
    loras, record = LoraStore(store.root), taken.path / "manifest.json"
    for content, reason in (
        (b"{", "manifest.json is not one"),
        ((other.path / "manifest.json").read_bytes(), "manifest.json is about other"),
        (None, "can't read manifest.json"),
    ):
        if content is None:
            record.unlink()
        else:
            record.write_bytes(content)
        with pytest.raises(BadLora, match=f"LoRA style: {reason}"):
            loras.find("style")
    other.file.unlink()
    with pytest.raises(BadLora, match=r"LoRA other: can't read lora\.safetensors"):
        loras.verify(other)
    (taken.path.parent / "current").unlink()
    for name in ("style", "absent", "../sd"):
        with pytest.raises(LoraNotFound):
            loras.find(name)


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_other_formats_and_missing_files_are_refused(store: ModelStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"need a \.safetensors file to import"):
        import_lora(store, tmp_path / name, "style")
