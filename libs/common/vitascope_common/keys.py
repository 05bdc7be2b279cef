"""Every Redis name, one function each: owner (the only writer), type, lifetime.

Keys of one pool share the hash tag `{pool}`, keys of one event shard the tag `{eNN}`, so that each Lua script stays in
one slot of a Redis Cluster.
"""

import zlib

NUM_EVENT_SHARDS = 16


def event_shard(job_id: str) -> int:
    """Return the event shard of a job, 0 to 15."""
    return zlib.crc32(job_id.encode()) % NUM_EVENT_SHARDS


def events(job_id: str) -> str:
    """STREAM, history of one job; owner: the script append_event; expires a day after the last event."""
    return f"events:{{e{event_shard(job_id):02d}}}:{job_id}"


def event_fence(job_id: str) -> str:
    """HASH {version, attempt of each task}: what append_event lets pass; owner and lifetime as `events`."""
    return f"fence:{{e{event_shard(job_id):02d}}}:{job_id}"


def feed(shard: int) -> str:
    """STREAM, live copies of the events of one shard, trimmed; owner: the script append_event; no expiry."""
    return f"feed:{{e{shard:02d}}}"


def epoch(pool: str) -> str:
    """STRING, random id made when it is missing; owner: the scheduler; no expiry. Its absence tells of a wipe."""
    return f"epoch:{{{pool}}}"


def leases(pool: str) -> str:
    """ZSET task -> expiry (ms) of handed-out and claimed tasks; owner: the scheduler; no expiry."""
    return f"leases:{{{pool}}}"


def idle(pool: str) -> str:
    """ZSET worker -> expiry (ms) of its registration, workers with a free slot; owner: the scheduler; no expiry."""
    return f"idle:{{{pool}}}"


def workers(pool: str) -> str:
    """ZSET worker -> expiry (ms) of its registration, busy ones too; owner: the scheduler; no expiry."""
    return f"workers:{{{pool}}}"


def drains(pool: str) -> str:
    """SET of the workers that get no more work, "" = all of them: cache of a table; owner: the scheduler; no expiry."""
    return f"drains:{{{pool}}}"


def served(pool: str) -> str:
    """HASH per flow and class: GPU-ms charged, GPU-s entitled, in this epoch; owner: the scheduler; no expiry."""
    return f"served:{{{pool}}}"


def worker(pool: str, worker_id: str) -> str:
    """HASH {slots, withheld, drained, device, models}; owner: the scheduler; expires with the registration."""
    return f"worker:{{{pool}}}:{worker_id}"


def held(pool: str, worker_id: str) -> str:
    """SET of the tasks whose lease a worker has: what its slots are taken by; owner: the scheduler; gone when empty."""
    return f"held:{{{pool}}}:{worker_id}"


def inbox(pool: str, worker_id: str) -> str:
    """STREAM of commands (assign, yield, run, stop) to a worker; owner: scheduler; expires with the registration."""
    return f"inbox:{{{pool}}}:{worker_id}"


def classes(pool: str) -> str:
    """HASH {v, counts, and per class F, floor, head}: upper level of SFQ; owner: the scheduler; no expiry."""
    return f"classes:{{{pool}}}"


def class_heads(pool: str) -> str:
    """ZSET class -> start tag, classes that have an eligible flow; owner: the scheduler; no expiry."""
    return f"class_heads:{{{pool}}}"


def flows(pool: str, class_name: str) -> str:
    """HASH {v, counts, backlog; per tenant F, floor, head, weight}: lower level; owner: the scheduler; no expiry."""
    return f"flows:{{{pool}}}:{class_name}"


def flow_heads(pool: str, class_name: str) -> str:
    """ZSET tenant -> start tag, flows with an eligible task; owner: the scheduler; no expiry."""
    return f"flow_heads:{{{pool}}}:{class_name}"


def backlogs(pool: str, class_name: str) -> str:
    """ZSET tenant -> GPU-ms that wait in its flow, whether eligible or not; owner: the scheduler; gone when empty."""
    return f"backlogs:{{{pool}}}:{class_name}"


def flow_queue(pool: str, class_name: str, tenant_id: str) -> str:
    """ZSET task -> priority then arrival, what waits in one flow; owner: the scheduler; gone when empty."""
    return f"queue:{{{pool}}}:{class_name}:{tenant_id}"


def queued_task(pool: str, task: str) -> str:
    """HASH {state, class, cost, charged, weights, worker}; owner: the scheduler; {ended}, expiring, once settled."""
    return f"task:{{{pool}}}:{task}"


def in_flight(pool: str) -> str:
    """HASH per tenant: tasks in flight, all classes together, and its cap; owner: the scheduler; no expiry."""
    return f"in_flight:{{{pool}}}"


def scheduler_leader(role: str) -> str:
    """STRING, id of the replica that runs a periodic duty; owner: the scheduler; expires in seconds."""
    return f"leader:{role}"
