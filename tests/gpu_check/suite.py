"""Part suite: the tests that carry the marker `gpu`, each a finding."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import torch

from tests.gpu_check.findings import Finding
from tests.gpu_check.part import Check


def tests(device: torch.device) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, "tests"], check=False)
        yield from outcomes(report)


def outcomes(report: Path) -> Iterator[Finding]:
    """Of each test in a JUnit report; skipped ones count as not as expected, for here is a GPU."""
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        found = "passes" if bad is None else f"{bad.tag}: {(bad.get('message') or '').splitlines()[0][:160]}"
        yield Finding("suite", str(case.get("name")), "passes", found, bad is None)


CHECKS: list[Check] = [tests]
