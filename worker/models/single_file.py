"""`python -m worker.models.single_file`: a checkpoint in one file, in the original layout, as a diffusers directory.

The file holds weights alone; the configurations and the tokenizers come from a diffusers directory of the same
architecture, whose own weights are not read. Nothing is downloaded.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline")
NOT_RUN: dict[str, None] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}


def convert(file: Path, configuration: Path, target: Path) -> None:
    """Write the directory `target`.

    Raises:
        ValueError: the file and the configuration don't go together, or neither can be read; the message says why.
    """
    import diffusers

    from worker.store.errors import BadCheckpoint
    from worker.store.json_files import read_json_object
    from worker.store.manifest import PIPELINE_INDEX_PATH

    try:
        name = read_json_object(configuration, PIPELINE_INDEX_PATH, str(configuration)).get("_class_name")
    except BadCheckpoint as error:
        raise ValueError(str(error)) from error
    if name not in PIPELINES:
        raise ValueError(f"need the configuration of a {' or '.join(PIPELINES)}, got {name!r}")
    pipeline_class: Any = getattr(diffusers, str(name))
    without = {} if name == "StableDiffusionXLPipeline" else NOT_RUN | {"requires_safety_checker": False}
    try:
        pipeline = pipeline_class.from_single_file(
            str(file), config=str(configuration), local_files_only=True, **without
        )
    except Exception as error:  # the library raises what its own parsers raise
        raise ValueError(f"{file.name}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
    pipeline.save_pretrained(target)


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments: the file, the directory with the configurations, the directory to write. One line of reason if not."""
    file, configuration, target = map(Path, sys.argv[1:] if argv is None else argv)
    try:
        convert(file, configuration, target)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
