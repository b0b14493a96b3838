"""What a run begins with: the tokenizer and the network that its configuration and its data ask for."""

from training.configuration import TrainingConfiguration
from training.data import ImageSource
from training.network import Denoiser, build_unet
from training.text import CaptionTokenizer, build_text_encoder
from training.transformer import build_transformer


def learn_tokenizer(source: ImageSource, configuration: TrainingConfiguration) -> CaptionTokenizer | None:
    if not source.captioned:
        return None
    return CaptionTokenizer.learn(source.caption_corpus(), configuration.vocabulary, configuration.tokens)


def build_denoiser(
    source: ImageSource, tokenizer: CaptionTokenizer | None, configuration: TrainingConfiguration
) -> Denoiser:
    """The network of a run, freshly initialized."""
    text_encoder = None
    if tokenizer is not None:
        text_encoder = build_text_encoder(
            tokenizer, width=configuration.text_width, layers=configuration.text_layers, seed=configuration.seed
        )
    if configuration.backbone == "dit":
        transformer = build_transformer(
            source.shape,
            len(source.label_names),
            width=configuration.width,
            depth=configuration.depth,
            heads=configuration.heads,
            patch=configuration.patch,
            dropout=configuration.dropout,
            seed=configuration.seed,
            learned_variance=configuration.learned_variance,
        )
        return Denoiser(transformer)
    unet = build_unet(
        source.shape,
        len(source.label_names),
        width=configuration.width,
        layers_per_block=configuration.layers,
        seed=configuration.seed,
        channels_by_level=configuration.channels,
        attention_px=configuration.attention,
        norm_groups=configuration.norm_groups,
        dropout=configuration.dropout,
        text_width=configuration.text_width if text_encoder is not None else None,
        learned_variance=configuration.learned_variance,
        super_resolution=configuration.super_resolution_of is not None,
    )
    return Denoiser(unet, text_encoder)
