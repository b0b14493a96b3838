"""What a worker can draw and what it costs there: the jobs that it claims, and the measure by which it orders them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from worker.contract import ModelInfo, SamplingRequest, WorkerStatus


@dataclass(frozen=True, slots=True)
class ModelOffer:
    has_current: bool
    """Whether a request that names no version can be drawn."""
    versions: frozenset[str]


@dataclass(frozen=True)
class Offer:
    """Of one worker, or of several together."""

    models: Mapping[str, ModelOffer] = field(default_factory=dict)
    row_step_s: Mapping[str, float] = field(default_factory=dict)
    """By model, seconds that a network row of a step takes; a model that has not run yet is missing."""

    @classmethod
    def of(cls, models: Iterable[ModelInfo], row_step_s: Mapping[str, float] | None = None) -> "Offer":
        offered: dict[str, ModelOffer] = {}
        for model in models:
            versions = frozenset(info.version for info in model.versions)
            known = offered.get(model.name, ModelOffer(False, frozenset()))
            offered[model.name] = ModelOffer(known.has_current or model.version is not None, known.versions | versions)
        return cls(offered, row_step_s or {})

    @classmethod
    def of_all(cls, workers: Iterable[WorkerStatus]) -> "Offer":
        """What any of them can draw."""
        return cls.of(model for worker in workers for model in worker.models)

    def serves(self, model: str, version: str | None) -> bool:
        """Whether such a job can be drawn; without a version, at any that is current."""
        offer = self.models.get(model)
        if offer is None:
            return False
        return offer.has_current if version is None else version in offer.versions

    @cached_property
    def mean_row_step_s(self) -> float | None:
        """Stands for a model that has not run yet; None before any has."""
        return fmean(self.row_step_s.values()) if self.row_step_s else None

    def row_step_s_of(self, request: SamplingRequest) -> float | None:
        """Seconds for each of the request's row-steps, measured or supposed."""
        return self.row_step_s.get(request.model, self.mean_row_step_s)

    @cached_property
    def as_json(self) -> str:
        """For the scripts: see `served` and `row_step_s_of` in `worker.contract.queue_order`."""
        return json.dumps(
            {
                "models": {
                    name: {"current": offer.has_current, "versions": dict.fromkeys(sorted(offer.versions), True)}
                    for name, offer in self.models.items()
                },
                "row_step_s": dict(self.row_step_s),
                "mean_row_step_s": self.mean_row_step_s or False,
            }
        )
