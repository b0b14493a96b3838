"""The tokenizers and text encoders of a checkpoint; versions and models with the same encoder share one."""

import threading
from functools import partial
from weakref import WeakValueDictionary

import torch

from worker.conditioning.text import TextReader
from worker.conditioning.text_encoder import BadTextEncoderError, PromptTokenizer, TextEncoder
from worker.models.errors import BrokenModel
from worker.models.lora_merge import merge, merged_sha256
from worker.store.component_rules import TEXT_PARTS
from worker.store.model_store import Checkpoint

PROJECTED = "CLIPTextModelWithProjection"

_opening = threading.Lock()
_encoders: "WeakValueDictionary[tuple[str, str], TextEncoder]" = WeakValueDictionary()  # by (hash, device)


def open_readers(checkpoint: Checkpoint, device: torch.device) -> tuple[TextReader, ...]:
    """Empty for a checkpoint without a text encoder. Raises BrokenModel."""
    return tuple(
        _open(checkpoint, encoder, tokenizer, device)
        for encoder, tokenizer in TEXT_PARTS
        if encoder in checkpoint.manifest.components
    )


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
