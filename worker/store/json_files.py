"""Reads the JSON files of a checkpoint."""

import json
from pathlib import Path

from worker.store.errors import BadCheckpoint


def read_json_object(folder: Path, path: str, where: str) -> dict[str, object]:
    """The JSON object in `folder/path`; raises BadCheckpoint with `where` in front when there is none."""
    try:
        value = json.loads((folder / path).read_bytes())
    except OSError as error:
        raise BadCheckpoint(f"{where}: can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{where}: {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{where}: {path} is not a JSON object")
    return value
