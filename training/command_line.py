"""What the commands of this package share."""

import sys
from collections.abc import Callable

from training.errors import TrainingError
from worker.store import StoreError


def exit_status(command: Callable[[], object]) -> int:
    """Run a command; 0, or 1 with the reason on stderr where it can't be done."""
    try:
        command()
    except (TrainingError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
