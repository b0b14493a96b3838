"""What each class of component must look like on disk, and which components make a system. Loads no torch.

Adding a class of component is a row of `RULES`; adding a system is a row of `SYSTEMS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from worker.store.denoiser_config import SUPPORTED, Config, Rule, check_rules, read_denoiser_config
from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.refiner_rules import REFINER_ENCODER, REFINER_PARTS, REFINER_TOKENIZER, REFINER_UNET, check_refiner
from worker.store.super_resolution import (
    LEG_NAME,
    NETWORK_CLASS,
    SUPER_RESOLUTION,
    SUPER_RESOLUTION_PARTS,
    check_cascade,
    check_super_resolution,
)
from worker.store.text_rules import text_width
from worker.store.vae_config import read_vae_config
from worker.store.weight_files import check_weights

U_NETS = ("UNet2DModel", "UNet2DConditionModel")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
LEARNED_RANGE = "learned_range"
"""The network predicts the variance, between the two that DDPM derives, in a second half of its channels."""
VARIANCE_TYPES = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", LEARNED_RANGE)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ComponentRule:
    """How one class of component is kept and what its configuration may say.

    Attributes:
        library: whose class it is.
        folders: the names that such a component may have in a pipeline.
        config: its configuration file.
        weights: name of its weights without suffix; None for a component without weights.
        files: further files that belong to it, as far as they are there.
        any_of: of each group, all files of at least one member must be there.
        check: raises BadCheckpoint for a configuration that can't be served.
    """

    library: str
    folders: tuple[str, ...]
    config: str
    weights: str | None
    check: Callable[[Config, str], None]
    files: tuple[str, ...] = ()
    any_of: tuple[tuple[str, ...], ...] = ()


def denoiser_folder(class_name: str) -> str:
    """Name of the component that is denoised with, by its class."""
    return "unet" if class_name in U_NETS else "transformer"


def denoiser_of(components: Mapping[str, str], where: str) -> str:
    """Name of the component that is denoised with. Raises BadCheckpoint where there is none."""
    found = [name for name in ("unet", "transformer") if name in components]
    if len(found) != 1:
        raise BadCheckpoint(f"{where}: need one component unet or transformer, got {' and '.join(found) or 'neither'}")
    return found[0]


def check_unet(class_name: str, config: Config, where: str) -> None:
    """Raise BadCheckpoint unless the network can be called and guided."""
    try:
        read_denoiser_config(class_name, config)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{where}: the {'U-Net' if class_name in U_NETS else 'Transformer'}: {error}") from error


def check_vae(config: Config, where: str) -> None:
    """Raise BadCheckpoint unless images can be decoded with it."""
    try:
        read_vae_config(config)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{where}: the VAE: {error}") from error


def check_noise_config(config: Config, where: str) -> None:
    """Raise BadCheckpoint unless the samplers can follow such a noise schedule."""
    rules: list[Rule] = [
        ("_class_name", config.get("_class_name", "DDPMScheduler"), SCHEDULERS),
        ("prediction_type", config.get("prediction_type", "epsilon"), PREDICTION_TYPES),
        ("variance_type", config.get("variance_type"), VARIANCE_TYPES),
        ("timestep_type", config.get("timestep_type", "discrete"), ("discrete",)),
        ("interpolation_type", config.get("interpolation_type", "linear"), ("linear",)),
    ]
    if config.get("trained_betas") is None:
        rules.append(("beta_schedule", config.get("beta_schedule", "linear"), BETA_SCHEDULES))
    try:
        check_rules(rules)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{where}: the scheduler: {error}") from error
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        raise BadCheckpoint(f"{where}: the scheduler: rescale_betas_zero_snr needs v_prediction or sample, got epsilon")


def check_nothing(config: Config, where: str) -> None:
    """For a component whose configuration the code that loads it checks."""


SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "LCMScheduler",
)  # fmt: skip
_scheduler = ComponentRule(
    "diffusers", ("scheduler", *SUPER_RESOLUTION_PARTS[1:]), "scheduler_config.json", None, check_noise_config
)
_tokenizer = ComponentRule(
    "transformers",
    ("tokenizer", "tokenizer_2", REFINER_TOKENIZER),
    "tokenizer_config.json",
    None,
    check_nothing,
    files=TOKENIZER_FILES,
    any_of=(("tokenizer.json",), ("vocab.json", "merges.txt")),
)

RULES: Mapping[str, ComponentRule] = {
    "AutoencoderKL": ComponentRule("diffusers", ("vae",), "config.json", "diffusion_pytorch_model", check_vae),
    "CLIPTextModel": ComponentRule("transformers", ("text_encoder",), "config.json", "model", check_nothing),
    "CLIPTextModelWithProjection": ComponentRule(
        "transformers", ("text_encoder_2", REFINER_ENCODER), "config.json", "model", check_nothing
    ),
    "StableDiffusionSafetyChecker": ComponentRule(
        "stable_diffusion", ("safety_checker",), "config.json", "model", check_nothing
    ),
    **dict.fromkeys(
        ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor"),
        ComponentRule("transformers", ("feature_extractor",), "preprocessor_config.json", None, check_nothing),
    ),
    "CLIPTokenizer": _tokenizer,
    "CLIPTokenizerFast": _tokenizer,
    **{
        name: ComponentRule(
            "diffusers",
            (denoiser_folder(name), *((REFINER_UNET,) if name == "UNet2DConditionModel" else ())),
            "config.json",
            "diffusion_pytorch_model",
            partial(check_unet, name),
        )
        for name in SUPPORTED
    },
    **dict.fromkeys(SCHEDULERS, _scheduler),
}

LATER_LEGS: Mapping[str, Mapping[str, ComponentRule]] = {
    SUPER_RESOLUTION: {
        NETWORK_CLASS: ComponentRule(
            "diffusers",
            (SUPER_RESOLUTION,),
            "config.json",
            "diffusion_pytorch_model",
            check_super_resolution,
            files=(LEG_NAME,),
            any_of=((LEG_NAME,),),
        )
    }
}
"""Name of the network of a later leg → the rules for its classes, which are not those that the class has as a first
leg's."""

