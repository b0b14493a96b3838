"""What guides an image, as the network reads it, and how a request's condition becomes that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from worker.contract import Condition, Guidance


class ConditionRefusedError(ValueError):
    """The model can't be guided like that; the message names the value and the rule."""


@dataclass(frozen=True, eq=False, slots=True)
class Conditioning:
    """The network's named inputs for one image, made once per request; images that share it share its tensors.

    Attributes:
        rows: network rows per step: two where guidance mixes them, the unconditional one first, else one.
        named: by name, [rows, ...] on the model's device; the names that the network declares.
        guidance_scale: w of classifier-free guidance, read where there are two rows.
    """

    rows: int = 1
    named: Mapping[str, Tensor] = field(default_factory=dict)
    guidance_scale: float = 1.0

    @property
    def guided(self) -> bool:
        """Whether the network's output is a mixture of a conditional and an unconditional one."""
        return self.rows == 2

    def extended(self, named: Mapping[str, Tensor]) -> "Conditioning":
        """With further inputs, [...] each, which are the same for all rows."""
        further = {name: value.expand(self.rows, *value.shape) for name, value in named.items()}
        return Conditioning(self.rows, {**self.named, **further}, self.guidance_scale) if named else self


@dataclass(frozen=True, eq=False, slots=True)
class Encoding:
    """A condition on its way to a `Conditioning`.

    Attributes:
        calls: what is left to run, each one item through an encoder at a fixed shape, so that no neighbour can matter.
        assemble: makes the conditioning of each leg of the calls' results, in their order.
        warnings: what the client should know, for example that a prompt was cut.
    """

    calls: Sequence[Callable[[], Any]]
    assemble: Callable[[Sequence[Any]], Sequence[Conditioning]]
    warnings: tuple[str, ...] = ()


class Conditioner(Protocol):
    """A model's way from a condition to tensors."""

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        """Plan the encoding; runs nothing that takes long.

        Raises:
            ConditionRefusedError: a condition or guidance that the model can't be given.
        """


def ready(*conditionings: Conditioning) -> Encoding:
    """An encoding that needs no encoder: the conditioning of each leg."""
    return Encoding((), lambda _: conditionings)


@dataclass(frozen=True, eq=False)
class EachLeg:
    """Implements `Conditioner` for a model whose legs each read a condition in a way of their own.

    Args:
        conditioners: one of each leg.
    """

    conditioners: Sequence[Conditioner]

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        encodings = [conditioner(condition, guidance) for conditioner in self.conditioners]

        def assemble(results: Sequence[Any]) -> Sequence[Conditioning]:
            remaining = iter(results)
            each = [encoding.assemble([next(remaining) for _ in encoding.calls]) for encoding in encodings]
            return [conditioning for (conditioning,) in each]

        calls = [call for encoding in encodings for call in encoding.calls]
        warnings = dict.fromkeys(warning for encoding in encodings for warning in encoding.warnings)
        return Encoding(calls, assemble, tuple(warnings))
