"""What a benchmark says: figures with a reference of the same run, a ratio and a goal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

OUT = Path("out/bench")


class NotInstalledError(Exception):
    """What a benchmark compares with is not installed; says how to install it."""


@dataclass(frozen=True)
class Figure:
    """One measurement. `ratio` is value / reference; `better` says which way it should go to meet `goal`.

    `beside` holds what others do with the same load, in the same unit, for comparison only.
    """

    metric: str
    value: float
    unit: str
    reference: float
    goal: float
    better: Literal["lower", "higher"] = "lower"
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.value / self.reference

    @property
    def is_met(self) -> bool:
        return self.ratio <= self.goal if self.better == "lower" else self.ratio >= self.goal


def write(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("metric", "value", "unit", "reference", "ratio", "goal", "better", "beside")
    rows = [asdict(figure) | {"ratio": figure.ratio} for figure in figures]
    path.write_text(json.dumps([{name: row[name] for name in names} for row in rows], indent=2) + "\n")


def table(name: str, figures: Sequence[Figure]) -> str:
    """Lay figures out for people."""
    rows = [(name, "value", "reference", "ratio", "goal", "", "")]
    for one in figures:
        sign = "<=" if one.better == "lower" else ">="
        value, reference = (f"{number:.4g} {one.unit}" for number in (one.value, one.reference))
        verdict, beside = "ok" if one.is_met else "MISSED", ", ".join(f"{key} {n:.4g}" for key, n in one.beside.items())
        rows.append((one.metric, value, reference, f"{one.ratio:.4f}", f"{sign} {one.goal:g}", verdict, beside))
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
