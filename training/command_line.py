"""What the commands of this package share."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from training.errors import TrainingError
from worker.store import ModelStore, StoreError, bundled_store_path

Run = Callable[[argparse.Namespace, ModelStore], None]
"""Does what the options ask with the versions of a store. Raises TrainingError or StoreError."""


def exit_status(command: Callable[[], object]) -> int:
    """Run a command; 0, or 1 with the reason on stderr where it can't be done."""
    try:
        command()
    except (TrainingError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def add_version_options(parser: argparse.ArgumentParser) -> None:
    """Of a command that runs published versions."""
    parser.add_argument("--store", help="folder of checkpoints (REVERIE_STORE; default: the bundled models)")
    parser.add_argument("--threads", type=int, help="CPU threads")


def run_on_versions(
    parser: argparse.ArgumentParser, run: Run, argv: Sequence[str] | None, environment: Mapping[str, str] = os.environ
) -> int:
    """Run such a command; returns its exit status."""
    options = parser.parse_args(argv)

    def command() -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        run(options, ModelStore(Path(options.store or environment.get("REVERIE_STORE") or bundled_store_path())))

    return exit_status(command)
