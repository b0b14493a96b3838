"""A Transformer over patches of the image. DiT (Peebles & Xie 2023), in diffusers' class."""

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from training.errors import ConfigurationError

WIDTH_STEP = 32
"""Two of a processor's widest vectors: torch's activations round what is left over in another way, and a CPU could then
not evaluate images in batches with the bits that they have alone."""
LABEL_DEVIATION = 0.02
"""Of the initial embeddings of labels, as in the authors' code."""


def build_transformer(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int,
    depth: int,
    heads: int,
    patch: int,
    seed: int,
    dropout: float = 0.0,
    learned_variance: bool = False,
) -> DiTTransformer2DModel:
    """A Transformer with adaptive norms, freshly initialized from `seed` so that each block begins as the identity.

    Args:
        shape: (C, H, W) of what is denoised, a square.
        num_classes: at least 1; the class embedding has one row more, the last, which means "no class".
        width: channels of all blocks, a multiple of `WIDTH_STEP` and of `heads`.
        depth: blocks.
        heads: of the attention.
        patch: pixels along each side of a patch.
        seed: of the initial weights.
        dropout: in attention and feed-forward layers.
        learned_variance: its output has as many channels again, for the variance.
    """
    channels, height, image_width = shape
    if height != image_width:
        raise ConfigurationError(f"need square images for a Transformer, got {image_width}x{height}")
    if height % patch:
        raise ConfigurationError(f"need images whose sides are multiples of the patch of {patch}, got {height}")
    if width % WIDTH_STEP or width % heads:
        raise ConfigurationError(f"need a width that is a multiple of {WIDTH_STEP} and of {heads} heads, got {width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=2 * channels if learned_variance else channels,
            num_layers=depth,
            dropout=dropout,
            sample_size=height,
            patch_size=patch,
            num_embeds_ada_norm=num_classes,
        )
        for block in network.transformer_blocks:
            embedder = block.norm1.emb.class_embedder
            # Labels are dropped with the batch, one draw for all blocks; each block would draw its own here.
            embedder.dropout_prob = 0.0
            nn.init.normal_(embedder.embedding_table.weight, std=LABEL_DEVIATION)
            _zero(block.norm1.linear)
        _zero(network.proj_out_1)
        _zero(network.proj_out_2)
    return network


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
