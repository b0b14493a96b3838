"""Takes Stable Diffusion XL's refiner along with the model whose chains it ends, or says why it can't."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from worker.store.component_rules import REFINER, SKIPPED
from worker.store.durable_files import hash_file
from worker.store.errors import BadCheckpoint, StoreError
from worker.store.pipeline_index import REFINER_ZEROS_FLAG, ZEROS_FLAG, read_index
from worker.store.pipeline_parts import Part, read_part
from worker.store.refiner_rules import (
    REFINER_ENCODER,
    REFINER_TOKENIZER,
    REFINER_UNET,
    check_networks,
    check_same_noise,
)
from worker.store.text_rules import text_width

ENCODER, TOKENIZER = "text_encoder_2", "tokenizer_2"
UNREAD_KEYS = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version"})
"""Of a text encoder's configuration, what changes nothing of what it computes here."""


def read_refiner(
    directory: Path, parts: Sequence[Part], variant: str | None
) -> tuple[Sequence[Part], Mapping[str, bool]]:
    """What of a refiner's directory goes beside the model's own parts, under the names that it has there, and the flags
    of its index.

    Its U-Net always; its text encoder and tokenizer unless they are the model's own second ones. The model's
    autoencoder decodes, and its scheduler spaces the steps of both.

    Raises:
        BadCheckpoint: it is no refiner, or one of another kind of model.
    """
    if not directory.is_dir():
        raise StoreError(f"need a diffusers directory as the refiner, got {str(directory)!r}")
    where = str(directory)
    index = read_index(directory, where, SKIPPED)
    if missing := sorted(REFINER - {"vae"} - index.components.keys()):
        raise BadCheckpoint(f"{where}: a refiner lacks {', '.join(missing)}")
    if extra := sorted(index.components.keys() - REFINER):
        raise BadCheckpoint(f"{where}: can't take {', '.join(extra)} of a refiner, which reads one text encoder alone")
    unet, noise, encoder, tokenizer = (
        read_part(name, index.components[name], directory / name, where, variant)
        for name in ("unet", "scheduler", ENCODER, TOKENIZER)
    )
    own = {part.name: part for part in parts}
    if lacking := sorted({"vae", "text_encoder", ENCODER, TOKENIZER} - own.keys()):
        raise BadCheckpoint(f"{where}: a refiner goes with a Stable Diffusion XL model, which lacks {lacking[0]}")
    check_same_noise(own["scheduler"].config, noise.config, where)
    width = text_width(directory, ENCODER, TOKENIZER, where)
    check_networks(own["unet"].config, unet.config, width, encoder.config, where)
    taken = [replace(unet, name=REFINER_UNET)]
    if not (_same(encoder, own[ENCODER]) and _same(tokenizer, own[TOKENIZER])):
        taken += [replace(encoder, name=REFINER_ENCODER), replace(tokenizer, name=REFINER_TOKENIZER)]
    return taken, {REFINER_ZEROS_FLAG: index.flags.get(ZEROS_FLAG, True)}


def _same(one: Part, other: Part) -> bool:
    """Whether two components compute the same, byte for byte of their weights and files."""
    return _read_of(one.config) == _read_of(other.config) and _hashes(one) == _hashes(other)


def _read_of(config: Mapping[str, object]) -> Mapping[str, object]:
    return {key: value for key, value in config.items() if key not in UNREAD_KEYS and not key.startswith("_")}


def _hashes(part: Part) -> Mapping[str, str]:
    weights = part.weights.shards if part.weights is not None else {}
    files = {name: part.folder / name for name in part.further_files}
    return {name: hash_file(path).sha256 for name, path in (*weights.items(), *files.items())}
