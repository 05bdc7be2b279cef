"""How a run tells what it does: a progress bar on a terminal or lines elsewhere, and metrics as JSON lines."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vitascope_common.files import atomic_write


class Metrics:
    """A file of one JSON object per measurement; what lies beyond the step that a run resumes from is cut off."""

    def __init__(self, path: Path, step: int, is_writer: bool) -> None:
        """Continue a file, or begin it."""
        self._path = path
        self._is_writer = is_writer
        if is_writer and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            atomic_write(path, "".join(kept).encode())

    def write(self, row: Mapping[str, float]) -> None:
        """Append a measurement; what is not finite becomes null."""
        if not self._is_writer:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")


class Reporter:
    """Tells a person how a run goes. Only one of several processes speaks."""

    def __init__(self, console: Console, is_speaker: bool = True) -> None:
        self._console = console
        self._is_speaker = is_speaker
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._first = 0
        self._began_s = 0.0

    @contextlib.contextmanager
    def stage(self, name: str, total: int, done: int) -> Iterator[None]:
        """Show the progress of a stage while the block runs."""
        self._total, self._first, self._began_s = total, done, time.monotonic()
        if not (self._is_speaker and self._console.is_terminal):
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
        )
        with Progress(*columns, console=self._console) as self._bar:
            self._task = self._bar.add_task(name, total=total, completed=done, state="")
            yield
        self._bar = self._task = None

    def advance(self, done: int) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def row(self, name: str, row: Mapping[str, float]) -> None:
        """Tell of a measurement: beside the bar, or as a line with the time that is left."""
        figures = {key: value for key, value in row.items() if key not in ("step", "elapsed_s")}
        text = " ".join(f"{key}={value:.4g}" for key, value in figures.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, state=text)
            return
        step = int(row["step"])
        eta_s = (time.monotonic() - self._began_s) / max(step - self._first, 1) * (self._total - step)
        self.say(f"{name} step={step}/{self._total} {text} eta_s={eta_s:.0f}")

    def checkpoint(self, name: str, step: int) -> None:
        """Tell of a checkpoint, where lines are told."""
        if self._bar is None:
            self.say(f"{name} checkpoint step={step}")

    def say(self, text: str) -> None:
        """Tell anything else, as it is."""
        if self._is_speaker:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
