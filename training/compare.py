"""`python -m training.compare`: one or two versions, drawn from the same seeds."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from training.command_line import add_version_options, run_on_versions
from training.drawing import Artist, add_drawing_options, conditions_of, drawing_of
from training.errors import ConfigurationError
from training.opening import OpenedVersion, open_version
from training.prompt_sheet import Line, prompt_lines, prompt_sheet, read_prompts
from training.sheets import COLUMNS, SHEET_IMAGES, grid, sheet_captions, sheet_labels
from training.sources import load_images
from worker.store import ModelStore


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="reverie compare",
        description="Draw the same seeds from two versions, a row of each in turn; or, with --prompts, a line for each "
        "prompt, from one version or from the first and then the second. A star stands at emoji never trained on.",
    )
    result.add_argument("first", metavar="MODEL[@VERSION]")
    result.add_argument("second", metavar="MODEL[@VERSION]", nargs="?")
    add_version_options(result)
    result.add_argument("--prompts", type=Path, metavar="FILE", help="one a line")
    result.add_argument("--images", type=int, default=6, help="of each prompt (default: %(default)s)")
    add_drawing_options(result)
    result.add_argument("--out", type=Path, default=Path("compare.png"), help="picture to write (default: %(default)s)")
    return result


def run(arguments: argparse.Namespace, store: ModelStore) -> None:
    """Raises TrainingError or StoreError."""
    versions = [open_version(name, store) for name in (arguments.first, arguments.second) if name is not None]
    if arguments.prompts is None and len(versions) < 2:
        raise ConfigurationError("need two versions, or --prompts")
    sheet = by_prompts(versions, arguments) if arguments.prompts else in_turn(versions, arguments)
    try:
        sheet.save(arguments.out)
    except OSError as error:
        raise ConfigurationError(f"can't write {arguments.out}: {error}") from error
    for which, version in zip(("first", "second"), versions, strict=False):
        loss = version.checkpoint.manifest.metrics.get("held_out_loss")
        quality = "" if loss is None else f"  held-out loss {loss:.4f}"
        print(f"{which}: {version.checkpoint.model}/{version.checkpoint.version}{quality}")
    print(f"written to {arguments.out}")


def by_prompts(versions: Sequence[OpenedVersion], arguments: argparse.Namespace) -> Image.Image:
    """Each version as it was published, unless the options say otherwise."""
    if arguments.images < 1:
        raise ConfigurationError(f"need --images of at least 1, got {arguments.images}")
    prompts = read_prompts(arguments.prompts)
    drawn = [prompt_lines(each, prompts, arguments.images, drawing_of(arguments, each)) for each in versions]
    sizes = {tuple(lines[0].images.shape[1:]) for lines in drawn}
    if len(sizes) > 1:
        raise ConfigurationError(f"need images of one size, got {', '.join(map(str, sorted(sizes)))}")
    together = zip(*drawn, strict=True)
    return prompt_sheet([Line(beside[0].text, torch.cat([line.images for line in beside])) for beside in together])


def in_turn(versions: Sequence[OpenedVersion], arguments: argparse.Namespace) -> Image.Image:
    """For the labels or captions of the data that each was trained on."""
    sources = [load_images(version.configuration)[0] for version in versions]
    if sources[0].shape != sources[1].shape:
        raise ConfigurationError(f"need images of one size, got {sources[0].shape} and {sources[1].shape}")
    drawn = []
    for version, source in zip(versions, sources, strict=True):
        labels, captions = sheet_labels(source, SHEET_IMAGES), sheet_captions(source, SHEET_IMAGES)
        conditions = conditions_of(version, SHEET_IMAGES, labels, captions)
        drawn.append(Artist(version).draw(range(SHEET_IMAGES), conditions, drawing_of(arguments, version)))
    rows = [part for pair in zip(*(torch.split(images, COLUMNS) for images in drawn), strict=True) for part in pair]
    return Image.fromarray(grid(torch.cat(rows), COLUMNS).squeeze(-1).numpy())


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status: 1 when the versions can't be drawn from."""
    return run_on_versions(parser(), run, argv, environment)


if __name__ == "__main__":
    sys.exit(main())
