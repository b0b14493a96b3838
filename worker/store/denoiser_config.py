"""What the configuration of a served U-Net or Transformer may say, for import, publishing and the networks alike.

Serving more is a value in `SUPPORTED`, and the code in `worker/networks/` that acts on it. Loads no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.store.errors import BadCheckpoint

Config = Mapping[str, object]
Rule = tuple[str, object, Sequence[object]]
"""(key, value found, values supported)"""

CHANNELS = (1, 3, 4)
"""Of images: grey, RGB, RGB with alpha."""

INPAINTING_CHANNELS = 9
"""Of an inpainting U-Net's input: four of the latent, one of the mask, four of the masked picture's latent."""

SUPPORTED: Mapping[str, Mapping[str, tuple[object, Sequence[object]]]] = {
    "UNet2DModel": {
        "in_channels": (3, CHANNELS),
        "out_channels": (3, CHANNELS),
        "time_embedding_type": ("positional", ("positional",)),
        "class_embed_type": (None, (None,)),
    },
    "UNet2DConditionModel": {
        "in_channels": (4, (*CHANNELS, INPAINTING_CHANNELS)),
        "out_channels": (4, CHANNELS),
        "time_embedding_type": ("positional", ("positional",)),
        "time_cond_proj_dim": (None, (None,)),
        "class_embed_type": (None, (None,)),
        "num_class_embeds": (None, (None,)),
        # "text" adds the pooled text to the embedding of the timestep, "text_time" also sizes and crops.
        "addition_embed_type": (None, (None, "text", "text_time")),
        "encoder_hid_dim_type": (None, (None,)),
        "encoder_hid_dim": (None, (None,)),
    },
    "DiTTransformer2DModel": {
        "in_channels": (4, CHANNELS),
        "out_channels": (None, CHANNELS),
        "norm_type": ("ada_norm_zero", ("ada_norm_zero",)),
    },
}
"""By diffusers' class and key: diffusers' default, and the values that can be served."""

DIVISIBLE = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "CrossAttnDownBlock2D",
    "UpBlock2D",
    "AttnUpBlock2D",
    "CrossAttnUpBlock2D",
)
"""Classes of blocks that can be run in part."""
SHALLOW_LAYERS = 2
"""Of the last block, those that run in every step; of the first one, one less."""

SIZED_IDS, SCORED_IDS = 6, 5
"""How many time ids a U-Net with `text_time` reads: sizes and a crop, or an aesthetic score in place of one size."""
DEFAULT_TEXT_WIDTH = 1280
"""diffusers' `cross_attention_dim`."""


@dataclass(frozen=True, slots=True)
class DenoiserConfig:
    """What the service reads of a denoiser's configuration, with diffusers' defaults filled in.

    Attributes:
        channels: of its state, and of what it predicts.
        picture_channels: of its input beside the state, a mask and a masked picture; 0: it has no such.
        predicts_variance: whether its output has as many again, the variance's.
        num_classes: rows of its class embedding.
        text_width: of the hidden states that it reads; None: it reads no text.
        multiple: of which each side of its state must be one.
        added_width: of what it reads beside the hidden states (`text_time`); None: nothing.
        time_id_width: of that, how wide each number of pixels is.
        only_size: height and width of the only states that it denoises; None: it takes any size.
        null_label: the row of the class embedding that stands for no class in every network of its kind.
    """

    channels: int
    predicts_variance: bool
    num_classes: int
    text_width: int | None
    multiple: int
    added_width: int | None = None
    time_id_width: int = 0
    only_size: int | None = None
    null_label: int | None = None
    picture_channels: int = 0

    def reads_score(self, pooled_width: int) -> bool:
        """Whether it reads how well an image is to please in place of its target size, as a refiner does.

        Args:
            pooled_width: of the text as a whole, which it reads beside its time ids.

        Raises:
            BadCheckpoint: what it reads is neither.
        """
        counts = {pooled_width + count * self.time_id_width: count for count in (SIZED_IDS, SCORED_IDS)}
        if self.added_width not in counts:
            raise BadCheckpoint(
                f"need projection_class_embeddings_input_dim {' or '.join(map(str, counts))}, got {self.added_width}"
            )
        return counts[self.added_width] == SCORED_IDS


