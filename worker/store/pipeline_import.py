"""Takes a directory that diffusers saved into the store, in today's layout and names, or says why it can't be served.

Taken: `UNet2DModel` in `unet/` or at the root, weights as safetensors, a DDPM, DDIM, PNDM or DPM-Solver++ scheduler
configuration. Old files name the attention's weights query, key, value and proj_attn (diffusers before 0.15); they get
today's names.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.store.errors import BadCheckpoint, StoreError
from worker.store.inspection import read_json_object
from worker.store.manifest import NOISE_CONFIG_PATH, PIPELINE_INDEX_PATH, UNET_CONFIG_PATH, WEIGHTS_PATH, Recipe
from worker.store.model_store import Checkpoint, ModelStore
from worker.store.safetensors_header import read_header

WEIGHTS_STEM = "diffusion_pytorch_model"
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
VARIANCE_TYPES = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
OLD_ATTENTION = re.compile(r"^(.*attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)$")
ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def import_pipeline(
    store: ModelStore,
    directory: Path,
    model: str,
    *,
    labels: Sequence[str] | None = None,
    null_label: int | None = None,
    step: int = 0,
    make_current: bool = True,
) -> Checkpoint:
    """Publish a diffusers directory as a version of `model`.

    Args:
        store: to publish in.
        directory: as `save_pretrained` leaves it: a pipeline, or a U-Net with its scheduler's configuration beside.
        model: name to publish under.
        labels: names of the classes; None numbers the rows of the class embedding, all but `null_label`.
        null_label: row of the class embedding that means "no class", if it was trained with one.
        step: training step of the weights, if known.
        make_current: serve it at once.

    Raises:
        BadCheckpoint: it can't be served, and why.
        PublishFailed: it could be, but the store could not take it.
    """
    if not directory.is_dir():
        raise StoreError(f"need a diffusers directory to import, got {str(directory)!r}")
    unet_folder = directory / "unet" if (directory / "unet").is_dir() else directory
    unet_config = _first_object(unet_folder, ("config.json",), "the U-Net's configuration")
    noise_config = _first_object(
        directory, (NOISE_CONFIG_PATH, "scheduler_config.json"), "the configuration of the noise schedule"
    )
    check_unet_config(unet_config, str(directory))
    check_noise_config(noise_config, str(directory))
    weights = _find_weights(unet_folder)
    num_classes = unet_config.get("num_class_embeds") or 0
    if not isinstance(num_classes, int) or (null_label is not None and not 0 <= null_label < num_classes):
        raise BadCheckpoint(f"{directory}: need a null label below {num_classes} (num_class_embeds), got {null_label}")
    if labels is None:
        labels = [str(index) for index in range(num_classes if null_label is None else null_label)]
    if len(labels) > num_classes:
        raise BadCheckpoint(f"{directory}: {len(labels)} labels, but the network knows {num_classes} classes")

    def write(folder: Path) -> None:
        (folder / "unet").mkdir()
        (folder / "scheduler").mkdir()
        index = {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", noise_config.get("_class_name", "DDPMScheduler")],
            "unet": ["diffusers", "UNet2DModel"],
        }
        for path, value in (
            (PIPELINE_INDEX_PATH, index),
            (UNET_CONFIG_PATH, unet_config),
            (NOISE_CONFIG_PATH, noise_config),
        ):
            (folder / path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        copy_weights(weights, folder / WEIGHTS_PATH)

    return store.publish(
        model,
        write,
        step=step,
        labels=labels,
        null_label=null_label,
        metrics={},
        recipe=Recipe(command=f"import {directory.name}", data="unknown"),
        make_current=make_current,
    )


def check_unet_config(config: Mapping[str, object], where: str) -> None:
    """Raise BadCheckpoint unless the engine can call such a U-Net."""
    channels = config.get("in_channels", 3)
    rules: list[tuple[str, object, tuple[object, ...]]] = [
        ("_class_name", config.get("_class_name", "UNet2DModel"), ("UNet2DModel",)),
        ("time_embedding_type", config.get("time_embedding_type", "positional"), ("positional",)),
        ("class_embed_type", config.get("class_embed_type"), (None,)),
        ("in_channels", channels, (1, 3, 4)),
        # Twice as many would be a learned variance.
        ("out_channels", config.get("out_channels", 3), (channels,)),
    ]
    _check_rules(rules, f"{where}: the U-Net")


def check_noise_config(config: Mapping[str, object], where: str) -> None:
    """Raise BadCheckpoint unless the samplers can follow such a schedule."""
    rules: list[tuple[str, object, tuple[object, ...]]] = [
        ("_class_name", config.get("_class_name", "DDPMScheduler"), SCHEDULERS),
        ("prediction_type", config.get("prediction_type", "epsilon"), PREDICTION_TYPES),
        ("variance_type", config.get("variance_type"), VARIANCE_TYPES),
    ]
    if config.get("trained_betas") is None:
        rules.append(("beta_schedule", config.get("beta_schedule", "linear"), BETA_SCHEDULES))
    _check_rules(rules, f"{where}: the scheduler")
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        raise BadCheckpoint(f"{where}: the scheduler: rescale_betas_zero_snr needs v_prediction or sample, got epsilon")


def copy_weights(source: Path, target: Path) -> None:
    """Copy a safetensors file byte for byte; where it has old attention names, with today's instead.

    Only the header changes then: today's linear weights hold the same bytes as the old ones, linear or 1x1
    convolutions.
    """
    try:
        tensors = read_header(source)
    except ValueError as error:
        raise BadCheckpoint(f"{source}: {error}") from error
    if not any(OLD_ATTENTION.match(name) for name in tensors):
        shutil.copyfile(source, target)
        return
    with source.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        renamed = {}
        for name, entry in header.items():
            if match := OLD_ATTENTION.match(name):
                prefix, part, kind = match.groups()
                name = f"{prefix}{ATTENTION_NAMES[part]}.{kind}"
                if name in header:
                    raise BadCheckpoint(f"{source}: has {name} under its old and its new name")
                if entry["shape"][2:] == [1, 1]:
                    entry = entry | {"shape": entry["shape"][:2]}
            renamed[name] = entry
        text = json.dumps(renamed, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the tensors' bytes begin aligned
        with target.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(file, out)


def _check_rules(rules: Sequence[tuple[str, object, tuple[object, ...]]], where: str) -> None:
    for key, found, served in rules:
        if found not in served:
            raise BadCheckpoint(f"{where}: need {key} {' or '.join(map(str, served))}, got {found!r}")


def _first_object(folder: Path, paths: Sequence[str], what: str) -> dict[str, object]:
    for path in paths:
        if (folder / path).is_file():
            return read_json_object(folder, path, str(folder))
    raise BadCheckpoint(f"{folder}: lacks {what} ({' or '.join(paths)})")


def _find_weights(folder: Path) -> Path:
    exact = folder / f"{WEIGHTS_STEM}.safetensors"
    if exact.is_file():
        return exact
    if (folder / f"{WEIGHTS_STEM}.safetensors.index.json").is_file():
        raise BadCheckpoint(f"{folder}: the weights are in several files; save them in one")
    variants = sorted(folder.glob(f"{WEIGHTS_STEM}.*.safetensors"))
    if len(variants) == 1:
        return variants[0]
    if variants:
        raise BadCheckpoint(f"{folder}: which weights are meant? {', '.join(path.name for path in variants)}")
    if pickles := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.ckpt")):
        raise BadCheckpoint(
            f"{folder}: {pickles[0].name} is a pickle, which can run code; save the weights as safetensors"
        )
    raise BadCheckpoint(f"{folder}: lacks {exact.name}")
