"""Logs of a run in progress: metrics.jsonl, sheets of samples, TensorBoard's events."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from training.errors import LogError


class RunLog:
    """Writes into `folder`; None writes nothing. TensorBoard's events only where its package is installed."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._board: Any = None
        if folder is not None:
            with _written_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._board = _board(folder)

    def write(self, step: int, numbers: Mapping[str, float], sheet: Tensor | None = None) -> None:
        """One line of numbers, and a sheet of samples ([H, W, C] uint8). Raises LogError."""
        if self._folder is None:
            return
        with _written_to(self._folder):
            self._write(self._folder, step, numbers, sheet)

    def _write(self, folder: Path, step: int, numbers: Mapping[str, float], sheet: Tensor | None) -> None:
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        if sheet is not None:
            picture = sheet.squeeze(-1).numpy()
            Image.fromarray(picture).save(folder / f"samples-{step:09d}.png")
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            if sheet is not None:
                self._board.add_image("samples", sheet, step, dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LogError(f"can't write to --log {folder}: {error.strerror or error}") from error


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an extra: metrics.jsonl holds the same numbers
        return None
    return SummaryWriter(str(folder))
