"""A figure of the benchmark, the bar it is held against, and the table and the file that show them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bench.samples import median


@dataclass(frozen=True)
class Bar:
    """What a figure should reach."""

    relation: Literal[">=", "<="]
    value: float

    def verdict(self, value: float) -> str:
        """`met` or `missed`, and by how much of the bar."""
        met = value >= self.value if self.relation == ">=" else value <= self.value
        word = "met" if met else "missed"
        if self.value == 0:
            return word if met else f"missed by {value:g}"
        return f"{word} by {abs(value - self.value) / self.value:.0%}"


@dataclass(frozen=True)
class Figure:
    """One line of the table: the median of its samples, and their range."""

    part: str
    name: str
    unit: str
    samples: Sequence[float]
    bar: Bar | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.samples)

    def as_json(self) -> dict[str, object]:
        shown: dict[str, object] = {
            "part": self.part,
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": list(self.samples),
            "note": self.note,
        }
        if self.bar is not None:
            shown["bar"] = f"{self.bar.relation} {self.bar.value:g}"
            shown["verdict"] = self.bar.verdict(self.median)
        return shown

    def cells(self) -> tuple[str, ...]:
        low, high = number(min(self.samples)), number(max(self.samples))
        spread = f"{low} - {high}" if len(self.samples) > 1 else ""
        bar = f"{self.bar.relation} {self.bar.value:g}" if self.bar else ""
        verdict = self.bar.verdict(self.median) if self.bar else ""
        return self.part, self.name, number(self.median), spread, self.unit, bar, verdict, self.note


def number(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


HEADINGS = ("part", "figure", "median", "min - max", "unit", "bar", "verdict", "note")


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table that is also readable as it is."""
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_json(path: Path, machine: Mapping[str, object], figures: Sequence[Figure]) -> None:
    """Everything that was measured, every sample included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": dict(machine), "figures": [figure.as_json() for figure in figures]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
