"""What the scheduler knows of workers and of their work: plain values."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Worker:
    """An executor that takes work from an inbox, as it registers."""

    worker_id: str
    executor: str
    pool: str
    device: str
    group_size: int
    num_slots: int
    warm_models: tuple[str, ...]


@dataclass(frozen=True)
class SlotsOfWorker:
    """What a worker says of its slots: every task that it holds, and whether it is about to leave."""

    task_ids: tuple[str, ...] = ()
    warm_models: tuple[str, ...] = ()
    is_draining: bool = False


@dataclass(frozen=True)
class Dispatched:
    """A task that was just handed to a worker."""

    task_id: str
    tenant_id: str
    class_name: str
    traceparent: str


class Nothing(Enum):
    """Why nothing was dispatched."""

    NO_SLOT = 0  # this worker has no free slot, or is not known
    NO_TASK = 1  # nothing waits in the pool that may run now


@dataclass(frozen=True)
class Place:
    """Where a task waits: tasks before it, its cost, tasks in flight in its pool."""

    position: int
    cost_s: float
    num_in_flight: int
