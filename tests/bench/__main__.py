"""`make bench`, that is `python -m tests.bench [PART ...] [--quick]`: prints a table, writes JSON.

Parts: engine, prompts, serving, http, gateway, overhead, previews, memory, reload, training, fast, scale; all of
them when none is named.
"""

import argparse
import importlib
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Figure, table, write_json
from tests.bench.machine import describe
from tests.bench.session import Session
from worker.networks.device import choose_device

PARTS = (
    "engine",
    "prompts",
    "serving",
    "http",
    "gateway",
    "overhead",
    "previews",
    "memory",
    "reload",
    "training",
    "fast",
    "scale",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure Reverie and its peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="smallest sizes: shows that it works, measures nothing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), metavar="DIR", help="where the JSON goes")
    given = parser.parse_args(arguments)
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"need parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    logging.basicConfig(level=logging.ERROR)
    _quiet_diffusers()

    # As Ctrl-C does: leave through the blocks that end the servers and remove the folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    device = choose_device(given.device)
    machine = describe(device, " ".join(["python -m tests.bench", *arguments]))
    began = time.monotonic()
    figures: list[Figure] = []
    path = given.out / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    with tempfile.TemporaryDirectory(prefix="reverie-bench-") as folder:
        session = Session(given.quick, device, Path(folder))
        for part in given.parts or PARTS:
            part_began = time.monotonic()
            session.say(f"{part} ...")
            figures += importlib.import_module(f"tests.bench.{part}").run(session)
            session.say(f"  {time.monotonic() - part_began:.0f} s")
            # After every part, so that what was measured survives an error in the next one.
            write_json(path, {**machine, "took_s": round(time.monotonic() - began)}, figures)
    if given.quick:
        print("QUICK: these figures show that the benchmark works, nothing else.\n")
    for name, value in machine.items():
        print(f"{name:20} {', '.join(value) if isinstance(value, list) else value}")
    print(f"\n{table(figures)}\n\nwritten to {path}")
    return 0


def _quiet_diffusers() -> None:
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
