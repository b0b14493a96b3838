"""`python -m tests.gpu_check.part NAME FILE`: runs one part, and writes what it finds while it goes."""

import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.gpu_check.findings import Finding, to_json

Check = Callable[[torch.device], Iterator[Finding]]
"""Yields what it finds, one after the other."""


def run_checks(part: str, checks: list[Check], device: torch.device, file: Path) -> None:
    """Run the checks of a part; one that raises is a finding, and the next ones run."""
    findings: list[Finding] = []
    for check in checks:
        try:
            for finding in check(device):
                findings.append(finding)
                file.write_text(to_json(findings))
        except Exception as error:
            traceback.print_exc()
            what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            findings.append(Finding(part, check.__name__, "no error", what[:200], ok=False))
        file.write_text(to_json(findings))


def main() -> None:
    part, file = sys.argv[1], Path(sys.argv[2])
    logging.basicConfig(level=logging.WARNING)
    checks: list[Check] = importlib.import_module(f"tests.gpu_check.{part}").CHECKS
    run_checks(part, checks, torch.device("cuda"), file)


if __name__ == "__main__":
    main()
