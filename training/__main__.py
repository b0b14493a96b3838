"""`python -m training`: train a model on a data set and publish it to a store."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

import torch

from training.configuration import TrainingConfiguration, read_configuration, read_environment, read_toml
from training.errors import TrainingError
from training.flags import given_settings, parse, said_again
from training.opening import settings_like, store_at
from training.processes import choose_device, joined_processes
from training.run import Run, settings_lines
from worker.store import StoreError

EXIT_STOPPED = 130


def configure(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[TrainingConfiguration, bool | None]:
    """(the configuration, whether to go on from a state: None goes on where there is one)."""
    arguments = parse(argv)
    flags = given_settings(arguments)
    like = None
    if "like" in arguments:
        # The store may stand wherever a setting may.
        file = read_toml(arguments.config) if "config" in arguments else {}
        stated = file | read_environment(environment) | flags
        like = settings_like(arguments.like, store_at(stated.get("store"), environment.get("REVERIE_STORE")))
    configuration = read_configuration(
        preset=getattr(arguments, "preset", None),
        file=getattr(arguments, "config", None),
        environment=environment,
        flags=flags,
        like=like,
    )
    resume = True if "resume" in arguments else False if "fresh" in arguments else None
    return configuration, resume


def run(argv: Sequence[str], command: str, environment: Mapping[str, str]) -> bool:
    """Everything the command does; returns whether the run came to its end, which of several processes the first says.

    Raises TrainingError or StoreError.
    """
    configuration, resume = configure(argv, environment)
    if configuration.threads is not None:
        torch.set_num_threads(configuration.threads)
    device = choose_device(configuration.device, environment)
    with joined_processes(environment, device, shards=configuration.shard) as processes:
        training = Run(configuration, command, device, processes, resume)
        training.say(settings_lines(training.configuration.model_dump(mode="json")))
        finished = training.train()
        if finished and processes.first:
            print(training.summary())
        elif processes.first:
            launched = f" (as one of {processes.count} processes, by their launcher)" if processes.count > 1 else ""
            print(f"stopped at step {training.trainer.step}; go on with: {command}{launched}", file=sys.stderr)
    # A launcher takes another status for a failure, and would end the first process while that saves its state.
    return finished or not processes.first


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status: 1 when training or publishing failed, 130 when stopped."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        finished = run(given, shlex.join(["python", "-m", "training", *said_again(given)]), environment)
    except (TrainingError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the last saved state is kept", file=sys.stderr)
        return EXIT_STOPPED
    return 0 if finished else EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
