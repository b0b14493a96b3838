"""How many workers `reverie up` starts, and what each computes on."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence

from service.launcher.command_errors import DevicesError

PATIENCE_S = 120.0
"""Loading torch from a cold disk takes its time."""


def worker_environments(
    wanted: str, env: Mapping[str, str], devices: Sequence[str], cores: int
) -> list[dict[str, str]]:
    """The environment of each worker.

    Several workers divide the GPUs, or the cores of the CPU, among them, and the ports from REVERIE_METRICS_PORT on;
    whatever else the environment sets applies to all.

    Args:
        wanted: `auto` for one on each device, or how many.
        devices: of this machine, as `worker.devices` lists them.
        cores: that this process may use.
    """
    chosen = env.get("REVERIE_DEVICE", "") not in ("", "auto", "cuda")
    count = (1 if chosen else len(devices)) if wanted == "auto" else int(wanted)
    own = [dict(env) for _ in range(count)]
    for number, environment in enumerate(own if count > 1 else ()):
        if not chosen:
            environment["REVERIE_DEVICE"] = devices[number % len(devices)]
        if environment.get("REVERIE_DEVICE") == "cpu":
            environment.setdefault("REVERIE_CPU_THREADS", str(max(1, cores // count)))
        if (first_port := environment.get("REVERIE_METRICS_PORT", "")).isdigit() and first_port != "0":
            environment["REVERIE_METRICS_PORT"] = str(int(first_port) + number)
    return own


def ask_for_devices(command: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The output of `worker.devices`, run as a separate process because this one loads no torch."""
    try:
        answer = subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True).stdout
        devices = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise DevicesError(f"can't find out this machine's devices: {error}") from error
    return [str(device) for device in devices]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
