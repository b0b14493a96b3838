"""What training says where torch.compile can't compile the network."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from training.errors import TrainingError


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turns a failure of torch's compiler, which shows when the network is first called, into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        # Imported by torch when something is compiled: 3 s that others need not wait for.
        compiler = sys.modules.get("torch._dynamo.exc")
        if compiler is None or not isinstance(error, compiler.TorchDynamoException):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TrainingError(
            f"torch.compile can't compile the network: {reason}; see to its C++ compiler, or leave out --compile"
        ) from error
