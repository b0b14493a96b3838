"""A CLIP tokenizer and text encoder, called offline: one text per call, at one length, so no other text matters."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENCODINGS_KEPT = 256
"""Least recently used first out. One of 77 tokens x 768 takes 231 KiB."""

Ids = tuple[int, ...]


class BadTextEncoderError(ValueError):
    """The tokenizer or the text encoder can't be opened; the message says why."""


class SpecialTokenError(ValueError):
    """A prompt holds the text of a special token, which the tokenizer would not read as text."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as the encoder reads it.

    Attributes:
        ids: of one length, whatever the prompt's.
        lost: the end of the prompt that did not fit.
    """

    ids: Ids
    lost: str


class PromptTokenizer:
    """Cuts a prompt into the ids of `length` tokens, begin, end and padding included.

    Args:
        folder: of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPTokenizer  # here: it takes seconds to import

        try:
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the library raises what its own parsers raise
            raise BadTextEncoderError(f"the tokenizer can't be opened: {_one_line(error)}") from error
        self.length = int(self._tokenizer.model_max_length)
        self.vocabulary_size = 1 + max(self._tokenizer.get_vocab().values())
        # A pad token of one character ("!" in Stable Diffusion 2) is text like any other.
        self._special = sorted(token for token in set(self._tokenizer.all_special_tokens) if len(token) > 1)

    def __call__(self, prompt: str) -> Tokens:
        """Raises SpecialTokenError."""
        for token in self._special:
            if token.casefold() in prompt.casefold():
                raise SpecialTokenError(f"a prompt can't contain the special token {token}")
        whole = self._tokenizer(prompt, return_offsets_mapping=True, verbose=False)
        ids = whole["input_ids"]
        lost = ""
        if len(ids) > self.length:
            first_lost = whole["offset_mapping"][self.length - 1][0]
            lost = prompt[first_lost:].strip() or prompt[first_lost:]  # control characters, say
            ids = [*ids[: self.length - 1], ids[-1]]
        return Tokens((*ids, *[self._tokenizer.pad_token_id] * (self.length - len(ids))), lost)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a text encoder is asked.

    Attributes:
        clip_skip: how many of its last layers are left out.
        penultimate: the states before the last layer and before the final norm, as Stable Diffusion XL reads them.
    """

    ids: Ids
    clip_skip: int = 0
    penultimate: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """What it answers.

    Attributes:
        states: [tokens, width] float32, of all tokens, padding included.
        pooled: [width'] float32, the text as a whole; None of an encoder without a projection.
    """

    states: Tensor
    pooled: Tensor | None


class TextEncoder:
    """A CLIP text encoder on its device, in float32, and the encodings that it made last.

    Args:
        folder: of the encoder.
        projected: whether it is one that projects the text as a whole.
        adjust: called once with the encoder's network, before it is used.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        projected: bool = False,
        adjust: Callable[[Any], None] = lambda network: None,
    ) -> None:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection  # here: it takes seconds to import
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # the worker's standard error is a log
        try:
            model, info = (CLIPTextModelWithProjection if projected else CLIPTextModel).from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # the library raises what its own parsers raise
            raise BadTextEncoderError(f"the text encoder can't be opened: {_one_line(error)}") from error
        for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
            if info.get(problem):
                raise BadTextEncoderError(f"the text encoder: {problem.replace('_', ' ')}: {sorted(info[problem])[:3]}")
        adjust(model)
        for name, weight in model.state_dict().items():
            if not bool(torch.isfinite(weight).all()):
                raise BadTextEncoderError(f"the text encoder: weight {name} is not finite")
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._device = device
        self.width = int(model.config.hidden_size)
        self.pooled_width = int(model.config.projection_dim) if projected else None
        self.layers = int(model.config.num_hidden_layers)
        self.positions = int(model.config.max_position_embeddings)
        self.vocabulary_size = int(model.config.vocab_size)
        self.weight_bytes = sum(weight.nbytes for weight in model.state_dict().values())
        self._lock = threading.Lock()
        self._encodings: OrderedDict[Asked, Encoded] = OrderedDict()

    def known(self, asked: Asked) -> Encoded | None:
        """The encoding, if it was made lately."""
        with self._lock:
            encoding = self._encodings.get(asked)
            if encoding is not None:
                self._encodings.move_to_end(asked)
        return encoding

    @torch.inference_mode()
    def encode(self, asked: Asked) -> Encoded:
        """Of all tokens, padding included."""
        encoding = self.known(asked)
        if encoding is None:
            encoding = self._encode(asked)
            with self._lock:
                self._encodings[asked] = encoding
                while len(self._encodings) > ENCODINGS_KEPT:
                    self._encodings.popitem(last=False)
        return encoding

    def _encode(self, asked: Asked) -> Encoded:
        # No attention mask: only the causal one, as the reference pipelines call it.
        tokens = torch.tensor([asked.ids], dtype=torch.int64).to(self._device)
        inner = asked.penultimate or asked.clip_skip > 0
        output = self._model(input_ids=tokens, output_hidden_states=inner)
        if asked.penultimate:
            states = output.hidden_states[-2 - asked.clip_skip]
        elif asked.clip_skip:
            states = self._final_norm(output.hidden_states[-1 - asked.clip_skip])
        else:
            states = output.last_hidden_state
        return Encoded(states[0].clone(), None if self.pooled_width is None else output.text_embeds[0].clone())

    def _final_norm(self, states: Tensor) -> Tensor:
        model = self._model
        return torch.as_tensor(getattr(model, "text_model", model).final_layer_norm(states))


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
