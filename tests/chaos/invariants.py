"""What holds after every disturbance: nothing lost, nothing doubled, the same bits, a whole history, an empty queue."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis as redis_py

import vitascope_client
from tests.conftest import Stack, wait_for
from vitascope_client import Event
from vitascope_common import keys
from vitascope_common.redis_clients import connect

POOL = "default"
MAX_REPEATED = 12
"""Ten steps lie between two checkpoints; one takes a moment to be recorded, in which the small model makes a step."""
TERMINAL = ("completed", "failed", "cancelled")


def follow(stack: Stack, video_id: str, on_event: Callable[[Event], None] = lambda event: None) -> list[Event]:
    """Return every event that a client sees until the last one."""
    seen = []
    for event in stack.client.videos.stream(video_id):
        seen.append(event)
        on_event(event)
    return seen


def assert_done_once(stack: Stack, video_id: str, twin: str | None = None) -> None:
    """One terminal state, one `done` in the ledger per task, one published set, the bits of the twin."""
    (job,) = stack.sql("SELECT state, manifest_key, manifest_sha256, error_code FROM jobs WHERE job_id = ?", video_id)
    assert job["state"] == "completed", job
    tasks = stack.sql("SELECT task_id, stage, state, attempt FROM tasks WHERE job_id = ?", video_id)
    assert {task["stage"]: task["state"] for task in tasks} == {"generate": "done", "finish": "done"}
    ledger = stack.sql("SELECT task_id, attempt, outcome FROM ledger WHERE job_id = ?", video_id)
    done = Counter(row["task_id"] for row in ledger if row["outcome"] == "done")
    assert done == {task["task_id"]: 1 for task in tasks}
    attempts = {task["task_id"]: task["attempt"] for task in tasks}
    assert all(row["attempt"] == attempts[row["task_id"]] for row in ledger if row["outcome"] == "done")
    assert len(ledger) == sum(attempts.values()), "each attempt ended, and once"

    finish = next(task for task in tasks if task["stage"] == "finish")
    assert job["manifest_key"] == f"videos/{video_id}/{finish['attempt']}/manifest.json"
    content = wait_for("the video to be served", lambda: _download(stack, video_id))
    assert content[4:8] == b"ftyp"
    if "VITASCOPE_OBJECT_STORE_URL" not in stack.settings:
        manifest = (stack.data_dir / "objects" / job["manifest_key"]).read_bytes()
        assert hashlib.sha256(manifest).hexdigest() == job["manifest_sha256"]
    if twin is not None:
        assert stack.output(video_id, "generate", "latents")["sha256"] == twin


def assert_whole_history(stack: Stack, video_id: str, seen: Sequence[Event]) -> None:
    """The client saw what the history holds: in order, all of it, each once. Places in the queue are not in it."""
    redis = connect(stack.state["redis_url"])
    history = [entry_id for entry_id, _ in redis.xrange(keys.events(video_id))]
    redis.close()
    assert [event.id for event in seen if event.id or event.type != "queued"] == history
    assert [event.type for event in seen if event.type in TERMINAL] == [seen[-1].type]


def assert_no_event_twice(seen: Sequence[Event]) -> None:
    """For a history that Redis has lost: no event comes twice and nothing follows the end.

    A snapshot has the id of the newest event that it stands for, which the client may know.
    """
    ids = Counter(event.id for event in seen if event.id and event.type != "snapshot")
    assert [event for event in seen if ids[event.id] > 1] == []
    ended = [event for event in seen if event.type in TERMINAL or event.is_last]
    assert ended == [seen[-1]]


def steps_repeated(seen: Iterable[Event]) -> list[int]:
    """Return per interruption how many steps were taken again, as far as a client can see."""
    repeated, newest = [], 0
    for event in seen:
        if event.type == "resumed":
            repeated.append(max(0, newest - int(event.data["from_step"])))
        elif event.type == "progress" and event.data["phase"] == "denoising":
            newest = int(event.data["step"])
    return repeated


def assert_drained(stack: Stack) -> None:
    """Nothing is left under way: no open row, no outbox, no lease, nobody in line."""

    def left() -> str:
        open_jobs = stack.sql("SELECT job_id, state FROM jobs WHERE state IN ('queued', 'running')")
        open_tasks = stack.sql("SELECT task_id, state FROM tasks WHERE state NOT IN ('done', 'failed', 'cancelled')")
        outbox = stack.sql("SELECT topic, job_id FROM outbox")
        redis = connect(stack.state["redis_url"])
        try:
            leases = redis.zrange(keys.leases(POOL), 0, -1)
            counts = redis.hmget(keys.classes(POOL), ["num_waiting", "num_in_flight"])
        except redis_py.RedisError as error:
            return repr(error)
        finally:
            redis.close()
        is_empty = not any((open_jobs, open_tasks, outbox, leases, *(int(one or 0) for one in counts)))
        return "" if is_empty else f"{open_jobs} {open_tasks} {outbox} {leases} {counts}"

    last = [""]

    def is_drained() -> bool:
        last[0] = left()
        return not last[0]

    try:
        wait_for("the queue to drain", is_drained, timeout_s=30)
    finally:
        assert not last[0]


def _download(stack: Stack, video_id: str) -> bytes | None:
    """The video; None while the way to it is on its way back."""
    with contextlib.suppress(vitascope_client.APIConnectionError, vitascope_client.ServerError):
        return stack.client.videos.download(video_id)
    return None


def checkpoints(stack: Stack, video_id: str) -> list[dict[str, Any]]:
    """Return the recorded checkpoints of the generating task, newest first."""
    return list(json.loads(stack.task(video_id, "generate")["checkpoints"]))
