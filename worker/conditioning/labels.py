"""Class labels: rows of the network's class embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.conditioning.conditioning import Conditioning, ConditionRefusedError, Encoding, ready
from worker.contract import Condition, Guidance, LabelCondition, TextCondition


@dataclass(frozen=True)
class Unconditional:
    """Implements `Conditioner` for a model that draws without a condition.

    Args:
        model: its name, for messages.
    """

    model: str

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        if isinstance(condition, LabelCondition):
            raise ConditionRefusedError(f"model {self.model} has no classes, got class_label {condition.label}")
        if isinstance(condition, TextCondition):
            raise ConditionRefusedError(f"model {self.model} draws without a condition, got a prompt")
        if guidance.scale != 1:
            rule = f"model {self.model} has no classes to guide by, got guidance_scale {guidance.scale}"
            raise ConditionRefusedError(rule)
        return ready(Conditioning())


@dataclass(frozen=True)
class Labels:
    """Implements `Conditioner` for a model with classes.

    Args:
        model: its name, for messages.
        input_name: of the network's input that takes a row of the class embedding.
        count: labels that may be asked for, from 0.
        null_label: the row that means "no class"; None: the model was not trained without its classes.
    """

    model: str
    input_name: str
    count: int
    null_label: int | None
    device: torch.device

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        if isinstance(condition, TextCondition):
            raise ConditionRefusedError(f"model {self.model} takes a class_label, got a prompt")
        label = condition.label if isinstance(condition, LabelCondition) else None
        return ready(self._conditioning(self.rows(label, guidance.scale), guidance.scale))

    def rows(self, label: int | None, w: float) -> tuple[int, ...]:
        """Rows of the class embedding: two where guidance mixes them, the null label first, else one.

        w = 1 is the conditional model itself and w = 0 the unconditional one, so neither costs a second row.
        """
        if label is not None and label >= self.count:
            raise ConditionRefusedError(f"need class_label < {self.count} for model {self.model}, got {label}")
        if label is not None and w == 1:
            return (label,)
        if self.null_label is None:
            rule = "a class_label, got none" if label is None else f"guidance_scale 1, got {w}"
            raise ConditionRefusedError(f"model {self.model} was not trained without its classes: need {rule}")
        if label is None or w == 0:
            return (self.null_label,)
        return (self.null_label, label)

    def _conditioning(self, rows: Sequence[int], guidance_scale: float) -> Conditioning:
        # From pinned memory where a GPU fetches it, so that nobody waits.
        labels = torch.tensor(rows, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        named = {self.input_name: labels.to(self.device, non_blocking=True)}
        return Conditioning(len(rows), named, guidance_scale)
