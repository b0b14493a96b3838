"""The plot of part scale: time over size, both logarithmic."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Curve:
    """What one call takes, in milliseconds, at each size."""

    name: str
    sizes: Sequence[int]
    took_ms: Sequence[float]


def write_plot(path: Path, curves: Sequence[Curve]) -> None:
    """An SVG file that is the same for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "reverie", "font.size": 10, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(7, 4))
        for curve in curves:
            axes.loglog(curve.sizes, curve.took_ms, marker="o", label=curve.name)
        axes.set_xlabel("waiting jobs, or rows in the engine")
        axes.set_ylabel("milliseconds of one call")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend()
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