SAFETY_CHECKER = "safety_checker"
SAFETY_PARTS = (SAFETY_CHECKER, "feature_extractor")
"""The checker, and what makes its input of an image."""

SYSTEMS: Mapping[str, frozenset[str]] = {
    "UNet2DModel": frozenset({"unet", "scheduler"}),
    "UNet2DConditionModel": frozenset({"unet", "scheduler", "text_encoder", "tokenizer"}),
    "DiTTransformer2DModel": frozenset({"transformer", "scheduler"}),
}
"""Class of the denoiser → the components that the system consists of."""
REFINER = frozenset({"unet", "scheduler", "vae", "text_encoder_2", "tokenizer_2"})
"""Those of Stable Diffusion XL's refiner as a model of its own, which reads the second encoder alone."""
OPTIONAL: Mapping[str, frozenset[str]] = {
    "UNet2DModel": frozenset(SUPER_RESOLUTION_PARTS),
    "UNet2DConditionModel": frozenset(
        {"vae", "text_encoder_2", "tokenizer_2", *SAFETY_PARTS, *REFINER_PARTS, *SUPER_RESOLUTION_PARTS}
    ),
    "DiTTransformer2DModel": frozenset({"vae", *SUPER_RESOLUTION_PARTS}),
}
"""Class of the denoiser → what it may be with or without: an autoencoder, a second text encoder, a second leg."""
TEXT_PARTS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
"""Which tokenizer goes with which encoder, in the order in which a network reads their states."""

SKIPPED = frozenset({*SAFETY_PARTS, "image_encoder"})
"""Components that a pipeline may bring and that no system needs; they are not taken, and `/models` says so. The safety
checker is when the import asks for it."""


def check_files(folder: Path, name: str, class_name: str, where: str) -> None:
    """Raise BadCheckpoint unless the files of a component are there and its weights whole."""
    rule, place = rule_for(name, class_name, where), f"{where}: {name}"
    if not (folder / name / rule.config).is_file():
        raise BadCheckpoint(f"{place}/{rule.config} is missing")
    if rule.any_of and not any(all((folder / name / file).is_file() for file in group) for group in rule.any_of):
        raise BadCheckpoint(f"{place} needs {' or '.join(' and '.join(group) for group in rule.any_of)}")
    if rule.weights is not None:
        check_weights(folder / name, rule.weights, place)


