"""How far a run is, in a log and at a terminal."""

import io

import torch

from training.loop import StepReport
from training.progress import LINE_EVERY_S, Progress

CPU = torch.device("cpu")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(step: int, progress: float) -> StepReport:
    return StepReport(step=step, progress=progress, elapsed_s=0.0, learning_rate=1e-3, loss=0.1234)


def test_a_log_gets_a_line_a_minute_with_speed_memory_and_time_left() -> None:
    """Of a run that goes on at a fifth of its way: the speed is that of this part."""
    now, out = 0.0, io.StringIO()
    with Progress(16, CPU, step=100, progress=0.2, clock=lambda: now, out=out) as progress:
        for step in range(101, 221):
            now += 1.0
            assert progress.show(report(step, 0.2 + 0.4 * (step - 100) / 120)) == 16
    lines = out.getvalue().splitlines()
    assert len(lines) == 120 / LINE_EVERY_S
    assert lines[0].startswith("40%, step 160, loss 0.123, 16.0 images/s, ")
    assert lines[0].endswith(" GiB, 0:03:00 left")
    assert lines[1].startswith("60%, step 220, ")
    assert lines[1].endswith("0:02:00 left")
    gib = float(lines[1].split(" GiB")[0].rpartition(" ")[2])
    assert 0.1 <= gib < 100


def test_a_terminal_gets_a_bar_and_others_nothing() -> None:
    now, terminal, silent = 0.0, Terminal(), io.StringIO()
    with (
        Progress(16, CPU, clock=lambda: now, out=terminal) as bar,
        Progress(16, CPU, shown=False, clock=lambda: now, out=silent) as other,
    ):
        for step in (1, 2):
            now += LINE_EVERY_S
            bar.show(report(step, step / 2))
            other.show(report(step, step / 2))
    assert "step 2, loss 0.123, 0.3 images/s" in terminal.getvalue()
    assert "\n" not in terminal.getvalue().rstrip("\n"), "one line that is written over"
    assert silent.getvalue() == ""
