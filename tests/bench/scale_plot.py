"""The plot of part scale: what grows, over the logarithm of the size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of one thing at each size."""

    name: str
    sizes: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves of one unit over one kind of size.

    Attributes:
        from_zero: the values as they are, from 0 on, and not their logarithms.
    """

    sizes_of: str
    unit: str
    curves: Sequence[Curve]
    from_zero: bool = False


def write_plot(path: Path, panels: Sequence[Panel]) -> None:
    """An SVG file that is the same for the same figures, with the panels side by side."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "reverie", "font.size": 10, "svg.fonttype": "none"}):
        figure, places = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4.6), squeeze=False)
        for axes, panel in zip(places[0], panels, strict=True):
            for curve in panel.curves:
                axes.semilogx(curve.sizes, curve.values, marker="o", label=curve.name)
            if panel.from_zero:
                axes.set_ylim(bottom=0)
            else:
                axes.set_yscale("log")
            axes.set_xlabel(panel.sizes_of)
            axes.set_ylabel(panel.unit)
            axes.grid(visible=True, which="major", alpha=0.3)
            axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