def read_denoiser_config(class_name: str, config: Config) -> DenoiserConfig:
    """Check the configuration of a network of a class in `SUPPORTED`. Raises BadCheckpoint naming the key."""
    found = {key: (config.get(key, default), values) for key, (default, values) in SUPPORTED[class_name].items()}
    in_channels = config.get("in_channels", SUPPORTED[class_name]["in_channels"][0])
    inpaints = in_channels == INPAINTING_CHANNELS and class_name == "UNet2DConditionModel"
    channels = (INPAINTING_CHANNELS - 1) // 2 if inpaints else in_channels
    with_variance = 2 * channels if isinstance(channels, int) else channels
    out_channels = channels if found["out_channels"][0] is None else found["out_channels"][0]
    found["out_channels"] = (out_channels, (channels, with_variance))
    check_rules([(key, value, values) for key, (value, values) in found.items()])
    assert isinstance(channels, int), "one of CHANNELS"
    if class_name == "DiTTransformer2DModel":
        return _read_transformer(config, channels, predicts_variance=out_channels != channels)
    classes = config.get("num_class_embeds") or 0
    if not isinstance(classes, int):
        raise BadCheckpoint(f"need num_class_embeds as a whole number, got {classes!r}")
    text_width = None
    if class_name == "UNet2DConditionModel":
        width = config.get("cross_attention_dim", DEFAULT_TEXT_WIDTH)
        if not isinstance(width, int):
            raise BadCheckpoint(f"need one number for cross_attention_dim, got {width!r}")
        text_width = width
    levels = config.get("block_out_channels", [64])
    if not isinstance(levels, list | tuple) or not levels:
        raise BadCheckpoint(f"need block_out_channels as a list, got {levels!r}")
    # A conditional one brings each level back to the size that it had on the way down, odd ones too.
    multiple = 1 if class_name == "UNet2DConditionModel" else 2 ** (len(levels) - 1)
    predicts_variance = out_channels != channels
    beside = INPAINTING_CHANNELS - channels if inpaints else 0
    if config.get("addition_embed_type") != "text_time":
        return DenoiserConfig(channels, predicts_variance, classes, text_width, multiple, picture_channels=beside)
    added, time_id = config.get("projection_class_embeddings_input_dim"), config.get("addition_time_embed_dim")
    if not (isinstance(added, int) and isinstance(time_id, int)):
        raise BadCheckpoint(
            "need projection_class_embeddings_input_dim and addition_time_embed_dim as whole numbers with text_time, "
            f"got {added!r} and {time_id!r}"
        )
    return DenoiserConfig(
        channels, predicts_variance, classes, text_width, multiple, added, time_id, picture_channels=beside
    )


def _read_transformer(config: Config, channels: int, *, predicts_variance: bool) -> DenoiserConfig:
    """Of a DiT. Peebles & Xie 2023. Its position embedding is of one size, and its output always a square."""
    numbers = {
        key: config.get(key, default)
        for key, default in (("num_embeds_ada_norm", 1000), ("patch_size", 2), ("sample_size", 32))
    }
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadCheckpoint(f"need {key} as a whole number above 0, got {value!r}")
    classes, patch, size = (int(str(value)) for value in numbers.values())
    if size % patch:
        raise BadCheckpoint(f"need a sample_size that is a multiple of patch_size, got {size} and {patch}")
    return DenoiserConfig(
        channels,
        predicts_variance,
        num_classes=classes + 1,  # diffusers always makes a row more, for rows without their label
        text_width=None,
        multiple=patch,
        only_size=size,
        null_label=classes,
    )


def feature_channels(config: Config) -> int | None:
    """Of the deep features that can be reused, with which the last `SHALLOW_LAYERS` begin; None of a network that can't
    be divided there."""
    levels, layers = config.get("block_out_channels"), config.get("layers_per_block", 2)
    down, up = config.get("down_block_types"), config.get("up_block_types")
    if not all(isinstance(each, list | tuple) and len(each) > 1 for each in (levels, down, up)):
        return None
    assert isinstance(levels, list | tuple)
    assert isinstance(down, list | tuple)
    assert isinstance(up, list | tuple)
    layers = layers[0] if isinstance(layers, list | tuple) and layers else layers
    if not (isinstance(layers, int) and down[0] in DIVISIBLE and up[-1] in DIVISIBLE):
        return None
    # The last block has one layer more than the first, and the first of its layers begins with the block before it.
    channels = levels[0] if layers + 1 > SHALLOW_LAYERS else levels[1]
    return channels if isinstance(channels, int) else None


def check_rules(rules: Sequence[Rule]) -> None:
    """Raise BadCheckpoint for the first value that is not supported."""
    for key, found, supported in rules:
        if found not in supported:
            raise BadCheckpoint(f"need {key} {' or '.join(map(str, supported))}, got {found!r}")
