"""Images and captions that know each other: CLIP in miniature (Radford et al. 2021).

Trained before the diffusion model, its text half is where the condition starts from: from a random start, a short
training never reads its captions. Trained with another seed, it is the judge of which caption a picture was drawn for.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from training.data import ImageSource
from training.data.examples import to_x_0
from training.randomness import generator
from training.text import CaptionTokenizer

LEARNING_RATE = 1e-3


class ImageEncoder(nn.Module):
    """[N, C, H, W] in [-1, 1] → [N, width]: four convolutions that halve, a mean over places."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = [channels, 48, 96, 144, 192]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.projection = nn.Linear(2 * sizes[-1], width)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images).flatten(2)  # [N, 192, places]
        projected: Tensor = self.projection(torch.cat([features.mean(-1), features.amax(-1)], 1))
        return projected


class DualEncoder(nn.Module):
    """A text encoder and an image encoder into one space.

    Args:
        text: its state at the end mark is projected.
        channels: of the images.
        width: of the shared space.
    """

    def __init__(self, text: CLIPTextModel, channels: int, width: int = 192) -> None:
        super().__init__()
        self.text = text
        self.text_projection = nn.Linear(text.config.hidden_size, width, bias=False)
        self.image = ImageEncoder(channels, width)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # log(1 / 0.07), as CLIP begins

    def embed_text(self, tokens: Tensor) -> Tensor:
        """[N, L] int64 → [N, width], of length 1."""
        return nn.functional.normalize(self.text_projection(self.text(tokens).pooler_output), dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """[N, C, H, W] in [-1, 1] → [N, width], of length 1."""
        return nn.functional.normalize(self.image(images), dim=-1)

    def loss(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(contrastive loss, share of the images that find their caption in the batch). Equal captions are one."""
        scores = self.log_scale.exp().clamp(max=100) * self.embed_images(images) @ self.embed_text(tokens).T
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        both = nn.functional.cross_entropy(scores, target) + nn.functional.cross_entropy(scores.T, target)
        found = same.gather(1, scores.argmax(1, keepdim=True)).mean()
        return both / 2, found


def train_dual_encoder(
    text: CLIPTextModel,
    source: ImageSource,
    tokenizer: CaptionTokenizer,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    after_step: Callable[[int, float, float], None] = lambda step, loss, found: None,
) -> DualEncoder:
    """Train on pairs of the source; `after_step` gets the step, the loss and the share found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dual = DualEncoder(text, source.shape[0]).to(device).train()
    optimizer = torch.optim.AdamW(dual.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(steps, 2))
    for step in range(steps):
        draw = generator(seed, "contrastive", step)
        examples = source.batch(torch.randint(len(source), (batch_size,), generator=draw), draw)
        assert examples.captions is not None, "a source with captions"
        images = to_x_0(examples.levels.to(device), source.max_level)
        images = images + 0.1 * torch.randn(images.shape, generator=draw).to(device)
        loss, found = dual.loss(images, tokenizer(examples.captions).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(dual.parameters(), 1.0)
        optimizer.step()
        rate.step()
        after_step(step + 1, float(loss.detach()), float(found))
    return dual.eval()
