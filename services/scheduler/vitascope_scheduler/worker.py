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
    worker_id: str


class Nothing(Enum):
    """Why nothing was dispatched."""

    NO_SLOT = 0  # this worker has no free slot, or is not known
    NO_TASK = 1  # nothing waits in the pool that may run now


@dataclass(frozen=True)
class Preemption:
    """When a running task is asked to make way."""

    wait_ms: int = 1_000  # that the task at the head of the line has waited
    min_run_ms: int = 30_000  # that the victim has run since its resume
    max_yields: int = 3  # in the victim's last hour of running; then it is left alone


@dataclass(frozen=True)
class Preempted:
    """A running task that was asked to make way, and for whom."""

    task_id: str
    worker_id: str
    beneficiary_id: str
