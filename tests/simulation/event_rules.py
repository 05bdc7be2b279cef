"""What clients are told."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitascope_common.events import TERMINAL_EVENTS

Violate = Callable[[str, str], None]
Say = Callable[..., None]
Row = Mapping[str, Any]


@dataclass
class EventRules:
    """What the clients of a job are told."""

    violate: Violate
    versions: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    terminal: Counter[str] = field(default_factory=Counter)
    is_lost: bool = False

    def lost(self) -> None:
        """Redis has lost something: from here on events may be missing, or be told again."""
        self.is_lost = True
        self.versions.clear()
        self.terminal.clear()

    def appended(self, job_id: str, event_type: str, version: str) -> None:
        """An event is in the history of its job."""
        if not version:
            return
        seen = self.versions[job_id]
        if seen and int(version) <= seen[-1]:
            self.violate("no version twice and none out of order", f"{job_id}: {seen} and then {version}")
        seen.append(int(version))
        self.terminal[job_id] += event_type in TERMINAL_EVENTS
        if self.terminal[job_id] > 1:
            self.violate("one terminal event", job_id)

    def check_end(self, jobs: Mapping[str, Row], num_stored: Callable[[str], int]) -> None:
        """Without a loss, every version was told and is in the history."""
        for job_id, row in jobs.items():
            if not self.is_lost and self.versions[job_id] != list(range(1, row["version"] + 1)):
                self.violate("no gap in the events of a job", f"{job_id}: {self.versions[job_id]} of {row['version']}")
            if not self.is_lost and num_stored(job_id) != row["version"]:
                self.violate("no gap in the events of a job", f"{job_id}: {num_stored(job_id)} of {row['version']}")
