"""The tokenizer and the text encoder of a checkpoint; versions and models with the same encoder share one."""

import threading
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch

from worker.conditioning.text_encoder import BadTextEncoderError, PromptTokenizer, TextEncoder
from worker.models.errors import BrokenModel
from worker.store.model_store import Checkpoint

_opening = threading.Lock()
_encoders: "WeakValueDictionary[tuple[str, str], TextEncoder]" = WeakValueDictionary()  # by (hash, device)


@dataclass(frozen=True, slots=True)
class TextParts:
    tokenizer: PromptTokenizer
    encoder: TextEncoder


def open_text_parts(checkpoint: Checkpoint, device: torch.device) -> TextParts | None:
    """None for a checkpoint without a text encoder. Raises BrokenModel."""
    component = checkpoint.manifest.components.get("text_encoder")
    if component is None:
        return None
    where = f"{checkpoint.model}/{checkpoint.version}"
    try:
        tokenizer = PromptTokenizer(checkpoint.path / "tokenizer")
        with _opening:
            encoder = _encoders.get((component.sha256, str(device)))
            if encoder is None:
                encoder = TextEncoder(checkpoint.path / "text_encoder", device)
                _encoders[component.sha256, str(device)] = encoder
    except BadTextEncoderError as error:
        raise BrokenModel(f"{where}: {error}") from error
    if not 2 < tokenizer.length <= encoder.positions:
        raise BrokenModel(
            f"{where}: need a tokenizer with a model_max_length of 3 to {encoder.positions} tokens, "
            f"got {tokenizer.length}"
        )
    if tokenizer.vocabulary_size > encoder.vocabulary_size:
        raise BrokenModel(
            f"{where}: the tokenizer has {tokenizer.vocabulary_size} ids, the text encoder {encoder.vocabulary_size}"
        )
    return TextParts(tokenizer, encoder)
