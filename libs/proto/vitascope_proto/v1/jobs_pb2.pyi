from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Artifact(_message.Message):
    __slots__ = ("name", "role", "media_type", "key", "sha256", "num_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    media_type: str
    key: str
    sha256: str
    num_bytes: int
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., media_type: _Optional[str] = ..., key: _Optional[str] = ..., sha256: _Optional[str] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total", "unit", "phase")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    unit: str
    phase: str
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., phase: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("done", "unit", "artifacts")
    DONE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    done: int
    unit: str
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    def __init__(self, done: _Optional[int] = ..., unit: _Optional[str] = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("role", "artifact", "strength")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    role: str
    artifact: Artifact
    strength: float
    def __init__(self, role: _Optional[str] = ..., artifact: _Optional[_Union[Artifact, _Mapping]] = ..., strength: _Optional[float] = ...) -> None: ...

class GenerateParams(_message.Message):
    __slots__ = ("model", "model_sha256", "prompt", "negative_prompt", "width_px", "height_px", "num_frames", "fps", "num_inference_steps", "guidance_scale", "shift", "solver", "seed", "seconds", "references", "guidance_start", "guidance_end", "guidance_rescale", "temporal_attention", "num_frames_before")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_START_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_END_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_RESCALE_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_BEFORE_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_sha256: str
    prompt: str
    negative_prompt: str
    width_px: int
    height_px: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    shift: float
    solver: str
    seed: int
    seconds: str
    references: _containers.RepeatedCompositeFieldContainer[Reference]
    guidance_start: float
    guidance_end: float
    guidance_rescale: float
    temporal_attention: str
    num_frames_before: int
    def __init__(self, model: _Optional[str] = ..., model_sha256: _Optional[str] = ..., prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., width_px: _Optional[int] = ..., height_px: _Optional[int] = ..., num_frames: _Optional[int] = ..., fps: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., shift: _Optional[float] = ..., solver: _Optional[str] = ..., seed: _Optional[int] = ..., seconds: _Optional[str] = ..., references: _Optional[_Iterable[_Union[Reference, _Mapping]]] = ..., guidance_start: _Optional[float] = ..., guidance_end: _Optional[float] = ..., guidance_rescale: _Optional[float] = ..., temporal_attention: _Optional[str] = ..., num_frames_before: _Optional[int] = ...) -> None: ...

class FinishParams(_message.Message):
    __slots__ = ("model", "prompt_sha256", "width_px", "height_px", "num_frames", "fps")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SHA256_FIELD_NUMBER: _ClassVar[int]
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt_sha256: str
    width_px: int
    height_px: int
    num_frames: int
    fps: int
    def __init__(self, model: _Optional[str] = ..., prompt_sha256: _Optional[str] = ..., width_px: _Optional[int] = ..., height_px: _Optional[int] = ..., num_frames: _Optional[int] = ..., fps: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "job_id", "tenant_id", "kind", "stage", "shard", "executor", "pool", "attempt", "inputs", "checkpoint", "older_checkpoints", "yieldable", "traceparent", "created_at_ms", "affinity", "group_size", "generate", "finish", "json_params")
    class AffinityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    OLDER_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    YIELDABLE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    AFFINITY_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    JSON_PARAMS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    job_id: str
    tenant_id: str
    kind: str
    stage: str
    shard: int
    executor: str
    pool: str
    attempt: int
    inputs: _containers.RepeatedCompositeFieldContainer[Artifact]
    checkpoint: Checkpoint
    older_checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    yieldable: bool
    traceparent: str
    created_at_ms: int
    affinity: _containers.ScalarMap[str, str]
    group_size: int
    generate: GenerateParams
    finish: FinishParams
    json_params: str
    def __init__(self, task_id: _Optional[str] = ..., job_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., kind: _Optional[str] = ..., stage: _Optional[str] = ..., shard: _Optional[int] = ..., executor: _Optional[str] = ..., pool: _Optional[str] = ..., attempt: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., older_checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ..., yieldable: _Optional[bool] = ..., traceparent: _Optional[str] = ..., created_at_ms: _Optional[int] = ..., affinity: _Optional[_Mapping[str, str]] = ..., group_size: _Optional[int] = ..., generate: _Optional[_Union[GenerateParams, _Mapping]] = ..., finish: _Optional[_Union[FinishParams, _Mapping]] = ..., json_params: _Optional[str] = ...) -> None: ...
