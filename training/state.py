"""Where a stopped run goes on from: weights, average, optimizer, scaler and step, in a folder of its own.

Everything random in a run is a function of (seed, step), so this is all there is to keep, and a run that was killed and
went on has the bits of one that was not.
"""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import StateError

STATE_NAME = "state.pt"
"""torch's own format, read with weights_only: its unpickler makes tensors and plain values and runs nothing."""

DATA_KEY = "data_sha256"
"""Of an identity: the fingerprint of the data."""


@dataclass(frozen=True, eq=False)
class RunState:
    """Attributes:
    step: steps made.
    elapsed_s: time spent training, over all parts of the run.
    finished: whether the run came to its end.
    identity: the settings that decide the weights, and the fingerprint of the data.
    tensors: state dictionaries by part.
    """

    step: int
    elapsed_s: float
    finished: bool
    identity: Mapping[str, Any]
    tensors: Mapping[str, Any]


class StateFolder:
    """The state of one run, in `folder`; the last one stays until the next is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        return self.folder / STATE_NAME

    def save(self, state: RunState) -> None:
        """Raises StateError, with the last state kept, when the disk is full."""
        temporary = self.folder / f".{STATE_NAME}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(
                    {
                        "step": state.step,
                        "elapsed_s": state.elapsed_s,
                        "finished": state.finished,
                        "identity": json.dumps(dict(state.identity), sort_keys=True),
                        "tensors": dict(state.tensors),
                    },
                    file,
                )
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        # torch's writer turns an OSError into a RuntimeError of its own.
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise StateError(f"can't save the state in {self.folder}: {error}; the one before is kept") from error

    def load(self) -> RunState | None:
        """The last state, on the CPU; None when there is none. Raises StateError when it can't be read."""
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            return RunState(
                step=found["step"],
                elapsed_s=found["elapsed_s"],
                finished=found["finished"],
                identity=json.loads(found["identity"]),
                tensors=found["tensors"],
            )
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise StateError(f"can't read the state {self.path}: {error}") from error


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raises StateError, naming what differs, when a state is of another run."""
    wanted = json.loads(json.dumps(dict(wanted)))
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            if key == DATA_KEY:
                raise StateError(
                    f"{folder} holds the state of a run on other data, or the data has changed since: put the data "
                    "back, or give another --state, or --fresh to begin anew"
                )
            raise StateError(
                f"{folder} holds the state of another run, with {key} {found.get(key)!r} and not {wanted.get(key)!r}: "
                f"give that setting again, another --state, or --fresh to begin anew"
            )
