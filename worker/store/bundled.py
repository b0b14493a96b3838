"""The location of the models that come with the package."""

from pathlib import Path


def bundled_store_path() -> Path:
    """Root of the read-only store inside the installed package."""
    return Path(__file__).resolve().parent.parent / "bundled"
