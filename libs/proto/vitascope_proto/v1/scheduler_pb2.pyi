from vitascope_proto.v1 import jobs_pb2 as _jobs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_RUN: _ClassVar[Action]
    ACTION_YIELD: _ClassVar[Action]
    ACTION_STOP: _ClassVar[Action]
    ACTION_STALE: _ClassVar[Action]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_DONE: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_YIELDED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
ACTION_UNSPECIFIED: Action
ACTION_RUN: Action
ACTION_YIELD: Action
ACTION_STOP: Action
ACTION_STALE: Action
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_DONE: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_YIELDED: Outcome
OUTCOME_CANCELLED: Outcome

class SubmitRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("job_id", "tenant_id")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    tenant_id: str
    def __init__(self, job_id: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("job_id", "tenant_id")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    tenant_id: str
    def __init__(self, job_id: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetQueuePositionRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetQueuePositionResponse(_message.Message):
    __slots__ = ("position", "eta_s")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    position: int
    eta_s: float
    def __init__(self, position: _Optional[int] = ..., eta_s: _Optional[float] = ...) -> None: ...

class GetQueuePositionsRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class JobPosition(_message.Message):
    __slots__ = ("job_id", "position", "eta_s")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    position: int
    eta_s: float
    def __init__(self, job_id: _Optional[str] = ..., position: _Optional[int] = ..., eta_s: _Optional[float] = ...) -> None: ...

class GetQueuePositionsResponse(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedCompositeFieldContainer[JobPosition]
    def __init__(self, positions: _Optional[_Iterable[_Union[JobPosition, _Mapping]]] = ...) -> None: ...

class ForecastRequest(_message.Message):
    __slots__ = ("pool", "tenant_id", "class_name", "cost_s")
    POOL_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    COST_S_FIELD_NUMBER: _ClassVar[int]
    pool: str
    tenant_id: str
    class_name: str
    cost_s: float
    def __init__(self, pool: _Optional[str] = ..., tenant_id: _Optional[str] = ..., class_name: _Optional[str] = ..., cost_s: _Optional[float] = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("position", "eta_s")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    position: int
    eta_s: float
    def __init__(self, position: _Optional[int] = ..., eta_s: _Optional[float] = ...) -> None: ...

class GetQueueRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class GetQueueResponse(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[PoolView]
    def __init__(self, pools: _Optional[_Iterable[_Union[PoolView, _Mapping]]] = ...) -> None: ...

class PoolView(_message.Message):
    __slots__ = ("pool", "is_draining", "num_waiting", "num_in_flight", "backlog_s", "virtual_time", "classes", "workers", "leases")
    POOL_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_S_FIELD_NUMBER: _ClassVar[int]
    VIRTUAL_TIME_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    pool: str
    is_draining: bool
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    virtual_time: float
    classes: _containers.RepeatedCompositeFieldContainer[ClassView]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerView]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseView]
    def __init__(self, pool: _Optional[str] = ..., is_draining: _Optional[bool] = ..., num_waiting: _Optional[int] = ..., num_in_flight: _Optional[int] = ..., backlog_s: _Optional[float] = ..., virtual_time: _Optional[float] = ..., classes: _Optional[_Iterable[_Union[ClassView, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerView, _Mapping]]] = ..., leases: _Optional[_Iterable[_Union[LeaseView, _Mapping]]] = ...) -> None: ...

class ClassView(_message.Message):
    __slots__ = ("class_name", "weight", "virtual_time", "start_tag", "num_waiting", "num_in_flight", "backlog_s", "served_s", "entitled_s", "flows")
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    VIRTUAL_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TAG_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_S_FIELD_NUMBER: _ClassVar[int]
    SERVED_S_FIELD_NUMBER: _ClassVar[int]
    ENTITLED_S_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    class_name: str
    weight: float
    virtual_time: float
    start_tag: float
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    served_s: float
    entitled_s: float
    flows: _containers.RepeatedCompositeFieldContainer[FlowView]
    def __init__(self, class_name: _Optional[str] = ..., weight: _Optional[float] = ..., virtual_time: _Optional[float] = ..., start_tag: _Optional[float] = ..., num_waiting: _Optional[int] = ..., num_in_flight: _Optional[int] = ..., backlog_s: _Optional[float] = ..., served_s: _Optional[float] = ..., entitled_s: _Optional[float] = ..., flows: _Optional[_Iterable[_Union[FlowView, _Mapping]]] = ...) -> None: ...

class FlowView(_message.Message):
    __slots__ = ("tenant_id", "weight", "cap", "start_tag", "num_waiting", "num_in_flight", "backlog_s", "served_s", "entitled_s")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    START_TAG_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_S_FIELD_NUMBER: _ClassVar[int]
    SERVED_S_FIELD_NUMBER: _ClassVar[int]
    ENTITLED_S_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    weight: float
    cap: int
    start_tag: float
    num_waiting: int
    num_in_flight: int
    backlog_s: float
    served_s: float
    entitled_s: float
    def __init__(self, tenant_id: _Optional[str] = ..., weight: _Optional[float] = ..., cap: _Optional[int] = ..., start_tag: _Optional[float] = ..., num_waiting: _Optional[int] = ..., num_in_flight: _Optional[int] = ..., backlog_s: _Optional[float] = ..., served_s: _Optional[float] = ..., entitled_s: _Optional[float] = ...) -> None: ...

class WorkerView(_message.Message):
    __slots__ = ("worker_id", "device", "group_size", "num_slots", "num_free_slots", "warm_models", "expires_in_ms", "is_draining", "task_ids")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    WARM_MODELS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_MS_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    device: str
    group_size: int
    num_slots: int
    num_free_slots: int
    warm_models: _containers.RepeatedScalarFieldContainer[str]
    expires_in_ms: int
    is_draining: bool
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., device: _Optional[str] = ..., group_size: _Optional[int] = ..., num_slots: _Optional[int] = ..., num_free_slots: _Optional[int] = ..., warm_models: _Optional[_Iterable[str]] = ..., expires_in_ms: _Optional[int] = ..., is_draining: _Optional[bool] = ..., task_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class LeaseView(_message.Message):
    __slots__ = ("task_id", "tenant_id", "class_name", "worker_id", "state", "expires_in_ms", "charged_s", "attempt")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_MS_FIELD_NUMBER: _ClassVar[int]
    CHARGED_S_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    tenant_id: str
    class_name: str
    worker_id: str
    state: str
    expires_in_ms: int
    charged_s: float
    attempt: int
    def __init__(self, task_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., class_name: _Optional[str] = ..., worker_id: _Optional[str] = ..., state: _Optional[str] = ..., expires_in_ms: _Optional[int] = ..., charged_s: _Optional[float] = ..., attempt: _Optional[int] = ...) -> None: ...

class SetDrainRequest(_message.Message):
    __slots__ = ("pool", "worker_id", "is_draining", "tenant_id")
    POOL_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    pool: str
    worker_id: str
    is_draining: bool
    tenant_id: str
    def __init__(self, pool: _Optional[str] = ..., worker_id: _Optional[str] = ..., is_draining: _Optional[bool] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class SetDrainResponse(_message.Message):
    __slots__ = ("num_workers",)
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    num_workers: int
    def __init__(self, num_workers: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("worker_id", "executor", "pool", "device", "group_size", "num_slots", "warm_models")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    WARM_MODELS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    executor: str
    pool: str
    device: str
    group_size: int
    num_slots: int
    warm_models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., executor: _Optional[str] = ..., pool: _Optional[str] = ..., device: _Optional[str] = ..., group_size: _Optional[int] = ..., num_slots: _Optional[int] = ..., warm_models: _Optional[_Iterable[str]] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("lease_ttl_ms", "heartbeat_ms")
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    lease_ttl_ms: int
    heartbeat_ms: int
    def __init__(self, lease_ttl_ms: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class ClaimRequest(_message.Message):
    __slots__ = ("task_id", "worker_id", "group_size")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    worker_id: str
    group_size: int
    def __init__(self, task_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., group_size: _Optional[int] = ...) -> None: ...

class ClaimResponse(_message.Message):
    __slots__ = ("granted", "reason", "task", "lease_ttl_ms", "heartbeat_ms")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    granted: bool
    reason: str
    task: _jobs_pb2.Task
    lease_ttl_ms: int
    heartbeat_ms: int
    def __init__(self, granted: _Optional[bool] = ..., reason: _Optional[str] = ..., task: _Optional[_Union[_jobs_pb2.Task, _Mapping]] = ..., lease_ttl_ms: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class TaskStatus(_message.Message):
    __slots__ = ("task_id", "attempt", "progress", "used_s", "meters", "checkpoint")
    class MetersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    USED_S_FIELD_NUMBER: _ClassVar[int]
    METERS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    progress: _jobs_pb2.Progress
    used_s: float
    meters: _containers.ScalarMap[str, float]
    checkpoint: _jobs_pb2.Checkpoint
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., progress: _Optional[_Union[_jobs_pb2.Progress, _Mapping]] = ..., used_s: _Optional[float] = ..., meters: _Optional[_Mapping[str, float]] = ..., checkpoint: _Optional[_Union[_jobs_pb2.Checkpoint, _Mapping]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("worker_id", "executor", "pool", "num_free_slots", "worker_state", "tasks", "warm_models", "is_draining")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    WORKER_STATE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    WARM_MODELS_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    executor: str
    pool: str
    num_free_slots: int
    worker_state: str
    tasks: _containers.RepeatedCompositeFieldContainer[TaskStatus]
    warm_models: _containers.RepeatedScalarFieldContainer[str]
    is_draining: bool
    def __init__(self, worker_id: _Optional[str] = ..., executor: _Optional[str] = ..., pool: _Optional[str] = ..., num_free_slots: _Optional[int] = ..., worker_state: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[TaskStatus, _Mapping]]] = ..., warm_models: _Optional[_Iterable[str]] = ..., is_draining: _Optional[bool] = ...) -> None: ...

class TaskAction(_message.Message):
    __slots__ = ("task_id", "attempt", "action")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    action: Action
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., action: _Optional[_Union[Action, str]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("must_register", "actions")
    MUST_REGISTER_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    must_register: bool
    actions: _containers.RepeatedCompositeFieldContainer[TaskAction]
    def __init__(self, must_register: _Optional[bool] = ..., actions: _Optional[_Iterable[_Union[TaskAction, _Mapping]]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("worker_id", "task_id", "attempt", "outcome", "outputs", "error_code", "error_message", "is_retryable", "used_s", "meters", "checkpoint")
    class MetersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IS_RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    USED_S_FIELD_NUMBER: _ClassVar[int]
    METERS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    task_id: str
    attempt: int
    outcome: Outcome
    outputs: _containers.RepeatedCompositeFieldContainer[_jobs_pb2.Artifact]
    error_code: str
    error_message: str
    is_retryable: bool
    used_s: float
    meters: _containers.ScalarMap[str, float]
    checkpoint: _jobs_pb2.Checkpoint
    def __init__(self, worker_id: _Optional[str] = ..., task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., outputs: _Optional[_Iterable[_Union[_jobs_pb2.Artifact, _Mapping]]] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., is_retryable: _Optional[bool] = ..., used_s: _Optional[float] = ..., meters: _Optional[_Mapping[str, float]] = ..., checkpoint: _Optional[_Union[_jobs_pb2.Checkpoint, _Mapping]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("accepted", "state")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    state: str
    def __init__(self, accepted: _Optional[bool] = ..., state: _Optional[str] = ...) -> None: ...
