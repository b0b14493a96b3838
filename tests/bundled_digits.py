"""A store of the bundled digits alone: nothing else that comes with the package decides how a test ends or how long it
takes to load."""

import shutil
from pathlib import Path

from worker.store import bundled_store_path

DIGITS = "digits"


def digits_store(folder: Path) -> Path:
    """A copy below `folder`."""
    store = folder / "digits-store"
    shutil.copytree(bundled_store_path() / DIGITS, store / DIGITS)
    return store
