"""A published text-to-image network as training calls it: the same calls that the worker makes, with gradients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import ConfigurationError, DataError
from training.network import Conditions, Denoiser
from training.text import MAX_CAPTION_CHARACTERS
from worker.conditioning.text_encoder import BadTextEncoderError, PromptTokenizer, SpecialTokenError


class PromptTokens:
    """From captions to the tokens of a model's text encoders.

    Args:
        folders: of the tokenizers.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._tokenizers: tuple[PromptTokenizer, ...] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_tokenizers": None}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """[N, encoders, tokens] int64. Marks inside a text are text; what is too long is cut."""
        if self._tokenizers is None:  # made where it is used: data workers are other processes
            self._tokenizers = self._opened()
        rows = []
        for caption in captions:
            text = caption[:MAX_CAPTION_CHARACTERS].replace("<|", "< |")
            try:
                rows.append([tokenizer(text).ids for tokenizer in self._tokenizers])
            except SpecialTokenError as error:
                raise DataError(f"the caption {caption[:60]!r}: {error}") from error
        return torch.tensor(rows, dtype=torch.int64)

    def _opened(self) -> tuple[PromptTokenizer, ...]:
        try:
            tokenizers = tuple(PromptTokenizer(folder) for folder in self._folders)
        except BadTextEncoderError as error:
            raise ConfigurationError(f"{self._folders[0].parent}: {error}") from error
        if len({tokenizer.length for tokenizer in tokenizers}) > 1:
            raise ConfigurationError(f"{self._folders[0].parent}: need tokenizers of one length")
        return tokenizers


class PromptedDenoiser(Denoiser):
    """A U-Net and the text encoders that it reads.

    Args:
        network: diffusers' `UNet2DConditionModel`.
        encoders: one; or two, whose states before the last layer are read side by side, with the second one's text as
            a whole, and the image's size. Podell et al. 2023, section 2.
        factor: pixels of an image to a value of its state, along each side.
        blank: [encoders, tokens] of the caption that zeros stand for; None: there is none.
    """

    def __init__(self, network: Any, encoders: Sequence[Any], factor: int, blank: Tensor | None) -> None:
        super().__init__(network, encoders[0])
        self.text_encoder_2 = encoders[1] if len(encoders) > 1 else None
        self._factor = factor
        self.register_buffer("blank", blank, persistent=False)

    def forward(self, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """[N, C, H, W], [N] int64 → [N, C, H, W]; the tokens are [N, encoders, tokens]."""
        assert conditions.tokens is not None, "it reads captions"
        if self.text_encoder_2 is None:
            given = self._read(conditions.tokens)
        else:
            given = self._read_together(conditions.tokens, x_t)
        output: Tensor = self.network(x_t, timesteps, return_dict=False, **given)[0]
        return output

    def _read(self, tokens: Tensor) -> dict[str, Any]:
        encoder: Any = self.text_encoder
        return {"encoder_hidden_states": encoder(tokens[:, 0]).last_hidden_state}

    def _read_together(self, tokens: Tensor, x_t: Tensor) -> dict[str, Any]:
        encoders: tuple[Any, ...] = (self.text_encoder, self.text_encoder_2)
        read = [encoder(tokens[:, place], output_hidden_states=True) for place, encoder in enumerate(encoders)]
        states = torch.cat([each.hidden_states[-2] for each in read], dim=-1)  # [N, tokens, width]
        pooled = read[-1].text_embeds  # [N, width']
        blank: Any = self.blank
        if blank is not None:
            told = (tokens != blank).flatten(1).any(dim=1, keepdim=True).to(states.dtype)  # [N, 1]
            states, pooled = states * told[:, :, None], pooled * told
        height, width = (self._factor * side for side in x_t.shape[2:])
        sizes = x_t.new_tensor([height, width, 0, 0, height, width]).expand(len(x_t), -1)
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
