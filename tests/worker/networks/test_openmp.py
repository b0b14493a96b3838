"""torch's CPU threads give way while they wait, in every process that loads torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["worker", "training"])
def test_waiting_threads_are_told_to_spin_briefly_before_torch_is_loaded(package: str) -> None:
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {package}; print('torch' in sys.modules); import os; print(os.environ['GOMP_SPINCOUNT'])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert shown == ["False", "1000"]


def test_an_operators_own_choice_is_kept() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import worker, os; print(os.environ['GOMP_SPINCOUNT'])"],
        env={"GOMP_SPINCOUNT": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert shown == "7"
