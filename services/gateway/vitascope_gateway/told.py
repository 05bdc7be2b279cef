"""What followers of a job are told, whichever way they follow it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from vitascope_common.events import EventType, StoredEvent, id_order
from vitascope_common.renditions import RENDITIONS
from vitascope_gateway import objects
from vitascope_gateway.previews import preview_path
from vitascope_gateway.service import JobRecord, QueuePosition


@dataclass(frozen=True, eq=False)
class Told:
    """One event as clients see it. The feed makes one object for all followers, so that it is encoded once for all.

    `id` is what resumes after it: "" for what no history holds.
    """

    id: str
    type: EventType
    data: Mapping[str, Any]

    @cached_property
    def order(self) -> tuple[int, int]:
        """Its place within its job."""
        return id_order(self.id)

    @cached_property
    def json(self) -> str:
        """The data as JSON without spaces."""
        return json.dumps(self.data, separators=(",", ":"))


class Pause(Enum):
    """What is told when there is no event: that the stream lives."""

    HEARTBEAT = "heartbeat"
    WAITING = "waiting"  # Redis and SQL are away


def told(event: StoredEvent) -> Told:
    """Tell an event: its own facts, the id of the video and the type."""
    data = {**event.data, "id": event.job_id, "type": event.type.value}
    if "preview" in data:
        preview = data["preview"]
        if isinstance(preview, Mapping) and "step" in preview:
            # Where it lies is nobody's business outside. The path is the same for all, so that all get the same bytes:
            # it is opened as the stream was, with a key or with the token of `events_url`.
            data["preview"] = {"step": preview["step"], "url": preview_path(event.job_id)}
        else:
            del data["preview"]
    return Told(event.id, event.type, data)


def told_completed(completed: Told, urls: objects.Urls) -> Told:
    """Tell where the files are, as this client reaches us."""
    job_id = completed.data["id"]
    links = {variant: urls.content(job_id, variant) for variant in RENDITIONS}
    return Told(completed.id, completed.type, {**completed.data, "urls": links})


def told_snapshot(newest_id: str, record: JobRecord, urls: objects.Urls) -> Told:
    """Tell the whole state; `newest_id` is the last event that it covers."""
    data = {**objects.video(record, urls).model_dump(), "type": EventType.SNAPSHOT.value}
    return Told(newest_id, EventType.SNAPSHOT, data)


def told_place(job_id: str, place: QueuePosition) -> Told:
    """Tell where a job stands. No id: this is no event of the history, and what resumes stays what it is."""
    data = {"position": place.position, "eta_s": place.eta_s, "id": job_id, "type": EventType.QUEUED.value}
    return Told("", EventType.QUEUED, data)
