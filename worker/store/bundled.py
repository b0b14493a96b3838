"""The location of the models that come with the package."""

from pathlib import Path

BUNDLED_DEFAULT_MODEL = "emoji"
"""Of the models in there, the one that draws for requests that name none."""


def bundled_store_path() -> Path:
    """Root of the read-only store inside the installed package."""
    return Path(__file__).resolve().parent.parent / "bundled"
