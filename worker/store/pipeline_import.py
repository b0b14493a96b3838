"""Takes a directory that diffusers saved into the store, in today's layout and names, or says why it can't be served.

Taken: the systems and classes of `component_rules`, weights as safetensors in one file or several. A U-Net with a
scheduler's configuration but without `model_index.json` is taken too, in `unet/` or at the root.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from worker.store.component_rules import (
    SAFETY_PARTS,
    SKIPPED,
    check_fit,
    check_system,
    check_variance,
    denoiser_of,
    is_refiner,
)
from worker.store.denoiser_config import read_denoiser_config
from worker.store.errors import BadCheckpoint, StoreError
from worker.store.manifest import PIPELINE_INDEX_PATH, Recipe, RequestDefaults
from worker.store.model_store import Checkpoint, ModelStore
from worker.store.pipeline_index import FLAGS, PipelineIndex, read_index, write_index
from worker.store.pipeline_parts import Part, read_part, write_part
from worker.store.refiner_import import read_refiner
from worker.store.refiner_rules import REFINER_PARTS

WITHOUT_PRK = ("StableDiffusionInpaintPipeline",)
"""diffusers' classes that set skip_prk_steps."""


def import_pipeline(
    store: ModelStore,
    directory: Path,
    model: str,
    *,
    labels: Sequence[str] | None = None,
    null_label: int | None = None,
    step: int = 0,
    variant: str | None = None,
    safety_checker: bool = False,
    refiner: Path | None = None,
    request_defaults: RequestDefaults | None = None,
    example_prompts: Sequence[str] = (),
    make_current: bool = True,
    source: str | None = None,
) -> Checkpoint:
    """Publish a diffusers directory as a version of `model`.

    Args:
        store: to publish in.
        directory: as `save_pretrained` leaves it: a pipeline, or a U-Net with its scheduler's configuration beside.
        model: name to publish under.
        labels: names of the classes; None takes the index's, or numbers the rows of the class embedding, all but
            `null_label`.
        null_label: row of the class embedding that means "no class", if it was trained with one; None: that of the
            network's kind, which for a DiT is the last one.
        step: training step of the weights, if known.
        variant: of the weights, for example `fp16`; None: those without one, or the only one there is.
        safety_checker: take it along, if the directory brings one.
        refiner: a directory of Stable Diffusion XL's refiner, to end the chains of such a model; None: the one that the
            directory brings, as a published version does, or none.
        request_defaults: for requests that name nothing else.
        example_prompts: to try it with.
        make_current: serve it at once.
        source: what the manifest says was imported; None: the directory's name.

    Raises:
        BadCheckpoint: it can't be served, and why.
        PublishFailed: it could be, but the store could not take it.
    """
    if not directory.is_dir():
        raise StoreError(f"need a diffusers directory to import, got {str(directory)!r}")
    where = str(directory)
    if (directory / PIPELINE_INDEX_PATH).is_file():
        index = read_index(directory, where, SKIPPED - set(SAFETY_PARTS) if safety_checker else SKIPPED)
        folders = {name: directory / name for name in index.components}
    else:
        index, folders = _bare_unet(directory)
    check_system(index.components, where)
    parts = [read_part(name, kind, folders[name], where, variant) for name, kind in index.components.items()]
    components = {part.name: part.class_name for part in parts}
    check_system(components, where)
    check_fit(directory, components, where)
    parts = [_without_prk(part, index.class_name, where) for part in parts]
    flags = {name: value for name, value in index.flags.items() if name in FLAGS}
    if refiner is not None:
        parts = [part for part in parts if part.name not in REFINER_PARTS]
        added, its_flags = read_refiner(refiner, parts, variant)
        parts, flags = [*parts, *added], {**flags, **its_flags}
        components = {part.name: part.class_name for part in parts}
        check_system(components, where)
    by_name = {part.name: part for part in parts}
    denoiser, noise = by_name[denoiser_of(components, where)], by_name["scheduler"]
    check_variance(denoiser.class_name, denoiser.config, noise.config, where)
    network = read_denoiser_config(denoiser.class_name, denoiser.config)
    null_label = network.null_label if null_label is None else null_label
    labels = _labels(network.num_classes, labels or index.labels or None, null_label, where)
    beside = "" if refiner is None else f" --refiner {refiner.name}"

    def write(folder: Path) -> None:
        for part in parts:
            write_part(part, folder / part.name)
        absent = {*index.absent, *index.skipped}
        unchecked = {"requires_safety_checker": False} if "safety_checker" in absent else {}
        pipeline = _pipeline_of(components, inpaints=network.picture_channels > 0)
        write_index(folder, pipeline, components, absent, flags | unchecked, index.labels)

    return store.publish(
        model,
        write,
        step=step,
        labels=labels,
        null_label=null_label,
        skipped=index.skipped,
        recipe=Recipe(command=f"import {source or directory.name}{beside}", data="unknown"),
        request_defaults=request_defaults,
        example_prompts=example_prompts,
        make_current=make_current,
    )


def _pipeline_of(components: Mapping[str, str], *, inpaints: bool) -> str:
    """diffusers' class that opens a directory of these components."""
    if "transformer" in components:
        return "DiTPipeline"
    if components["unet"] == "UNet2DModel":
        return "DDPMPipeline"
    if is_refiner(components):
        return "StableDiffusionXLImg2ImgPipeline"
    family = "StableDiffusionXL" if "text_encoder_2" in components else "StableDiffusion"
    return f"{family}{'Inpaint' if inpaints else ''}Pipeline"


def _bare_unet(directory: Path) -> tuple[PipelineIndex, dict[str, Path]]:
    """The components of a directory without an index, and their folders."""
    where = str(directory)
    unet = directory / "unet" if (directory / "unet").is_dir() else directory
    scheduler = directory / "scheduler" if (directory / "scheduler").is_dir() else directory
    if not (unet / "config.json").is_file():
        raise BadCheckpoint(f"{where}: lacks the U-Net's configuration (config.json)")
    if not (scheduler / "scheduler_config.json").is_file():
        raise BadCheckpoint(f"{where}: lacks the configuration of the noise schedule (scheduler_config.json)")
    return PipelineIndex({"unet": "UNet2DModel", "scheduler": "DDPMScheduler"}), {"unet": unet, "scheduler": scheduler}


def _without_prk(part: Part, pipeline: str | None, where: str) -> Part:
    """A `PNDMScheduler` draws as PLMS here, which is what it does without its Runge-Kutta steps alone.

    The inpainting pipelines turn them off whatever the file says; what is written then says so too.
    """
    if part.config.get("_class_name") != "PNDMScheduler" or part.config.get("skip_prk_steps", False):
        return part
    if pipeline in WITHOUT_PRK:
        return replace(part, config={**part.config, "skip_prk_steps": True})
    raise BadCheckpoint(
        f"{where}: the scheduler: need skip_prk_steps true of a PNDMScheduler: its Runge-Kutta steps are not offered"
    )


def _labels(num_classes: int, labels: Sequence[str] | None, null_label: int | None, where: str) -> Sequence[str]:
    """Names of the classes, numbered where there are none."""
    if null_label is not None and not 0 <= null_label < num_classes:
        raise BadCheckpoint(f"{where}: need a null label below {num_classes} (num_class_embeds), got {null_label}")
    if labels is None:
        return [str(index) for index in range(num_classes if null_label is None else null_label)]
    if len(labels) > num_classes:
        raise BadCheckpoint(f"{where}: {len(labels)} labels, but the network knows {num_classes} classes")
    return labels
