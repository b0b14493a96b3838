"""Prompts: hidden states of text encoders, of the prompt and of what guidance leads away from."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.conditioning.conditioning import Conditioning, ConditionRefusedError, Encoding
from worker.conditioning.text_encoder import Asked, Encoded, PromptTokenizer, SpecialTokenError, TextEncoder
from worker.contract import Condition, Guidance, LabelCondition, NoCondition, TextCondition

LOST_SHOWN = 200
"""Most characters of a cut prompt's end that a warning repeats."""
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""How well an image is to please, and what guidance leads away from, for networks that read it. diffusers' defaults."""

NEGATIVE = "negative_prompt"


@dataclass(frozen=True, slots=True)
class TextReader:
    """A text encoder and the tokenizer that goes with it."""

    tokenizer: PromptTokenizer
    encoder: TextEncoder


@dataclass(frozen=True, slots=True)
class _Row:
    """What one network row is told: a text, or None for the absence of any."""

    field: str
    text: str | None
    clip_skip: int = 0

    @property
    def score(self) -> float:
        """How well the image is to please."""
        return NEGATIVE_AESTHETIC_SCORE if self.field == NEGATIVE else AESTHETIC_SCORE


@dataclass(frozen=True, eq=False)
class Text:
    """Implements `Conditioner` for a model that is guided by a prompt.

    Args:
        model: its name, for messages.
        readers: the states that they make of a text are concatenated along their width.
        states_name: of the network's input that takes the hidden states, or what `project` makes of them.
        pooled_name: of the input that takes the last reader's text as a whole; None: the network has none.
        penultimate: see `Asked`.
        project: what the network's layers that read the text alone make of [tokens, width] of one; equal keys mean
            equal states. None: the network reads the states.
        zero_if_absent: zeros stand for a negative prompt that is not given, else the empty text.
        score_name: of the input that takes the aesthetic score; None: the network reads none.
    """

    model: str
    readers: tuple[TextReader, ...]
    states_name: str
    pooled_name: str | None = None
    penultimate: bool = False
    zero_if_absent: bool = False
    project: Callable[[Hashable, Tensor], Tensor] | None = None
    score_name: str | None = None

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        match condition:
            case TextCondition():
                rows = self._rows(condition, guidance.scale)
            case NoCondition():
                rows = [_Row("prompt", None if self.zero_if_absent else "")]
            case LabelCondition():
                raise ConditionRefusedError(f"model {self.model} takes a prompt, got class_label {condition.label}")
        warnings: list[str] = []
        asked = [[self._ask(reader, row, warnings) for row in rows] for reader in self.readers]
        # What is known now stays at hand, whatever else is encoded until the rest is.
        known: dict[tuple[int, Asked], Encoded] = {}
        missing: list[tuple[int, Asked]] = []
        for place, (reader, texts) in enumerate(zip(self.readers, asked, strict=True)):
            for text in dict.fromkeys(texts):
                if (encoded := reader.encoder.known(text)) is not None:
                    known[place, text] = encoded
                else:
                    missing.append((place, text))

        def assemble(results: Sequence[Encoded]) -> tuple[Conditioning, ...]:
            made = known | dict(zip(missing, results, strict=True))
            encoded = [[made[place, text] for text in texts] for place, texts in enumerate(asked)]
            blank = [row.text is None for row in rows]
            states = _zeroed(torch.cat([_states(each) for each in encoded], dim=-1), blank)
            if self.project is not None:
                keys = zip(blank, *asked, strict=True)
                states = torch.stack([self.project(key, one) for key, one in zip(keys, states, strict=True)])
            named = {self.states_name: states}
            if self.pooled_name is not None:
                named[self.pooled_name] = _zeroed(_pooled(encoded[-1]), blank)
            if self.score_name is not None:
                scores = torch.tensor([[row.score] for row in rows], dtype=torch.float32)
                named[self.score_name] = scores.to(states.device)
            return (Conditioning(len(rows), named, guidance.scale),)

        calls = [partial(self.readers[place].encoder.encode, text) for place, text in missing]
        return Encoding(calls, assemble, tuple(dict.fromkeys(warnings)))

    def _rows(self, texts: TextCondition, w: float) -> list[_Row]:
        """Two where guidance mixes them, the unconditional one first, else one.

        w = 1 is the conditional model itself and w = 0 the unconditional one, so neither costs a second row; nor do two
        equal texts, unless their scores differ.
        """
        absent = None if self.zero_if_absent else ""
        prompt = _Row("prompt", texts.prompt, texts.clip_skip)
        negative = _Row(NEGATIVE, absent if texts.negative_prompt is None else texts.negative_prompt)
        are_equal = (prompt.text, prompt.clip_skip) == (negative.text, negative.clip_skip) and self.score_name is None
        if w == 1 or are_equal:
            return [prompt]
        return [negative] if w == 0 else [negative, prompt]

    def _ask(self, reader: TextReader, row: _Row, warnings: list[str]) -> Asked:
        most = reader.encoder.layers - 1 - self.penultimate
        if row.clip_skip > most:
            raise ConditionRefusedError(f"need clip_skip <= {most} for model {self.model}, got {row.clip_skip}")
        try:
            tokens = reader.tokenizer(row.text or "")
        except SpecialTokenError as error:
            raise ConditionRefusedError(f"{row.field}: {error}") from error
        if tokens.lost:
            lost = tokens.lost if len(tokens.lost) <= LOST_SHOWN else tokens.lost[:LOST_SHOWN] + "…"
            warnings.append(f"{row.field}: {self.model} reads {reader.tokenizer.length - 2} tokens of it, lost: {lost}")
        return Asked(tokens.ids, row.clip_skip, self.penultimate)


def _states(encoded: Sequence[Encoded]) -> Tensor:
    """[rows, tokens, width]"""
    return torch.stack([each.states for each in encoded])


def _pooled(encoded: Sequence[Encoded]) -> Tensor:
    """[rows, width']"""
    return torch.stack([each.pooled for each in encoded if each.pooled is not None])


def _zeroed(rows: Tensor, blank: Sequence[bool]) -> Tensor:
    """With zeros in the rows that are told nothing."""
    for place, is_blank in enumerate(blank):
        if is_blank:
            rows[place] = 0
    return rows
