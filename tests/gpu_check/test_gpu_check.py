"""The check of a GPU, seen without one: it says so, goes on after a failure, and its parts run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu_check import layers
from tests.gpu_check.__main__ import NO_GPU, main, run_parts
from tests.gpu_check.findings import Finding, held, table
from tests.gpu_check.part import run_checks
from tests.gpu_check.sizes import network
from tests.gpu_check.suite import outcomes
from tests.worker.networks.captures import RunAgain
from tests.worker.networks.test_cards import Machine

CPU = torch.device("cpu")

A_PART = """
import json, sys, time
part, file = sys.argv[1:]
found = [{"part": part, "what": "a", "expected": "1", "found": "1", "ok": True}]
open(file, "w").write(json.dumps(found))
if part == "layers": sys.exit(139)
if part == "memory": time.sleep(60)
"""


def test_without_a_gpu_it_says_why_runs_nothing_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert main(["--out", str(file)], Machine(driver="Found no NVIDIA driver")) == 0
    assert "no GPU: nothing was run (Found no NVIDIA driver)" in capsys.readouterr().out
    assert not file.exists()
    assert main(["--present"], Machine()) == NO_GPU
    assert main(["--present"], Machine(((9, 0),))) == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["gpu-check", "bench-gpu"])
def test_as_a_command_too(target: str) -> None:
    """In the environment of this test, which `-o` takes as ready."""
    environment = f"VENV={sys.prefix}"
    done = subprocess.run(
        ["make", "--silent", "-o", f"{sys.prefix}/.ready", environment, target],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no GPU: nothing was run")
    assert done.stdout.count("\n") == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("exit_code", "status", "calls"), [(0, 0, 3), (NO_GPU, 0, 1), (1, 2, 1), (139, 2, 1)])
def test_a_look_for_a_gpu_that_breaks_is_not_taken_for_none(
    tmp_path: Path, exit_code: int, status: int, calls: int
) -> None:
    """A stand-in for the environment's programs writes down its calls; the first one, the look, ends as asked."""
    program = f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$3" != --present ] || exit {exit_code}\n'
    (tmp_path / "bin").mkdir()
    for name in ("python", "pip"):
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    command = ["make", "--silent", "-o", f"{tmp_path}/.ready", f"VENV={tmp_path}", "bench-gpu"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    called = (tmp_path / "calls").read_text().splitlines()
    assert len(called) == calls
    assert called[0] == "-m tests.gpu_check --present"
    assert calls == 1 or called[-1].startswith("-m tests.bench overhead")


def test_a_part_that_dies_or_hangs_is_a_finding_and_the_next_one_runs() -> None:
    parts_s = {"machine": 30, "layers": 30, "memory": 2, "step": 30}
    found = run_parts(list(parts_s), 90, [sys.executable, "-S", "-c", A_PART], parts_s)
    assert [(f.part, f.ok) for f in found] == [
        ("machine", True),
        ("layers", True),
        ("layers", False),
        ("memory", True),
        ("memory", False),
        ("step", True),
    ]
    assert found[2].found == "139"
    assert found[4].found == "not within 2 s"
    assert run_parts(["step"], 0.0)[0].found == "no time was left"


def test_a_check_that_raises_is_a_finding_and_the_next_one_runs(tmp_path: Path) -> None:
    def breaks(device: torch.device) -> Iterator[Finding]:
        yield held("p", "one", 1, 1)
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    def works(device: torch.device) -> Iterator[Finding]:
        yield held("p", "two", 1, 2)

    run_checks("p", [breaks, works], CPU, tmp_path / "found.json")
    found = [Finding(**entry) for entry in json.loads((tmp_path / "found.json").read_text())]
    assert [(f.what, f.ok) for f in found] == [("one", True), ("breaks", False), ("two", False)]
    assert found[1].found == "RuntimeError: CUDA error: an illegal memory access"
    assert table(found).splitlines()[2].startswith("!")


def test_the_suites_tests_are_findings(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite><testcase name='good'/>"
        "<testcase name='bad'><failure message='1 == 2'/></testcase>"
        "<testcase name='out'><skipped message='needs a CUDA device'/></testcase></testsuite></testsuites>"
    )
    assert [(f.what, f.found, f.ok) for f in outcomes(report)] == [
        ("good", "passes", True),
        ("bad", "failure: 1 == 2", False),
        ("out", "skipped: needs a CUDA device", False),
    ]


def test_the_sizes_of_a_network_are_compared_on_a_cpu_as_on_a_card() -> None:
    """torch's own kernels on a CPU round a row alone in another way than among others."""
    agree, *figures = network("digits", "float32", CPU, RunAgain(), sizes=(1, 2, 4))
    assert agree.ok is False
    assert agree.found.split(" | ")[0] == "1"
    assert any("ms by size" in f.what for f in figures)


def test_the_layers_are_compared() -> None:
    row = torch.randn(3)
    assert layers.agreeing(lambda x: x * 2, row) == "1,2,4,8,16,32,64"
    assert layers.agreeing(lambda x: x + (len(x) > 8), row) == "1,2,4,8 | 16,32,64"
    assert "place matters" in layers.agreeing(lambda x: x + torch.arange(len(x)).view(-1, 1), row)