def rule_for(name: str, class_name: str, where: str) -> ComponentRule:
    """The rule for component `name` of a class. Raises BadCheckpoint when no system has such a component."""
    rules = LATER_LEGS.get(name, RULES)
    supported = [each for each, rule in rules.items() if name in rule.folders]
    if not supported:
        raise BadCheckpoint(f"{where}: can't take {name} ({class_name}): no supported system has such a component")
    if class_name not in supported:
        raise BadCheckpoint(f"{where}: {name}: need {' or '.join(supported)}, got {class_name!r}")
    return rules[class_name]


def is_refiner(components: Mapping[str, str]) -> bool:
    """Whether they are those of Stable Diffusion XL's refiner as a model of its own."""
    reads_text = components.get("unet") == "UNet2DConditionModel" and "text_encoder_2" in components
    return reads_text and components.keys().isdisjoint({"text_encoder", "tokenizer"})


def check_system(components: Mapping[str, str], where: str) -> None:
    """Raise BadCheckpoint unless the components (name → class) make one of `SYSTEMS`."""
    denoiser = components[denoiser_of(components, where)]
    needed = REFINER if is_refiner(components) else SYSTEMS[denoiser]
    if missing := sorted(needed - components.keys()):
        raise BadCheckpoint(f"{where}: a pipeline with {denoiser} lacks {', '.join(missing)}")
    if extra := sorted(components.keys() - needed - OPTIONAL.get(denoiser, frozenset())):
        raise BadCheckpoint(f"{where}: can't take {', '.join(extra)}: not supported beside {denoiser}")


def check_variance(denoiser: str, config: Config, noise: Config, where: str) -> None:
    """Raise BadCheckpoint where a scheduler takes a variance from its network (a class and its configuration) and that
    predicts none."""
    if noise.get("variance_type") != LEARNED_RANGE:
        return
    unet = read_denoiser_config(denoiser, config)
    if not unet.predicts_variance:
        raise BadCheckpoint(
            f"{where}: variance_type {LEARNED_RANGE} needs a network of {2 * unet.channels} out_channels, twice its "
            f"in_channels, got {unet.channels}"
        )


def check_fit(folder: Path, components: Mapping[str, str], where: str) -> None:
    """Raise BadCheckpoint unless tokenizers, text encoders, U-Net and autoencoder fit each other."""
    if len(components.keys() & set(SAFETY_PARTS)) == 1:
        raise BadCheckpoint(f"{where}: {' and '.join(SAFETY_PARTS)} need each other")
    check_cascade(folder, components, denoiser_of(components, where), where)
    if components.keys() & set(REFINER_PARTS):
        check_refiner(folder, components, where)
    encoders = [encoder for encoder, _ in TEXT_PARTS if encoder in components]
    if not encoders and "vae" not in components:
        return
    denoiser = denoiser_of(components, where)
    unet = read_json_object(folder, f"{denoiser}/config.json", where)
    network = read_denoiser_config(components[denoiser], unet)
    if "vae" in components:
        latent_channels = read_vae_config(read_json_object(folder, "vae/config.json", where)).latent_channels
        if network.channels != latent_channels:
            raise BadCheckpoint(
                f"{where}: the network denoises {network.channels} channels, the VAE's latents have {latent_channels}"
            )
    if not encoders:
        return
    if "vae" not in components and network.picture_channels:
        raise BadCheckpoint(f"{where}: a U-Net of 9 in_channels needs a vae")
    parts = [(encoder, tokenizer) for encoder, tokenizer in TEXT_PARTS if {encoder, tokenizer} & components.keys()]
    for encoder, tokenizer in parts:
        if missing := {encoder, tokenizer} - components.keys():
            raise BadCheckpoint(f"{where}: lacks {missing.pop()}")
    if (unet.get("addition_embed_type") == "text_time") != ("text_encoder_2" in components):
        raise BadCheckpoint(f"{where}: a U-Net with addition_embed_type text_time and a text_encoder_2 need each other")
    width = sum(text_width(folder, encoder, tokenizer, where) for encoder, tokenizer in parts)
    if (wanted := network.text_width) != width:
        many = "the text encoders write" if len(parts) > 1 else "the text encoder writes"
        raise BadCheckpoint(f"{where}: the U-Net reads text of width {wanted!r}, {many} {width!r}")
