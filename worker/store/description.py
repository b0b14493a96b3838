"""Writes the manifest of a finished pipeline directory, if it is a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from worker.store.component_rules import RULES, check_fit, check_system, check_variance, denoiser_of
from worker.store.durable_files import hash_file
from worker.store.errors import BadCheckpoint
from worker.store.inspection import check_structure, files_below, first_problem, image_shape
from worker.store.json_files import read_json_object
from worker.store.manifest import (
    NOISE_CONFIG_PATH,
    PIPELINE_INDEX_PATH,
    Component,
    GoldenOutput,
    Manifest,
    Recipe,
    RequestDefaults,
    component_sha256,
    identity_sha256,
    version_name,
)
from worker.store.pipeline_index import read_index


@dataclass(frozen=True, slots=True)
class Details:
    """What only the publisher of a version knows; see `Manifest` for the fields."""

    step: int
    recipe: Recipe
    labels: Sequence[str] = ()
    null_label: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    request_defaults: RequestDefaults | None = None
    example_prompts: Sequence[str] = ()
    golden: GoldenOutput | None = None


def describe(folder: Path, model: str, details: Details, created_at: datetime) -> Manifest:
    """The manifest of the pipeline directory in `folder`. Raises BadCheckpoint when it is no whole checkpoint."""
    found = files_below(folder, model)
    if missing := [path for path in (PIPELINE_INDEX_PATH, NOISE_CONFIG_PATH) if path not in found]:
        raise BadCheckpoint(f"{model}: {', '.join(missing)} missing")
    index = read_index(folder, model)
    check_system(index.components, model)
    check_structure(folder, index.components, model)
    check_fit(folder, index.components, model)
    denoiser = denoiser_of(index.components, model)
    config, noise = (read_json_object(folder, path, model) for path in (f"{denoiser}/config.json", NOISE_CONFIG_PATH))
    check_variance(index.components[denoiser], config, noise, model)
    height, width, channels = image_shape(folder, model)
    files = {path: hash_file(folder / path) for path in found}
    components = {
        name: Component(library=RULES[class_name].library, class_name=class_name, sha256=component_sha256(name, files))
        for name, class_name in index.components.items()
    }
    weights_sha256 = identity_sha256(components, files)
    try:
        return Manifest(
            model=model,
            version=version_name(details.step, weights_sha256),
            step=details.step,
            created_at=created_at,
            labels=list(details.labels),
            null_label=details.null_label,
            width=width,
            height=height,
            channels=channels,
            metrics=dict(details.metrics),
            weights_sha256=weights_sha256,
            components=components,
            absent=[name for name in index.absent if name not in details.skipped],
            skipped=list(details.skipped),
            files=files,
            recipe=details.recipe,
            request_defaults=details.request_defaults or RequestDefaults(),
            example_prompts=list(details.example_prompts),
            golden=details.golden,
        )
    except ValidationError as error:
        raise BadCheckpoint(f"{model}: {first_problem(error)}") from error
