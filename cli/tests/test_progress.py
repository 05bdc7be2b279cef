"""What people see of a job."""

import io
from dataclasses import dataclass, field
from typing import Any

import pytest
from rich.console import Console

from vitascope_cli.demo import slug
from vitascope_cli.progress import Timeline, display, duration


@dataclass(frozen=True)
class Seen:
    id: str
    type: str
    data: dict[str, Any] = field(default_factory=dict)


STORY = [
    Seen("1000-0", "queued", {"position": 0}),
    Seen("1500-0", "started"),
    Seen("1600-0", "progress", {"step": 0, "steps": 4, "phase": "loading"}),
    Seen("3500-0", "progress", {"step": 0, "steps": 4, "phase": "denoising"}),
    Seen("4000-0", "progress", {"step": 1, "steps": 4, "phase": "denoising", "eta_s": 1.5}),
    Seen("4000-1", "checkpoint", {"step": 1}),
    Seen("5500-0", "progress", {"step": 4, "steps": 4, "phase": "denoising", "eta_s": 0.0}),
    Seen("5600-0", "decoding", {"step": 4, "steps": 4}),
    Seen("6600-0", "postprocessing"),
    Seen("8000-0", "completed", {"urls": {}}),
]


def test_the_time_of_each_phase_is_the_servers() -> None:
    timeline = Timeline()
    for event in STORY:
        timeline.add(event, now_s=99.0)
    assert timeline.is_over
    assert {phase: round(spent, 3) for phase, spent in timeline.durations_s.items()} == {
        "queued": 0.5,
        "loading": 2.0,
        "denoising": 2.1,
        "decoding": 1.0,
        "postprocessing": 1.4,
    }


def test_a_resumed_job_adds_its_phases_up() -> None:
    timeline = Timeline()
    for event in [*STORY[:5], Seen("5000-0", "resumed", {"from_step": 1}), Seen("6000-0", *_step(2)), *STORY[8:]]:
        timeline.add(event)
    assert timeline.durations_s["loading"] == pytest.approx(3.0)
    assert timeline.durations_s["denoising"] == pytest.approx(2.1)


def _step(step: int) -> tuple[str, dict[str, Any]]:
    return "progress", {"step": step, "steps": 4, "phase": "denoising"}


def test_a_snapshot_stands_for_events_that_are_lost() -> None:
    timeline = Timeline()
    timeline.add(
        Seen("", "snapshot", {"status": "in_progress", "phase": "decoding", "steps_done": 4, "steps_total": 4})
    )
    assert (timeline.phase, timeline.step, timeline.steps) == ("decoding", 4, 4)
    timeline.add(Seen("", "snapshot", {"status": "completed", "phase": "completed"}))
    assert timeline.is_over


def test_a_pipe_gets_one_line_per_phase_and_quarter() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    timeline = Timeline()
    with display(console) as shown:
        for event in STORY:
            timeline.add(event)
            shown.show(timeline)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "  waiting in the queue, next in line",
        "  loading the model",
        "  denoising, step 0/4",
        "  denoising, step 1/4",
        "  denoising, step 4/4",
        "  decoding frames",
        "  encoding and signing",
        "  done",
    ]


def test_a_terminal_gets_a_bar_with_step_and_eta() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    timeline = Timeline()
    with display(console) as shown:
        for event in STORY[:5]:
            timeline.add(event)
            shown.show(timeline)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "denoising, step 1/4" in text
    assert "about 1.5 s left" in text


def test_durations_for_people() -> None:
    assert [duration(one) for one in (0.04, 9.96, 42.4, 200)] == ["0.0 s", "10.0 s", "42 s", "3:20 min"]


def test_file_names() -> None:
    assert slug("A red ball, bouncing!") == "a-red-ball-bouncing"
    assert slug("…") == "video"
    assert len(slug("word " * 50)) <= 60
    assert "/" not in slug("../../etc/passwd")


def test_a_place_in_the_queue_is_shown_until_the_job_starts() -> None:
    timeline = Timeline()
    timeline.add(Seen("1000-0", "queued"))
    assert timeline.describe() == "waiting in the queue"
    timeline.add(Seen("", "queued", {"position": 2, "eta_s": 40.0}), now_s=2.0)
    assert (timeline.describe(), timeline.eta_s) == ("waiting in the queue, 2 before it", 40.0)
    timeline.add(Seen("", "queued", {"position": 0, "eta_s": None}), now_s=3.0)
    assert (timeline.describe(), timeline.eta_s) == ("waiting in the queue, next in line", None)
    timeline.add(Seen("5000-0", "started"))
    assert (timeline.describe(), timeline.position) == ("loading the model", None)
    assert timeline.durations_s == {"queued": 4.0}  # from event to event, whatever was told in between
