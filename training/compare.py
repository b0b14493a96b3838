"""`python -m training.compare`: two versions beside each other, drawn from the same seeds."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from training.command_line import exit_status
from training.errors import SettingsError
from training.opening import open_version, store_at
from training.sheets import COLUMNS, grid, sheet_images
from training.sources import load_sources


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="reverie compare", description="Draw the same seeds from two versions, a row of each in turn."
    )
    result.add_argument("first", metavar="MODEL[@VERSION]")
    result.add_argument("second", metavar="MODEL[@VERSION]")
    result.add_argument("--store", help="folder of checkpoints (REVERIE_STORE)")
    result.add_argument("--out", type=Path, default=Path("compare.png"), help="picture to write (default: %(default)s)")
    result.add_argument("--threads", type=int, help="CPU threads")
    return result


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Raises TrainingError or StoreError."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    store = store_at(arguments.store, environment.get("REVERIE_STORE"))
    versions = [open_version(name, store) for name in (arguments.first, arguments.second)]
    sources = [load_sources(version.configuration)[0] for version in versions]
    if sources[0].shape != sources[1].shape:
        raise SettingsError(f"need images of one size, got {sources[0].shape} and {sources[1].shape}")
    drawn = [
        sheet_images(version.denoiser, source, version.tokenizer, version.configuration)
        for version, source in zip(versions, sources, strict=True)
    ]
    rows = [part for pair in zip(*(torch.split(images, COLUMNS) for images in drawn), strict=True) for part in pair]
    try:
        Image.fromarray(grid(torch.cat(rows), COLUMNS).squeeze(-1).numpy()).save(arguments.out)
    except OSError as error:
        raise SettingsError(f"can't write {arguments.out}: {error}") from error
    for which, version in zip(("first", "second"), versions, strict=True):
        metrics = version.checkpoint.manifest.metrics
        loss = metrics.get("held_out_loss")
        quality = "" if loss is None else f"  held-out loss {loss:.4f}"
        print(f"{which} rows: {version.checkpoint.model}/{version.checkpoint.version}{quality}")
    print(f"written to {arguments.out}")


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status: 1 when the versions can't be drawn from."""
    arguments = parser().parse_args(argv)
    return exit_status(lambda: run(arguments, environment))


if __name__ == "__main__":
    sys.exit(main())
