"""Runs a `Supervisor` over the services of a JSON file: `python -m tests.service.stand_ins.run_supervisor FILE`.

Each entry: name, command and optionally stop_grace_s, ready_file, ready_timeout_s, restart. Prints `ready` when all
are up.
"""

import json
import sys
from pathlib import Path

from service.launcher.command_errors import CommandError
from service.launcher.restart_policy import RestartPolicy
from service.launcher.supervisor import Service, Supervisor


def main() -> int:
    services = []
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        ready_file = Path(entry["ready_file"]) if "ready_file" in entry else None
        services.append(
            Service(
                entry["name"],
                tuple(entry["command"]),
                is_ready=ready_file.exists if ready_file is not None else lambda: True,
                ready_timeout_s=entry.get("ready_timeout_s", 60.0),
                stop_grace_s=entry.get("stop_grace_s", 30.0),
                restart=entry.get("restart", True),
            )
        )
    supervisor = Supervisor(
        services, say=lambda line: print(line, flush=True), policy=lambda: RestartPolicy(first_delay_s=0.01)
    )
    try:
        return supervisor.run(on_ready=lambda: print("ready", flush=True))
    except CommandError as error:
        print(error, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
