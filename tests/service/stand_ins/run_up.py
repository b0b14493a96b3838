"""Runs `reverie up` with stand-ins for worker and gateway: `python -m tests.service.stand_ins.run_up JOURNAL`."""

import sys
from pathlib import Path

from service.launcher.command_errors import CommandError
from service.launcher.up import Commands, UpSettings, up
from tests.service.stand_ins.journal import Journal
from worker.contract.environment import SettingsError


def main() -> int:
    journal = Journal(Path(sys.argv[1]))
    commands = Commands(
        worker=journal.command("worker", "device"),
        devices=(sys.executable, "-S", "-c", """print('["cuda:0", "cuda:1"]')"""),
        gateway=journal.command("gateway", "http"),
        draw=journal.command("draw", "asked", "exit=0"),
    )
    draw_into = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    try:
        return up(UpSettings.read(), draw_into=draw_into, commands=commands)
    except (CommandError, SettingsError) as error:
        print(f"reverie: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
