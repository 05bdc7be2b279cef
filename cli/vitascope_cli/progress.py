"""What people see of a running job: its phases with their times, and a live bar."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

PHASES: Mapping[str, str] = {
    "queued": "waiting in the queue",
    "loading": "loading the model",
    "denoising": "denoising",
    "decoding": "decoding frames",
    "postprocessing": "encoding and signing",
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}
"""Phase to what people read."""

TERMINAL = frozenset({"completed", "failed", "cancelled"})
_PHASE_OF_EVENT = {"queued": "queued", "preempted": "queued", "started": "loading", "resumed": "loading"}


class AnyEvent(Protocol):
    """One event as the SDK gives it."""

    @property
    def id(self) -> str | None: ...
    @property
    def type(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass
class Timeline:
    """Follows the events of one job: its phase, its steps, and how long each phase took."""

    phase: str = ""
    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    position: int | None = None
    """Jobs before this one while it waits; None: not known."""
    durations_s: dict[str, float] = field(default_factory=dict)
    """Finished phases, in order; a phase that was entered again adds up."""
    _since_s: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.phase in TERMINAL

    def add(self, event: AnyEvent, now_s: float | None = None) -> None:
        """Take the next event."""
        at_s = event_time_s(event.id, time.time() if now_s is None else now_s)
        data = event.data
        self.step = int(data.get("step", data.get("steps_done", self.step)) or 0)
        self.steps = int(data.get("steps", data.get("steps_total", self.steps)) or 0)
        self.eta_s = data.get("eta_s", data.get("eta_seconds"))
        phase = _phase(event, self.phase)
        self.position = data.get("position", data.get("queue_position")) if phase == "queued" else None
        if phase != self.phase:
            if self.phase:
                spent_s = max(0.0, at_s - self._since_s)
                self.durations_s[self.phase] = self.durations_s.get(self.phase, 0.0) + spent_s
            self.phase, self._since_s = phase, at_s

    def describe(self) -> str:
        """Return the phase for people, with the step or the place in the queue where there is one."""
        text = PHASES.get(self.phase, self.phase)
        if self.phase == "queued" and self.position is not None:
            return f"{text}, {f'{self.position} before it' if self.position else 'next in line'}"
        return f"{text}, step {self.step}/{self.steps}" if self.phase == "denoising" and self.steps else text


def event_time_s(event_id: str | None, otherwise_s: float) -> float:
    """Return when the server wrote an event: its id begins with Unix milliseconds."""
    milliseconds = (event_id or "").partition("-")[0]
    return int(milliseconds) / 1000 if milliseconds.isascii() and milliseconds.isdecimal() else otherwise_s


def _phase(event: AnyEvent, before: str) -> str:
    if event.type == "snapshot":
        status = str(event.data.get("status", ""))
        return str(event.data.get("phase") or before) if status in ("queued", "in_progress") else status
    if event.type in ("progress", "decoding", "postprocessing"):
        named = str(event.data.get("phase") or "") if event.type == "progress" else event.type
        return named or before
    if event.type in TERMINAL:
        return event.type
    return _PHASE_OF_EVENT.get(event.type, before)


class _Eta(ProgressColumn):
    def render(self, task: Task) -> Text:
        eta_s = task.fields.get("eta_s")
        return Text("" if eta_s is None else f"about {duration(eta_s)} left", style="cyan")


def duration(seconds: float) -> str:
    """Return a duration for people: `0.8 s`, `42 s`, `3:20 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


class Display(Protocol):
    """Shows a timeline as it grows."""

    def show(self, timeline: Timeline) -> None: ...


class _Lines:
    """For logs and pipes: one line per phase, per place in the queue, and per quarter of the steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: tuple[str, int, int | None] = ("", 0, None)

    def show(self, timeline: Timeline) -> None:
        quarter = 4 * timeline.step // timeline.steps if timeline.phase == "denoising" and timeline.steps else 0
        shown = (timeline.phase, quarter, timeline.position)
        if shown != self._shown:
            self._shown = shown
            waits = timeline.position is not None and timeline.eta_s is not None
            left = f", finished in about {duration(timeline.eta_s or 0)}" if waits else ""
            self._console.print(f"  {timeline.describe()}{left}", highlight=False)


class _Bar:
    """For terminals: a bar that moves."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, eta_s=None)

    def show(self, timeline: Timeline) -> None:
        self._progress.update(
            self._task,
            description=timeline.describe(),
            total=timeline.steps or None,
            completed=timeline.steps if timeline.phase == "completed" else timeline.step,
            eta_s=timeline.eta_s if timeline.phase in ("denoising", "queued") else None,
        )


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """Open a bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (SpinnerColumn(), BarColumn(32), TextColumn("{task.description}"), _Eta())
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress)
