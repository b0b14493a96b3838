"""The tokenizers and text encoders of a checkpoint; versions and models with the same encoder share one."""

import threading
from collections.abc import Sequence
from functools import partial
from weakref import WeakValueDictionary

import torch
from torch import nn

from worker.conditioning.text import Text, TextReader
from worker.conditioning.text_encoder import BadTextEncoderError, PromptTokenizer, TextEncoder
from worker.models.errors import BrokenModel
from worker.models.lora_merge import merge, merged_sha256
from worker.networks.network_input import InputSpec
from worker.networks.text_projections import TEXT_PROJECTIONS, TextProjector, projections_of
from worker.networks.unet2d_condition import AESTHETIC_SCORE, TEXT_EMBEDS, TEXT_STATES
from worker.store.component_rules import TEXT_PARTS
from worker.store.model_store import Checkpoint

PROJECTED = "CLIPTextModelWithProjection"

_opening = threading.Lock()
_encoders: "WeakValueDictionary[tuple[str, str], TextEncoder]" = WeakValueDictionary()  # by (hash, device)


TextPart = tuple[str, str]
"""Names of a text encoder and of its tokenizer."""


def text_parts_of(checkpoint: Checkpoint) -> tuple[TextPart, ...]:
    """Those that the model's own network reads; none for a checkpoint without a text encoder."""
    return tuple(part for part in TEXT_PARTS if part[0] in checkpoint.manifest.components)


def open_readers(checkpoint: Checkpoint, parts: Sequence[TextPart], device: torch.device) -> tuple[TextReader, ...]:
    """Raises BrokenModel."""
    return tuple(_open(checkpoint, encoder, tokenizer, device) for encoder, tokenizer in parts)


def encoder_bytes(checkpoint: Checkpoint, parts: Sequence[TextPart], readers: Sequence[TextReader]) -> dict[str, int]:
    """What the encoders take in memory, by hash: other models may use them too."""
    pairs = zip(parts, readers, strict=True)
    return {merged_sha256(checkpoint, name): reader.encoder.weight_bytes for (name, _), reader in pairs}


def text_conditioner(
    model: str, readers: Sequence[TextReader], inputs: InputSpec, network: nn.Module, *, zero_if_absent: bool
) -> tuple[Text, int]:
    """How a network reads prompts, and the memory that what it made of the last ones takes at most.

    Args:
        model: its name, for messages.
        inputs, network: as it is opened.
        zero_if_absent: see `Text`; read of those with pooled text alone.
    """
    projections = projections_of(network)
    projector = None if projections is None else TextProjector(projections)
    states_name = TEXT_STATES if projector is None else TEXT_PROJECTIONS
    is_xl = inputs.has(TEXT_EMBEDS)
    text = Text(
        model,
        tuple(readers),
        states_name,
        TEXT_EMBEDS if is_xl else None,
        penultimate=is_xl,
        zero_if_absent=is_xl and zero_if_absent,
        project=projector,
        score_name=AESTHETIC_SCORE if inputs.has(AESTHETIC_SCORE) else None,
    )
    return text, projector.most_bytes if projector is not None else 0


def _open(checkpoint: Checkpoint, encoder_name: str, tokenizer_name: str, device: torch.device) -> TextReader:
    component = checkpoint.manifest.components[encoder_name]
    where = f"{checkpoint.model}/{checkpoint.version}"
    try:
        tokenizer = PromptTokenizer(checkpoint.path / tokenizer_name)
        with _opening:
            key = (merged_sha256(checkpoint, encoder_name), str(device))
            encoder = _encoders.get(key)
            if encoder is None:
                projected = component.class_name == PROJECTED
                adjust = partial(merge, checkpoint, encoder_name)
                encoder = TextEncoder(checkpoint.path / encoder_name, device, projected=projected, adjust=adjust)
                _encoders[key] = encoder
    except BadTextEncoderError as error:
        raise BrokenModel(f"{where}: {error}") from error
    if not 2 < tokenizer.length <= encoder.positions:
        raise BrokenModel(
            f"{where}: need a {tokenizer_name} with a model_max_length of 3 to {encoder.positions} tokens, "
            f"got {tokenizer.length}"
        )
    if tokenizer.vocabulary_size > encoder.vocabulary_size:
        raise BrokenModel(
            f"{where}: {tokenizer_name} has {tokenizer.vocabulary_size} ids, {encoder_name} {encoder.vocabulary_size}"
        )
    return TextReader(tokenizer, encoder)
