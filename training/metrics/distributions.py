"""How far two sets of images are apart, given features of each: no weights from elsewhere are needed."""

import math

import torch
from torch import Tensor, nn

from training.randomness import generator


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features. Heusel et al. 2017, eq. 6.

    Args:
        first, second: [N, D] and [M, D].
    """
    means, covariances = [], []
    for features in (first.double(), second.double()):
        means.append(features.mean(0))
        centred = features - features.mean(0)
        covariances.append(centred.T @ centred / len(features))
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), whose argument is symmetric.
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    distance = (means[0] - means[1]).square().sum() + sum(each.trace() for each in covariances) - 2 * mixed
    return float(distance.clamp(min=0))


def precision_and_recall(real: Tensor, drawn: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """(share of drawn images within the real ones' reach, and the other way round). Kynkäänniemi et al. 2019.

    Args:
        real, drawn: [N, D] and [M, D] features.
        neighbours: an image reaches as far as its so-manieth neighbour of its own set.
    """

    def covered(centres: Tensor, points: Tensor) -> float:
        reach = torch.cdist(centres, centres).kthvalue(min(neighbours + 1, len(centres)), dim=1).values
        return float((torch.cdist(points, centres) <= reach).any(1).double().mean())

    return covered(real, drawn), covered(drawn, real)


def copy_shares(train: Tensor, held_out: Tensor, drawn: Tensor) -> tuple[float, float]:
    """(share of drawn images that are near copies of a training image, share of held-out ones).

    A near copy lies closer to its nearest training image than half of what is usual (the median) for held-out images.

    Args:
        train, held_out, drawn: [N, ...] images in one scale.
    """
    train = train.flatten(1)
    usual, found = (torch.cdist(each.flatten(1), train).amin(1) for each in (held_out, drawn))
    threshold = usual.median() / 2
    return float((found < threshold).double().mean()), float((usual < threshold).double().mean())


def share_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share that was counted. Wilson 1927."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


class ImageClassifier(nn.Module):
    """[N, C, H, W] in [-1, 1] → [N, classes]; what comes before the last layer are features of an image."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[N, 64]."""
        return torch.cat([self.body(part) for part in torch.split(images, 256)])


def train_classifier(images: Tensor, labels: Tensor, classes: int, *, seed: int, steps: int = 300) -> ImageClassifier:
    """Train on images [N, C, H, W] in [-1, 1] and labels [N]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "classifier").initial_seed())
        network = ImageClassifier(images.shape[1], classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    draw = generator(seed, "classifier batches")
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=draw)
        loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def two_sample_test(real: Tensor, drawn: Tensor, *, seed: int, steps: int = 300) -> float:
    """Accuracy of a classifier that tells real from drawn, on halves it was not trained on; .5: it can't.

    Lopez-Paz & Oquab 2017.

    Args:
        real, drawn: [N, C, H, W] in [-1, 1], as many of each.
    """
    count = min(len(real), len(drawn))
    order = torch.randperm(count, generator=generator(seed, "two samples"))
    seen, asked = order[: count // 2], order[count // 2 :]

    def both(rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([real[rows], drawn[rows]]), torch.arange(2).repeat_interleave(len(rows))

    network = train_classifier(*both(seen), 2, seed=seed, steps=steps)
    images, labels = both(asked)
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())
