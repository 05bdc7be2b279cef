"""What operators see of the queues; it goes over the wire as it is. Seconds are GPU-seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FlowView:
    """One tenant in one class of one pool."""

    tenant_id: str
    weight: float  # share among its siblings
    cap: int  # tasks of the pool at once; 0: none
    start_tag: float  # virtual time at which it is due
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    served_s: float  # charged in this epoch
    entitled_s: float  # due in this epoch: weight x virtual time that passed while it waited


@dataclass(frozen=True)
class ClassView:
    """One class of one pool."""

    class_name: str
    weight: float
    virtual_time: float  # of the flows in it
    start_tag: float
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    served_s: float
    entitled_s: float
    flows: list[FlowView]


@dataclass(frozen=True)
class WorkerView:
    """One worker: a group of devices that takes tasks together."""

    worker_id: str
    device: str
    group_size: int
    num_slots: int
    num_free_slots: int
    warm_models: list[str]
    expires_in_ms: int  # its registration, when no heartbeat comes
    is_draining: bool
    task_ids: list[str]


@dataclass(frozen=True)
class LeaseView:
    """One task that a worker was given."""

    task_id: str
    tenant_id: str
    class_name: str
    worker_id: str
    state: str  # handed_over, claimed, yielding, stopping
    expires_in_ms: int
    charged_s: float
    attempt: int


@dataclass(frozen=True)
class PoolView:
    """One pool."""

    pool: str
    is_draining: bool  # as a whole
    num_waiting: int
    num_in_flight: int
    backlog_s: float  # what waits: what an autoscaler looks at
    virtual_time: float
    classes: list[ClassView]
    workers: list[WorkerView]
    leases: list[LeaseView]
