"""Where the models that come with the package lie."""

from pathlib import Path


def bundled_store_path() -> Path:
    """Root of the store inside the installed package; read-only for its users."""
    return Path(__file__).resolve().parent.parent / "bundled"
