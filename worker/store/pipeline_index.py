"""`model_index.json`: the components that a pipeline directory consists of.

Each entry `"name": ["library", "Class"]` is a component in the folder of that name; `[null, null]` means that the
pipeline could have it and this one has not. Everything else (class of the pipeline, flags) is kept and not read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from worker.store.component_rules import RULES, rule_for
from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.manifest import PIPELINE_INDEX_PATH

LABELS_KEY = "id2label"
FIRST_INPAINTING = "0.6.0"
"""The release of diffusers whose inpainting pipelines are those of today."""
ZEROS_FLAG = "force_zeros_for_empty_prompt"
"""Of Stable Diffusion XL's pipelines, true by default: zeros stand for a negative prompt that is not given."""
REFINER_ZEROS_FLAG = "refiner_force_zeros_for_empty_prompt"
"""The same of a refiner that ends the pipeline's chains; diffusers knows no such pipeline."""
SCORE_FLAG = "requires_aesthetics_score"
"""Of a refiner's own pipeline: its network reads an aesthetic score."""
FLAGS = frozenset({ZEROS_FLAG, REFINER_ZEROS_FLAG, SCORE_FLAG})
"""Those that a version keeps."""


@dataclass(frozen=True, slots=True)
class PipelineIndex:
    """The components of a pipeline.

    Attributes:
        components: name → class.
        absent: those that it could have and has not.
        skipped: those that it has and that are not taken, see `SKIPPED`.
        flags: what else it says with yes or no.
        class_name: diffusers' class of the pipeline; None where it names none.
        labels: of DiT's pipelines (`id2label`), names of the classes; empty where it names none.
    """

    components: Mapping[str, str]
    absent: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    flags: Mapping[str, bool] = field(default_factory=dict)
    class_name: str | None = None
    labels: tuple[str, ...] = ()


def read_index(folder: Path, where: str, skipped_names: AbstractSet[str] = frozenset()) -> PipelineIndex:
    """Read the index of a pipeline directory.

    Args:
        skipped_names: components that are not taken.

    Raises:
        BadCheckpoint: it can't be read, or names a component that no supported system has.
    """
    components, absent, skipped, flags = {}, [], [], {}
    labels: tuple[str, ...] = ()
    index = read_json_object(folder, PIPELINE_INDEX_PATH, where)
    for name, entry in index.items():
        if isinstance(entry, bool):
            flags[name] = entry
        if name == LABELS_KEY and isinstance(entry, dict):
            labels = tuple(str(entry[key]) for key in sorted(entry, key=int)) if _numbered(entry) else ()
        if name.startswith("_") or not isinstance(entry, list):
            continue
        match entry:
            case [None, None]:
                absent.append(name)
            case [str(), str()] if name in skipped_names:
                skipped.append(name)
            case [str(), str(class_name)]:
                rule_for(name, class_name, where)
                components[name] = class_name
            case _:
                raise BadCheckpoint(f"{where}: {PIPELINE_INDEX_PATH}: need [library, class] for {name}, got {entry!r}")
    named = index.get("_class_name")
    pipeline = named if isinstance(named, str) else None
    return PipelineIndex(components, tuple(absent), tuple(skipped), flags, pipeline, labels)


def _numbered(entry: Mapping[str, object]) -> bool:
    return {str(number) for number in range(len(entry))} == entry.keys()


def latent_pipeline_class(folder: Path) -> str | None:
    """diffusers' class that the directory names; None where it names none or has no autoencoder.

    Raises:
        BadCheckpoint: the index can't be read.
    """
    if not (folder / PIPELINE_INDEX_PATH).is_file():
        return None
    index = read_json_object(folder, PIPELINE_INDEX_PATH, folder.name)
    has_autoencoder = isinstance(index.get("vae"), list) and index["vae"] != [None, None]
    return str(index["_class_name"]) if has_autoencoder and "_class_name" in index else None


def write_index(
    folder: Path,
    pipeline: str,
    components: Mapping[str, str],
    absent: Iterable[str] = (),
    flags: Mapping[str, bool] | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Write `model_index.json` into a pipeline directory.

    Args:
        folder: the directory that holds a folder for each component.
        pipeline: diffusers' class that opens the directory, for example `DDPMPipeline`.
        components: name → class.
        absent: components that the class of the pipeline knows and this one lacks.
        flags: further arguments of that class.
        labels: names of the classes, for DiT's.
    """
    index: dict[str, object] = {"_class_name": pipeline, **(flags or {})}
    if pipeline.endswith("InpaintPipeline"):
        index["_diffusers_version"] = FIRST_INPAINTING  # diffusers opens no inpainting pipeline without
    if labels:
        index[LABELS_KEY] = {str(number): label for number, label in enumerate(labels)}
    index |= {name: [RULES[class_name].library, class_name] for name, class_name in sorted(components.items())}
    index |= {name: [None, None] for name in sorted(absent)}
    (folder / PIPELINE_INDEX_PATH).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_cascade_index(first: Path, folder: Path, components: Mapping[str, str]) -> None:
    """Write the index of a first leg's directory into `folder`, with the components (name → class) of a second one.

    diffusers opens the directory as the first leg's pipeline, which passes over what it doesn't know, and the second
    leg's components by their folders.
    """
    index = read_json_object(first, PIPELINE_INDEX_PATH, first.name)
    index |= {name: [RULES[class_name].library, class_name] for name, class_name in sorted(components.items())}
    (folder / PIPELINE_INDEX_PATH).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_text_to_image_index(folder: Path, *, scheduler: str = "DDPMScheduler", latent: bool = False) -> None:
    """Write the index of a text-to-image model: unet, text_encoder, tokenizer, scheduler, and vae if it is `latent`.

    In pixel space it is a Stable Diffusion pipeline without an autoencoder, so that diffusers opens and runs it:
    `StableDiffusionPipeline.from_pretrained(folder, vae=None)(prompt, output_type="latent")` returns x_0 in [-1, 1].
    """
    write_index(
        folder,
        "StableDiffusionPipeline",
        {
            "unet": "UNet2DConditionModel",
            "text_encoder": "CLIPTextModel",
            "tokenizer": "CLIPTokenizer",
            "scheduler": scheduler,
        }
        | ({"vae": "AutoencoderKL"} if latent else {}),
        absent=(*(() if latent else ("vae",)), "safety_checker", "feature_extractor", "image_encoder"),
        flags={"requires_safety_checker": False},
    )
