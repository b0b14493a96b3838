"""`make gpu-check`, that is `python -m tests.gpu_check [PART ...]`: everything that only a GPU shows, in ten minutes.

Each part runs in a process of its own, for a fault of the device ends it, and what one finds keeps none of the others
from running. Ends with a table and one JSON file. Without a GPU it says so, runs nothing and exits 0.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.gpu_check.findings import Finding, read_findings, table, to_json
from worker.networks.cuda.cards import Cards, TorchsCards

PARTS_S = {"machine": 60, "suite": 240, "sizes": 150, "layers": 90, "memory": 90, "step": 60}
"""Seconds that each part may take, in the order in which they run."""
WHOLE_S = 590.0
NO_GPU = 3
"""Exit code of `--present`; not 1, with which Python ends when the look for a GPU breaks."""


def main(arguments: Sequence[str], cards: Cards | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description="Check what only a GPU shows.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS_S)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), metavar="FILE", help="where the JSON goes")
    parser.add_argument("--present", action="store_true", help=f"run nothing; exit {NO_GPU} when there is no GPU")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - PARTS_S.keys():
        parser.error(f"need parts of {', '.join(PARTS_S)}, got {', '.join(sorted(unknown))}")
    cards = cards or TorchsCards()
    if cards.count() == 0:
        print(f"no GPU: nothing was run ({cards.why_none()})")
        return NO_GPU if given.present else 0
    if given.present:
        return 0
    findings = run_parts([part for part in PARTS_S if part in (given.parts or PARTS_S)], WHOLE_S)
    given.out.write_text(to_json(findings) + "\n")
    print(table(findings))
    wrong = sum(f.ok is False for f in findings)
    print(f"\n{wrong} of {len(findings)} not as expected; all of it in {given.out}")
    return 1 if wrong else 0


def run_parts(
    parts: Sequence[str], whole_s: float, command: Sequence[str] = (), parts_s: Mapping[str, float] = PARTS_S
) -> list[Finding]:
    """What each part found, in order; a part that broke is a finding too.

    Args:
        whole_s: of all parts; those that find no time left are not run.
        command: what runs a part, given its name and the file for its findings.
        parts_s: of each part.
    """
    command = command or [sys.executable, "-m", "tests.gpu_check.part"]
    findings: list[Finding] = []
    ends_at = time.monotonic() + whole_s
    for part in parts:
        left_s = min(parts_s[part], ends_at - time.monotonic())
        if left_s <= 0:
            findings.append(Finding(part, "runs", "in time", "no time was left", ok=False))
            continue
        print(f"== {part}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "findings.json")
            ended = _run([*command, part, str(file)], left_s)
            found = read_findings(file) if file.exists() else []
            findings += found
            if ended != "0":
                findings.append(Finding(part, "ends", "exit code 0", ended, ok=False))
    return findings


def _run(command: Sequence[str], timeout_s: float) -> str:
    """Its exit code, or that it took too long."""
    try:
        return str(subprocess.run(command, timeout=timeout_s, check=False).returncode)
    except subprocess.TimeoutExpired:
        return f"not within {timeout_s:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
