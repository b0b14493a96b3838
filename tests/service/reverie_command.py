"""The `reverie` command in the process of the test: it begins at once. What it starts has processes of its own."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from service.launcher import cli


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def reverie(*arguments: str) -> Done:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
        code = cli.main(arguments)
    return Done(code, out.getvalue(), errors.getvalue())
