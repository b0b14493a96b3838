"""Runs `reverie up` with stand-ins for worker and gateway: `python -m tests.service.stand_ins.run_up JOURNAL`."""

import sys
from pathlib import Path

from service.launcher.command_errors import CommandError
from service.launcher.up import Commands, read_settings, up
from tests.service.stand_ins.journal import Journal


def main() -> int:
    journal = Journal(Path(sys.argv[1]))
    commands = Commands(
        worker=journal.command("worker"),
        gateway=journal.command("gateway", "http"),
        draw=journal.command("draw", "exit=0"),
    )
    draw_into = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    try:
        return up(read_settings({}), draw_into=draw_into, commands=commands)
    except CommandError as error:
        print(f"reverie: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
