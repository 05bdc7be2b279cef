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
    __slots__ = ("task_id", "worker_id")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    worker_id: str
    def __init__(self, task_id: _Optional[str] = ..., worker_id: _Optional[str] = ...) -> None: ...

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
