"""Identifiers: time-ordered, random enough to be unguessable, safe in URLs, object keys and Redis keys."""

import os
import re
import secrets
import socket
import time

_JOB_ID = re.compile(r"video_[0-9a-f]{32}")
_FILE_ID = re.compile(r"file_[0-9a-f]{32}")
_BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


def new_job_id() -> str:
    """Make a job id: `video_` and 32 hex digits, the first 12 of them Unix milliseconds (as UUIDv7, RFC 9562)."""
    return _new_id("video")


def new_file_id() -> str:
    """Make the id of a file, in the form of a job id."""
    return _new_id("file")


def new_batch_id() -> str:
    """Make the id of a batch, in the form of a job id."""
    return _new_id("batch")


def is_job_id(text: str) -> bool:
    """Tell whether `text` has the form of a job id, so that a lookup is worth its while."""
    return _JOB_ID.fullmatch(text) is not None


def job_made_at_ms(job_id: str) -> int:
    """Return when a job id was made, which is before its job was admitted."""
    return int(job_id.removeprefix("video_")[:12], 16)


def is_file_id(text: str) -> bool:
    """Tell whether `text` has the form of the id of a file."""
    return _FILE_ID.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    """Tell whether `text` has the form of the id of a batch."""
    return _BATCH_ID.fullmatch(text) is not None


def task_id(job_id: str, stage: str, shard: int) -> str:
    """Name the one task of this stage and shard; the same at every admission of the same job."""
    return f"{job_id}.{stage}.{shard}"


def job_id_of(task: str) -> str:
    """Return the job that a task id belongs to."""
    return task.split(".", 1)[0]


def new_worker_id(executor: str) -> str:
    """Make a worker id that is unique per process start, so that a restarted worker never inherits an inbox."""
    return f"{executor}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def now_ms() -> int:
    """Return milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def _new_id(prefix: str) -> str:
    return f"{prefix}_{now_ms():012x}{secrets.token_hex(10)}"
