"""`python -m training.compare`: two versions beside each other, drawn from the same seeds."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from training.command_line import add_version_options, run_on_versions
from training.errors import ConfigurationError
from training.opening import open_version
from training.sheets import COLUMNS, grid, sheet_images
from training.sources import load_sources
from worker.store import ModelStore


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="reverie compare", description="Draw the same seeds from two versions, a row of each in turn."
    )
    result.add_argument("first", metavar="MODEL[@VERSION]")
    result.add_argument("second", metavar="MODEL[@VERSION]")
    add_version_options(result)
    result.add_argument("--out", type=Path, default=Path("compare.png"), help="picture to write (default: %(default)s)")
    return result


def run(arguments: argparse.Namespace, store: ModelStore) -> None:
    """Raises TrainingError or StoreError."""
    versions = [open_version(name, store) for name in (arguments.first, arguments.second)]
    sources = [load_sources(version.configuration)[0] for version in versions]
    if sources[0].shape != sources[1].shape:
        raise ConfigurationError(f"need images of one size, got {sources[0].shape} and {sources[1].shape}")
    drawn = [
        sheet_images(version.denoiser, source, version.tokenizer, version.configuration)
        for version, source in zip(versions, sources, strict=True)
    ]
    rows = [part for pair in zip(*(torch.split(images, COLUMNS) for images in drawn), strict=True) for part in pair]
    try:
        Image.fromarray(grid(torch.cat(rows), COLUMNS).squeeze(-1).numpy()).save(arguments.out)
    except OSError as error:
        raise ConfigurationError(f"can't write {arguments.out}: {error}") from error
    for which, version in zip(("first", "second"), versions, strict=True):
        metrics = version.checkpoint.manifest.metrics
        loss = metrics.get("held_out_loss")
        quality = "" if loss is None else f"  held-out loss {loss:.4f}"
        print(f"{which} rows: {version.checkpoint.model}/{version.checkpoint.version}{quality}")
    print(f"written to {arguments.out}")


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status: 1 when the versions can't be drawn from."""
    return run_on_versions(parser(), run, argv, environment)


if __name__ == "__main__":
    sys.exit(main())
