"""Does a picture show what its prompt says? Asked of encoders that were trained on real pairs, and of its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.contrastive import DualEncoder
from training.data.emoji import BACKGROUNDS
from training.data.emoji_colours import named_colour
from training.text import CaptionTokenizer

BATCH = 256


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Share of the pictures whose prompt is the first, and among the first five, of all candidates."""

    r_at_1: float
    r_at_5: float


@torch.no_grad()
def retrieval(
    judge: DualEncoder,
    tokenizer: CaptionTokenizer,
    images: Tensor,
    prompts: Sequence[str],
    candidates: Sequence[str],
) -> Retrieval:
    """Rank the candidates for each picture.

    Args:
        judge: trained on real pairs.
        tokenizer: of the judge.
        images: [N, C, H, W] in [-1, 1].
        prompts: what each was drawn for; each is a candidate.
        candidates: all captions that it could have been.
    """
    parts = [candidates[at : at + BATCH] for at in range(0, len(candidates), BATCH)]
    texts = torch.cat([judge.embed_text(tokenizer(part)) for part in parts])
    pictures = torch.cat([judge.embed_images(part) for part in torch.split(images, BATCH)])
    scores = pictures @ texts.T  # [N, candidates]
    place = {caption: index for index, caption in enumerate(candidates)}
    own = scores.gather(1, torch.tensor([[place[prompt]] for prompt in prompts]))
    rank = (scores > own).sum(1)
    return Retrieval(float((rank < 1).double().mean()), float((rank < 5).double().mean()))


def background_of(pixels: Tensor) -> str | None:
    """The background of [H, W, 3] uint8 by the colour that the four corners share most nearly."""
    corners = torch.stack([pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]]).float()
    distances = {
        name: float((corners - torch.tensor(colour, dtype=torch.float32)).norm(dim=1).median())
        for name, colour in BACKGROUNDS.items()
    }
    return min(distances, key=lambda name: distances[name])


def colour_of(pixels: Tensor, background: str | None) -> str | None:
    """Name of the drawing's colour on [H, W, 3] uint8, the background left out; None for one without colour."""
    flat = torch.tensor(BACKGROUNDS[background], dtype=torch.float32)
    alpha = ((pixels.float() - flat).norm(dim=-1, keepdim=True) > 48).to(torch.uint8) * 255
    return named_colour(np.asarray(torch.cat([pixels, alpha], -1)))


def tint_between_seeds(pixels: Tensor) -> float:
    """How far the mean colour of a prompt's images lies from that of its other seeds, in levels of 255.

    A model that never saw pure noise reads the mean colour from the noise it begins at: the seed decides a tint.

    Args:
        pixels: [P, S, H, W, C] uint8, S seeds of each of P prompts.

    Returns:
        Standard deviation over the seeds, root of its mean square over prompts and channels.
    """
    means = pixels.double().mean((2, 3))  # [P, S, C]
    return float(means.var(dim=1, unbiased=True).mean().sqrt())
