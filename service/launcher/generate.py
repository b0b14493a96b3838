"""`reverie generate`: draw with a running gateway, and save the pictures."""

import argparse
import json
import sys
from pathlib import Path

from service.client import Client, Picture
from service.client.calls import succeeded
from service.launcher.command_errors import OutputError
from service.launcher.progress_line import ProgressLine
from service.launcher.request_options import request_fields_of
from service.schemas import Job


def generate(options: argparse.Namespace) -> int:
    line = ProgressLine(sys.stderr)
    with Client(options.url) as client:
        job = client.submit(**request_fields_of(options))
        try:
            done = follow(client, job, line)
        except KeyboardInterrupt:
            client.cancel(job)
            raise
        finally:
            line.end()
        pictures = client.pictures(done)
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    paths = save(pictures, options.out)
    if options.json:
        print(json.dumps({**done.model_dump(mode="json"), "files": [str(path) for path in paths]}))
    else:
        print(*paths, sep="\n")
    return 0


def follow(client: Client, job: Job, line: ProgressLine) -> Job:
    """Show the job's progress to its end; returns it as it is then.

    Raises:
        JobFailed, JobCanceled
    """
    last = job
    for event in client.watch(job, preview=line.wants_previews):
        line.show(event)
        last = event.job
    return succeeded(last) if last.status.is_terminal else client.wait(last)


def save(pictures: list[Picture], directory: Path) -> list[Path]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [picture.save(directory) for picture in pictures]
    except OSError as error:
        raise OutputError(f"can't write images into {directory}: {error.strerror}") from error
