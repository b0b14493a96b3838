"""What a check found beside what was expected, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        ok: None for a mere figure, of which nothing is expected.
    """

    part: str
    what: str
    expected: str
    found: str
    ok: bool | None = None


def figure(part: str, what: str, found: object) -> Finding:
    return Finding(part, what, "", str(found))


def held(part: str, what: str, expected: object, found: object) -> Finding:
    """As expected, if the two are equal."""
    return Finding(part, what, str(expected), str(found), expected == found)


def table(findings: Sequence[Finding]) -> str:
    """The findings under each other; those that are not as expected begin with an exclamation mark."""
    rows = [("", "part", "what", "expected", "found")]
    rows += [("!" if f.ok is False else "", f.part, f.what, f.expected, f.found) for f in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in rows)


def to_json(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(f) for f in findings], indent=1)


def read_findings(path: Path) -> list[Finding]:
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    return [Finding(**entry) for entry in entries]
