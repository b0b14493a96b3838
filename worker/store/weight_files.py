"""The weights of one component: one safetensors file, or several with an index. Loads no torch.

    <stem>.safetensors
    <stem>-00001-of-00002.safetensors, …, <stem>.safetensors.index.json    {"weight_map": {tensor: file}}

A variant (`fp16`) stands before the suffix: `<stem>.fp16.safetensors`, `<stem>.fp16-00001-of-00002.safetensors`,
`<stem>.safetensors.index.fp16.json`. The store keeps the names without variant.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.safetensors_header import TensorInfo, read_header

OLD_ATTENTION = re.compile(r"^(.*attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)$")
ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weights of a component, where they lie.

    Attributes:
        index: None for weights in one file.
        shards: name that the store gives → file.
    """

    index: Path | None
    shards: Mapping[str, Path]


def find_weights(folder: Path, stem: str, place: str, variant: str | None = None) -> WeightFiles:
    """The weights in a component's folder.

    Args:
        folder: of the component.
        stem: name of the weights without suffix.
        place: what errors call the folder.
        variant: "" for the weights without one; None for those, or else the only variant there is.

    Raises:
        BadCheckpoint: there are none, only pickles, or several variants to choose from.
    """
    found = _variants(folder, stem, place)
    if not found:
        if pickles := sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern)):
            raise BadCheckpoint(
                f"{place}/{pickles[0]} is a pickle, which can run code; save the weights as safetensors"
            )
        raise BadCheckpoint(f"{place}/{stem}.safetensors is missing")
    if variant is None:
        if "" not in found and len(found) > 1:
            raise BadCheckpoint(f"{place}: which variant of the weights is meant? {', '.join(sorted(found))}")
        variant = "" if "" in found else next(iter(found))
    if variant not in found:
        there = ", ".join(repr(name) for name in sorted(found))
        raise BadCheckpoint(f"{place}: no weights of the variant {variant!r}; variants there: {there}")
    path = found[variant]
    if path.suffix == ".safetensors":
        return WeightFiles(None, {f"{stem}.safetensors": path})
    dotted = f".{variant}" if variant else ""
    shards = {}
    for name in sorted(set(_weight_map(path, place).values())):
        # Also keeps paths that lead elsewhere out.
        if not re.fullmatch(rf"{re.escape(stem + dotted)}-\d+-of-\d+\.safetensors", name):
            raise BadCheckpoint(f"{place}/{path.name}: {name!r} can't be one of the files of these weights")
        shards[stem + name.removeprefix(stem + dotted)] = folder / name
    return WeightFiles(path, shards)


def check_weights(folder: Path, stem: str, place: str) -> None:
    """Raise BadCheckpoint unless the weights that the store holds are whole and as their index says."""
    weights = find_weights(folder, stem, place, "")
    tensors: dict[str, str] = {}
    for name, path in weights.shards.items():
        held = _header(path, f"{place}/{name}")
        if not held:
            raise BadCheckpoint(f"{place}/{name} holds no tensors")
        if twice := sorted(held.keys() & tensors.keys()):
            raise BadCheckpoint(f"{place}: {twice[0]} is in {tensors[twice[0]]} and in {name}")
        tensors |= dict.fromkeys(held, name)
    if weights.index is not None and tensors != (listed := _weight_map(weights.index, place)):
        wrong = min(key for key in tensors.keys() | listed.keys() if tensors.get(key) != listed.get(key))
        raise BadCheckpoint(
            f"{place}/{weights.index.name} has {wrong} in {listed.get(wrong)}, it is in {tensors.get(wrong)}"
        )


def copy_weights(weights: WeightFiles, target: Path, stem: str) -> None:
    """Copy into the folder `target` under the store's names; old names of attention weights become today's.

    Diffusers before 0.15 named them query, key, value and proj_attn.
    """
    for name, path in weights.shards.items():
        _copy_file(path, target / name)
    if weights.index is not None:
        names = {path.name: name for name, path in weights.shards.items()}
        place = str(weights.index.parent)
        index = read_json_object(weights.index.parent, weights.index.name, place)
        weight_map = _weight_map(weights.index, place)
        index["weight_map"] = {todays_name(tensor): names[file] for tensor, file in weight_map.items()}
        (target / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def todays_name(tensor: str) -> str:
    """The name of an attention's weight since diffusers 0.15; any other name as it is."""
    match = OLD_ATTENTION.match(tensor)
    return f"{match[1]}{ATTENTION_NAMES[match[2]]}.{match[3]}" if match else tensor


def _copy_file(source: Path, target: Path) -> None:
    """Copy byte for byte; only the header changes where there are old attention names.

    Today's linear weights hold the same bytes as the old ones, linear or 1x1 convolutions.
    """
    if not any(OLD_ATTENTION.match(name) for name in _header(source, str(source))):
        shutil.copyfile(source, target)
        return
    with source.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        renamed = {}
        for name, entry in header.items():
            if OLD_ATTENTION.match(name):
                name = todays_name(name)
                if name in header:
                    raise BadCheckpoint(f"{source}: has {name} under its old and its new name")
                if entry["shape"][2:] == [1, 1]:
                    entry = entry | {"shape": entry["shape"][:2]}
            renamed[name] = entry
        text = json.dumps(renamed, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the tensors' bytes begin aligned
        with target.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(file, out)


def _header(path: Path, place: str) -> dict[str, TensorInfo]:
    try:
        return read_header(path)
    except ValueError as error:
        raise BadCheckpoint(f"{place}: {error}") from error
    except OSError as error:
        raise BadCheckpoint(f"can't read {place}: {error.strerror}") from error


def _variants(folder: Path, stem: str, place: str) -> dict[str, Path]:
    """Variant ("" for none) → its one file, or the index of its files."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        rest = path.name.removeprefix(stem)
        one = re.fullmatch(r"(?:\.([A-Za-z0-9_]+))?\.safetensors", rest)
        many = re.fullmatch(r"\.safetensors\.index(?:\.([A-Za-z0-9_]+))?\.json", rest)
        if match := one or many:
            variant = match[1] or ""
            if variant in found:
                raise BadCheckpoint(f"{place}: which weights are meant? {found[variant].name}, {path.name}")
            found[variant] = path
    return found


def _weight_map(index: Path, place: str) -> dict[str, str]:
    weight_map = read_json_object(index.parent, index.name, place).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadCheckpoint(f"{place}/{index.name}: need a weight_map from names of tensors to files")
    return weight_map
