"""A process that has imported all of training, and forks itself for each run that is asked of it.

Each line that it reads is a JSON list and gets a line in answer: ["start", arguments, environment, log] the process id,
["poll", pid] its exit status, less than 0 for the signal that ended it, or null while it runs. At the end of its input
it kills what still runs.
"""

import json
import os
import runpy
import signal
import sys

# What the runs would import; no name of theirs is used here.
import training.__main__
import training.lora.base_model
import training.text  # noqa: F401

running: set[int] = set()


def main() -> None:
    for line in sys.stdin:
        command, *given = json.loads(line)
        if command == "start":
            pid = os.fork()
            if pid == 0:
                _become(*given)
                return
            running.add(pid)
            answer: int | None = pid
        else:
            answer = _status(*given)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _status(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return None
    running.discard(pid)
    return os.waitstatus_to_exitcode(status)


def _become(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """`python -m training ARGUMENTS`, with its output in `log`."""
    output, nothing = os.open(log, os.O_WRONLY), os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    sys.argv = ["training", *arguments]
    runpy.run_module("training", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
