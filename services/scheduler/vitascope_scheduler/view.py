"""What operators see of a pool. Costs are GPU-seconds; tags are virtual time: GPU-seconds over weight."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FlowView:
    """One tenant in one class."""

    tenant_id: str
    weight: float
    cap: int  # tasks of the pool at once, 0 = none
    start_tag: float
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    served_s: float
    entitled_s: float


@dataclass(frozen=True)
class ClassView:
    """One class; its flows are those with the largest backlog, then others that were served in this epoch."""

    class_name: str
    weight: float
    virtual_time: float
    start_tag: float
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    served_s: float  # charged in this epoch, less what was refunded
    entitled_s: float  # weight x virtual time that passed in this epoch while it had something eligible waiting
    flows: tuple[FlowView, ...]


@dataclass(frozen=True)
class WorkerView:
    """One registered worker."""

    worker_id: str
    device: str
    group_size: int
    num_slots: int
    num_free_slots: int
    warm_models: tuple[str, ...]
    expires_in_ms: int
    is_draining: bool
    task_ids: tuple[str, ...]


@dataclass(frozen=True)
class LeaseView:
    """One task in flight."""

    task_id: str
    tenant_id: str
    class_name: str
    worker_id: str
    state: str  # "handed_over", "claimed", "yielding", "stopping"
    expires_in_ms: int
    charged_s: float
    attempt: int


@dataclass(frozen=True)
class PoolView:
    """One pool: flows of each class, workers and leases are cut off at a thousand each, the sums are not."""

    pool: str
    is_draining: bool  # all of it
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    virtual_time: float
    classes: tuple[ClassView, ...]
    workers: tuple[WorkerView, ...]
    leases: tuple[LeaseView, ...]
