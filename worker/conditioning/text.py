"""Prompts: hidden states of a text encoder, of the prompt and of what guidance leads away from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.conditioning.conditioning import Conditioning, ConditionRefusedError, Encoding
from worker.conditioning.text_encoder import Ids, PromptTokenizer, SpecialTokenError, TextEncoder
from worker.contract import Condition, Guidance, LabelCondition, NoCondition, TextCondition

LOST_SHOWN = 200
"""Most characters of a cut prompt's end that a warning repeats."""


@dataclass(frozen=True, eq=False)
class Text:
    """Implements `Conditioner` for a model that is guided by a prompt.

    Args:
        model: its name, for messages.
        input_name: of the network's input that takes the hidden states.
    """

    model: str
    input_name: str
    tokenizer: PromptTokenizer
    encoder: TextEncoder

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        match condition:
            case TextCondition():
                texts = condition
            case NoCondition():
                texts = TextCondition(prompt="")
            case LabelCondition():
                raise ConditionRefusedError(f"model {self.model} takes a prompt, got class_label {condition.label}")
        warnings: list[str] = []
        rows = [self._ids(field, text, warnings) for field, text in _rows(texts, guidance.scale)]
        # What is known now stays at hand, whatever else is encoded until the rest is.
        known = {ids: encoding for ids in rows if (encoding := self.encoder.known(ids)) is not None}
        missing = [ids for ids in dict.fromkeys(rows) if ids not in known]

        def assemble(results: Sequence[Tensor]) -> tuple[Conditioning, ...]:
            made = known | dict(zip(missing, results, strict=True))
            states = torch.stack([made[ids] for ids in rows])
            return (Conditioning(len(rows), {self.input_name: states}, guidance.scale),)

        return Encoding([partial(self.encoder.encode, ids) for ids in missing], assemble, tuple(warnings))

    def _ids(self, field: str, text: str, warnings: list[str]) -> Ids:
        try:
            tokens = self.tokenizer(text)
        except SpecialTokenError as error:
            raise ConditionRefusedError(f"{field}: {error}") from error
        if tokens.lost:
            lost = tokens.lost if len(tokens.lost) <= LOST_SHOWN else tokens.lost[:LOST_SHOWN] + "…"
            warnings.append(f"{field}: {self.model} reads {self.tokenizer.length - 2} tokens of it, lost: {lost}")
        return tokens.ids


def _rows(texts: TextCondition, w: float) -> list[tuple[str, str]]:
    """(field, text) of each network row: two where guidance mixes them, the unconditional one first, else one.

    w = 1 is the conditional model itself and w = 0 the unconditional one, so neither costs a second row; nor do two
    equal texts.
    """
    prompt, negative = ("prompt", texts.prompt), ("negative_prompt", texts.negative_prompt)
    if w == 1 or texts.prompt == texts.negative_prompt:
        return [prompt]
    if w == 0:
        return [negative]
    return [negative, prompt]
