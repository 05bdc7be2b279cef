"""Events of a job and the one script that writes them.

`append_event` keeps a history per job (its stream id is the SSE id, so `Last-Event-ID` resumes) and a live copy in one
of 16 feeds. State events carry the job's SQL version and arrive through the outbox at least once: one that is not newer
is dropped. Progress of an older attempt is dropped, and so is progress of an attempt that has ended.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from vitascope_common import keys

HISTORY_TTL_S = 24 * 3600
HISTORY_MAX_EVENTS = 2000
FEED_MAX_EVENTS = 10_000


class EventType(StrEnum):
    """What can happen to a job, as clients see it."""

    QUEUED = "queued"  # reason, when it comes back; to followers, while it waits: position, eta_s (kept nowhere)
    STARTED = "started"
    PROGRESS = "progress"  # step, steps, percent, eta_s, phase
    CHECKPOINT = "checkpoint"  # step
    PREEMPTED = "preempted"
    RESUMED = "resumed"  # from_step
    DECODING = "decoding"
    POSTPROCESSING = "postprocessing"  # stage
    COMPLETED = "completed"  # urls
    FAILED = "failed"  # code, message
    CANCELLED = "cancelled"
    SNAPSHOT = "snapshot"  # the whole Video object, from SQL
    PARTIAL = "partial"  # may be lost, never authoritative


TERMINAL_EVENTS = frozenset({EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED})


@dataclass(frozen=True)
class Event:
    """One event to append. `version` for state events, `task` and `attempt` for what an executor says.

    With `closes`, the attempt has ended: later progress of it is dropped.
    """

    job_id: str
    type: EventType
    data: Mapping[str, Any] = field(default_factory=dict)
    version: int | None = None
    task: str = ""
    attempt: int = 0
    closes: bool = False


@dataclass(frozen=True)
class StoredEvent:
    """One event as it is read back; `id` is the stream id, ordered within its job."""

    id: str
    job_id: str
    type: EventType
    data: dict[str, Any]


# KEYS: history, fence, feed. ARGV: job, type, data, version or "", task or "", attempt, closes, ttl_s, max history,
# max feed. Returns the event's id, or false when it was dropped.
APPEND_EVENT = """
local version, task, attempt = ARGV[4], ARGV[5], tonumber(ARGV[6])
local seen = tonumber(redis.call('HGET', KEYS[2], 'version') or '0')
if version ~= '' and tonumber(version) <= seen then return false end
if version == '' and redis.call('HEXISTS', KEYS[2], 'terminal') == 1 then return false end
if task ~= '' then
  local fence = tonumber(redis.call('HGET', KEYS[2], task) or '0')
  if version == '' and attempt < fence then return false end
  local raised = attempt
  if ARGV[7] == '1' then raised = attempt + 1 end
  if raised > fence then redis.call('HSET', KEYS[2], task, raised) end
end
if version ~= '' then redis.call('HSET', KEYS[2], 'version', version) end
if ARGV[2] == 'completed' or ARGV[2] == 'failed' or ARGV[2] == 'cancelled' then
  redis.call('HSET', KEYS[2], 'terminal', '1')
end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[9], '*', 'type', ARGV[2], 'data', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[8])
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[10], '*', 'job', ARGV[1], 'id', id, 'type', ARGV[2], 'data', ARGV[3])
return id
"""


def _arguments(event: Event) -> list[str]:
    return [
        keys.events(event.job_id),
        keys.event_fence(event.job_id),
        keys.feed(keys.event_shard(event.job_id)),
        event.job_id,
        event.type.value,
        json.dumps(event.data, separators=(",", ":")),
        "" if event.version is None else str(event.version),
        event.task,
        str(event.attempt),
        "1" if event.closes else "0",
        str(HISTORY_TTL_S),
        str(HISTORY_MAX_EVENTS),
        str(FEED_MAX_EVENTS),
    ]


def append(redis: Redis, event: Event) -> str | None:
    """Append an event; None when the fence dropped it. Raises one of redis_clients.ERRORS when Redis is away."""
    return cast("str | None", redis.eval(APPEND_EVENT, 3, *_arguments(event)))


async def append_async(redis: AsyncRedis, event: Event) -> str | None:
    """Append an event; None when the fence dropped it. Raises one of redis_clients.ERRORS when Redis is away."""
    return cast("str | None", await cast(Any, redis.eval(APPEND_EVENT, 3, *_arguments(event))))


def from_history(job_id: str, entry_id: str, fields: Mapping[str, str]) -> StoredEvent:
    """Read one entry of `keys.events`."""
    return StoredEvent(entry_id, job_id, EventType(fields["type"]), json.loads(fields["data"]))


def from_feed(fields: Mapping[str, str]) -> StoredEvent:
    """Read one entry of `keys.feed`."""
    return from_history(fields["job"], fields["id"], fields)


def id_order(event_id: str) -> tuple[int, int]:
    """Return a stream id as a sortable pair; (0, 0) for anything that is not one."""
    milliseconds, _, sequence = event_id.partition("-")
    if milliseconds.isdecimal() and sequence.isdecimal() and event_id.isascii():
        return int(milliseconds), int(sequence)
    return 0, 0
