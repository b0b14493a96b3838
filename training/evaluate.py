"""`python -m training.evaluate`: how good a published version is, without any weights from elsewhere."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.command_line import add_version_options, run_on_versions
from training.contrastive import DualEncoder, train_dual_encoder
from training.data import ImageSource
from training.data.emoji import BACKGROUNDS, EmojiData
from training.data.emoji_captions import behind
from training.data.examples import to_x_0
from training.drawing import Artist, Drawing, add_drawing_options, conditions_of, drawing_of
from training.errors import ConfigurationError
from training.metrics.distributions import (
    copy_shares,
    frechet_distance,
    precision_and_recall,
    share_interval,
    train_classifier,
    two_sample_test,
)
from training.metrics.retrieval import background_of, colour_of, retrieval, tint_between_seeds
from training.opening import OpenedVersion, open_version
from training.randomness import generator
from training.sources import load_images
from training.text import CaptionTokenizer, build_text_encoder
from worker.store import ModelStore

JUDGE_SEED = 1_000_003
"""Not a seed that anybody trains with: the judge must not be the encoder that the model began with."""
TINT_PROMPTS, TINT_SEEDS = 12, 4


@dataclass(frozen=True, slots=True)
class Options(Drawing):
    """How to draw and how much.

    Attributes:
        samples: images drawn for each measure.
        seed: of the first image; the others follow.
        judge_steps: batches that the judge of captions is trained on.
    """

    samples: int = 300
    seed: int = 0
    judge_steps: int = 600


def as_x_0(pixels: Tensor) -> Tensor:
    """[N, H, W, C] uint8 → [N, C, H, W] in [-1, 1]."""
    return to_x_0(pixels.permute(0, 3, 1, 2), 255)


def real_images(source: ImageSource, count: int, seed: int) -> tuple[Tensor, Tensor | None, tuple[str, ...] | None]:
    """(x_0, labels, captions) of `count` images of a source, no more than it has."""
    turn = generator(seed, "evaluation")
    rows = torch.randperm(len(source), generator=turn)[:count]
    examples = source.batch(rows, turn)
    return to_x_0(examples.levels, source.max_level), examples.labels, examples.captions


def measure_distribution(
    version: OpenedVersion, train: ImageSource, held_out: ImageSource, options: Options
) -> dict[str, float]:
    """Drawn images beside held-out ones, each drawn for the label or caption of one of them."""
    real, labels, captions = real_images(held_out, options.samples, options.seed)
    seeds = range(options.seed, options.seed + len(real))
    conditions = conditions_of(version, len(real), labels, captions)
    drawn = as_x_0(Artist(version).draw(seeds, conditions, options))
    known, known_labels, _ = real_images(train, 4000, options.seed)
    if known_labels is None or len(train.label_names) < 2:
        # Without classes: features that distinguish a picture from a turned one.
        turned = torch.cat([torch.rot90(known, turns, (2, 3)) for turns in range(4)])
        network = train_classifier(turned, torch.arange(4).repeat_interleave(len(known)), 4, seed=options.seed)
    else:
        network = train_classifier(known, known_labels, len(train.label_names), seed=options.seed)
    real_features, drawn_features = network.features(real), network.features(drawn)
    precision, recall = precision_and_recall(real_features, drawn_features)
    copies, usual = copy_shares(known, real, drawn)
    half = len(real) // 2
    accuracy = two_sample_test(real, drawn, seed=options.seed)
    low, high = share_interval(accuracy, 2 * (len(real) - half))
    return {
        "samples": float(len(real)),
        "two_sample_accuracy": accuracy,
        "two_sample_accuracy_low": low,
        "two_sample_accuracy_high": high,
        "two_sample_accuracy_of_real_halves": two_sample_test(real[:half], real[half : 2 * half], seed=options.seed),
        "frechet_distance": frechet_distance(real_features, drawn_features),
        "frechet_distance_of_real_halves": frechet_distance(real_features[:half], real_features[half:]),
        "precision": precision,
        "recall": recall,
        "near_copies": copies,
        "near_copies_of_held_out": usual,
    }


def measure_prompts(
    version: OpenedVersion, train: EmojiData, held_out: EmojiData, options: Options
) -> dict[str, float]:
    """Plain names, pairs never trained on, and pairs trained on; each beside the figures of the real drawings."""
    tokenizer, configuration = version.tokenizer, version.configuration
    assert tokenizer is not None, "a model of captions"
    encoder = build_text_encoder(
        tokenizer, width=configuration.text_width, layers=configuration.text_layers, seed=JUDGE_SEED
    )
    both = EmojiData(train.drawings + held_out.drawings, torch.cat([train.rgba, held_out.rgba]))
    device = torch.device("cpu")
    judge = train_dual_encoder(
        encoder, both, tokenizer, steps=options.judge_steps, batch_size=128, seed=JUDGE_SEED, device=device
    )
    plain = train.chosen(row for row, drawing in enumerate(train.drawings) if drawing.colour is None)
    seen = train.chosen(row for row, drawing in enumerate(train.drawings) if drawing.colour is not None)
    names = sorted({drawing.caption() for drawing in plain.drawings})
    every = sorted({drawing.caption() for drawing in both.drawings})
    artist = Artist(version)
    numbers: dict[str, float] = {}
    for kind, source, candidates in (
        ("plain", plain, names),
        ("held_out_pairs", held_out, every),
        ("seen_pairs", seen, every),
    ):
        rows = torch.randperm(len(source), generator=generator(options.seed, kind))[: options.samples]
        asked = source.chosen(rows.tolist())
        backgrounds = [names_of_backgrounds()[index % len(BACKGROUNDS)] for index in range(len(asked))]
        prompts = [prompt(asked, index, backgrounds) for index in range(len(asked))]
        seeds = range(options.seed, options.seed + len(asked))
        drawn = artist.draw(seeds, conditions_of(version, len(asked), None, prompts), options)
        real = asked.pictures(torch.arange(len(asked)), backgrounds).permute(0, 2, 3, 1)
        for whose, pixels in (("", drawn), ("_real", real)):
            found = judged(judge, tokenizer, asked, pixels, backgrounds, candidates)
            numbers |= {f"{kind}_{name}{whose}": value for name, value in found.items()}
        low, high = share_interval(numbers[f"{kind}_r_at_1"], len(asked))
        numbers |= {f"{kind}_r_at_1_low": low, f"{kind}_r_at_1_high": high, f"{kind}_samples": float(len(asked))}
    return numbers | {"tint_between_seeds": measured_tint(version, artist, names, options)}


def measured_tint(version: OpenedVersion, artist: Artist, names: Sequence[str], options: Options) -> float:
    """Of some plain names, from a few seeds each."""
    chosen = names[:: len(names) // TINT_PROMPTS][:TINT_PROMPTS]
    prompts = [name for name in chosen for _ in range(TINT_SEEDS)]
    seeds = [*range(options.seed, options.seed + TINT_SEEDS)] * TINT_PROMPTS
    drawn = artist.draw(seeds, conditions_of(version, len(prompts), None, prompts), options)
    return tint_between_seeds(drawn.view(TINT_PROMPTS, TINT_SEEDS, *drawn.shape[1:]))


def names_of_backgrounds() -> list[str | None]:
    return list(BACKGROUNDS)


def prompt(asked: EmojiData, index: int, backgrounds: Sequence[str | None]) -> str:
    return asked.drawings[index].caption(backgrounds[index])


def judged(
    judge: DualEncoder,
    tokenizer: CaptionTokenizer,
    asked: EmojiData,
    pixels: Tensor,
    backgrounds: Sequence[str | None],
    candidates: Sequence[str],
) -> dict[str, float]:
    """What pictures of `asked` on these backgrounds show: the concept among all, its colour, the background.

    The judge compares with captions on the same background, so that the background helps it with none.
    """
    r_at_1, r_at_5 = 0.0, 0.0
    for background in BACKGROUNDS:
        rows = [index for index, name in enumerate(backgrounds) if name == background]
        if rows:
            prompts = [prompt(asked, index, backgrounds) for index in rows]
            others = [caption + behind(background) for caption in candidates]
            found = retrieval(judge, tokenizer, as_x_0(pixels[rows]), prompts, others)
            r_at_1 += found.r_at_1 * len(rows) / len(asked)
            r_at_5 += found.r_at_5 * len(rows) / len(asked)
    numbers = {"r_at_1": r_at_1, "r_at_5": r_at_5}
    read = [
        colour_of(each, background) == drawing.colour
        for each, background, drawing in zip(pixels, backgrounds, asked.drawings, strict=True)
        if drawing.colour is not None
    ]
    if read:
        numbers["colour_right"] = sum(read) / len(read)
    behind_it = [background_of(each) == background for each, background in zip(pixels, backgrounds, strict=True)]
    numbers["background_right"] = sum(behind_it) / len(behind_it)
    return numbers


def evaluate(version: OpenedVersion, options: Options) -> dict[str, float]:
    """All measures that the data of a version allows."""
    train, held_out = load_images(version.configuration)
    if version.tokenizer is not None and isinstance(train, EmojiData) and isinstance(held_out, EmojiData):
        return measure_prompts(version, train, held_out, options)
    return measure_distribution(version, train, held_out, options)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="reverie evaluate", description="Measure a published version.")
    result.add_argument("model", metavar="MODEL[@VERSION]")
    add_version_options(result)
    result.add_argument("--samples", type=int, default=300, help="images drawn for each measure (default: 300)")
    add_drawing_options(result)
    result.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    result.add_argument("--judge-steps", type=int, default=600, help="to train the judge of captions (default: 600)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    return result


def run(arguments: argparse.Namespace, store: ModelStore) -> None:
    """Raises TrainingError or StoreError."""
    if arguments.samples < 8:
        raise ConfigurationError(f"need --samples of at least 8, got {arguments.samples}")
    version = open_version(arguments.model, store)
    options = Options(
        **asdict(drawing_of(arguments, version)),
        samples=arguments.samples,
        seed=arguments.seed,
        judge_steps=arguments.judge_steps,
    )
    checkpoint = version.checkpoint
    print(f"{checkpoint.model}/{checkpoint.version}, {version.configuration.data}: {json.dumps(asdict(options))}")
    numbers = evaluate(version, options)
    for name, value in numbers.items():
        print(f"  {name.replace('_', ' '):38} {value:.4g}")
    if arguments.json:
        record = {"model": checkpoint.model, "version": checkpoint.version, "options": asdict(options)} | numbers
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status: 1 when the version can't be measured."""
    return run_on_versions(parser(), run, argv, environment)


if __name__ == "__main__":
    sys.exit(main())
