"""What a benchmark says: figures with a reference of the same run, a ratio and a goal."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One measurement. `ratio` is value / reference; `better` says which way it should go to meet `goal`."""

    metric: str
    value: float
    unit: str
    reference: float
    goal: float
    better: Literal["lower", "higher"] = "lower"

    @property
    def ratio(self) -> float:
        return self.value / self.reference

    @property
    def is_met(self) -> bool:
        return self.ratio <= self.goal if self.better == "lower" else self.ratio >= self.goal


def write(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("metric", "value", "unit", "reference", "ratio", "goal", "better")
    rows = [asdict(figure) | {"ratio": figure.ratio} for figure in figures]
    path.write_text(json.dumps([{name: row[name] for name in names} for row in rows], indent=2) + "\n")


def table(name: str, figures: Sequence[Figure]) -> str:
    """Lay figures out for people."""
    rows = [(name, "value", "reference", "ratio", "goal", "")]
    for one in figures:
        sign = "<=" if one.better == "lower" else ">="
        value, reference = (f"{number:.4g} {one.unit}" for number in (one.value, one.reference))
        rows.append(
            (one.metric, value, reference, f"{one.ratio:.4f}", f"{sign} {one.goal:g}", "ok" if one.is_met else "MISSED")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
