"""What a refiner, which ends the chains of a Stable Diffusion XL model, must look like beside it. Loads no torch."""

from collections.abc import Mapping
from pathlib import Path

from worker.store.denoiser_config import Config, read_denoiser_config
from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.text_rules import text_width

REFINER_UNET = "refiner_unet"
REFINER_ENCODER, REFINER_TOKENIZER = "refiner_text_encoder_2", "refiner_tokenizer_2"
"""Of a refiner whose text encoder is not the model's second one, which it reads otherwise."""
REFINER_PARTS = (REFINER_UNET, REFINER_ENCODER, REFINER_TOKENIZER)
"""Components that end the chains of another model."""

NOISE_KEYS: Config = {
    "num_train_timesteps": 1000,
    "beta_start": None,
    "beta_end": None,
    "beta_schedule": None,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
"""What a scheduler says of the noise that its network was trained on, and what it means where that is left out."""


def refiner_text_parts(components: Mapping[str, object]) -> tuple[str, str]:
    """The text encoder that the refiner reads, and its tokenizer."""
    return (REFINER_ENCODER, REFINER_TOKENIZER) if REFINER_ENCODER in components else ("text_encoder_2", "tokenizer_2")


def check_refiner(folder: Path, components: Mapping[str, str], where: str) -> None:
    """Raise BadCheckpoint unless the refiner among the components of a pipeline directory can end its chains.

    Args:
        components: name → class.
    """
    if REFINER_UNET not in components:
        found = " and ".join(sorted(components.keys() & set(REFINER_PARTS)))
        raise BadCheckpoint(f"{where}: {found} without a {REFINER_UNET}")
    if len(components.keys() & {REFINER_ENCODER, REFINER_TOKENIZER}) == 1:
        raise BadCheckpoint(f"{where}: {REFINER_ENCODER} and {REFINER_TOKENIZER} need each other")
    if missing := sorted({"vae", "text_encoder", "text_encoder_2"} - components.keys()):
        raise BadCheckpoint(f"{where}: a refiner goes with a Stable Diffusion XL model, which lacks {missing[0]}")
    encoder, tokenizer = refiner_text_parts(components)
    width = text_width(folder, encoder, tokenizer, where)
    unet, refiner, encoding = (
        read_json_object(folder, f"{name}/config.json", where) for name in ("unet", REFINER_UNET, encoder)
    )
    check_networks(unet, refiner, width, encoding, where)


def check_networks(unet: Config, refiner: Config, width: int, encoding: Config, where: str) -> None:
    """Raise BadCheckpoint unless a refiner's U-Net goes on with what the other denoises.

    Args:
        width, encoding: of the states of the text encoder that the refiner reads, and its configuration.
    """
    first, second = (read_denoiser_config("UNet2DConditionModel", config) for config in (unet, refiner))
    if first.picture_channels or second.picture_channels:
        raise BadCheckpoint(f"{where}: a refiner goes with U-Nets of 4 in_channels, not with one that reads a mask")
    if first.channels != second.channels:
        raise BadCheckpoint(
            f"{where}: the refiner denoises {second.channels} channels, the U-Net before it {first.channels}"
        )
    if second.text_width != width:
        raise BadCheckpoint(
            f"{where}: the refiner reads text of width {second.text_width!r}, its text encoder writes {width!r}"
        )
    pooled = encoding.get("projection_dim", 512)  # CLIPTextConfig's default
    if second.added_width is None or not isinstance(pooled, int):
        raise BadCheckpoint(f"{where}: need a refiner with addition_embed_type text_time")
    try:
        second.reads_score(pooled)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{where}: the refiner: {error}") from error


def check_same_noise(noise: Config, refiner: Config, where: str) -> None:
    """Raise BadCheckpoint unless the refiner was trained on the noise of the model whose chains it ends."""
    for key, default in NOISE_KEYS.items():
        found, wanted = (config.get(key) or default for config in (refiner, noise))
        if found != wanted:
            raise BadCheckpoint(f"{where}: the refiner's scheduler: need {key} {wanted!r} as the model, got {found!r}")
