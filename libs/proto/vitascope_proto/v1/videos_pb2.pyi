from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Order(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_UNSPECIFIED: _ClassVar[Order]
    ORDER_DESC: _ClassVar[Order]
    ORDER_ASC: _ClassVar[Order]

class VideoStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VIDEO_STATUS_UNSPECIFIED: _ClassVar[VideoStatus]
    VIDEO_STATUS_QUEUED: _ClassVar[VideoStatus]
    VIDEO_STATUS_IN_PROGRESS: _ClassVar[VideoStatus]
    VIDEO_STATUS_COMPLETED: _ClassVar[VideoStatus]
    VIDEO_STATUS_FAILED: _ClassVar[VideoStatus]
ORDER_UNSPECIFIED: Order
ORDER_DESC: Order
ORDER_ASC: Order
VIDEO_STATUS_UNSPECIFIED: VideoStatus
VIDEO_STATUS_QUEUED: VideoStatus
VIDEO_STATUS_IN_PROGRESS: VideoStatus
VIDEO_STATUS_COMPLETED: VideoStatus
VIDEO_STATUS_FAILED: VideoStatus

class Picture(_message.Message):
    __slots__ = ("data", "url")
    DATA_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    url: str
    def __init__(self, data: _Optional[bytes] = ..., url: _Optional[str] = ...) -> None: ...

class CreateVideoRequest(_message.Message):
    __slots__ = ("prompt", "model", "seconds", "size", "seed", "negative_prompt", "num_inference_steps", "guidance_scale", "solver", "temporal_attention", "fps", "num_frames", "metadata", "deadline_s", "priority", "service_class", "input_reference", "last_frame", "width", "height", "webhook_url", "webhook_events")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    INPUT_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_FRAME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_EVENTS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    model: str
    seconds: str
    size: str
    seed: int
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    solver: str
    temporal_attention: str
    fps: int
    num_frames: int
    metadata: _containers.ScalarMap[str, str]
    deadline_s: float
    priority: int
    service_class: str
    input_reference: Picture
    last_frame: Picture
    width: int
    height: int
    webhook_url: str
    webhook_events: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, prompt: _Optional[str] = ..., model: _Optional[str] = ..., seconds: _Optional[str] = ..., size: _Optional[str] = ..., seed: _Optional[int] = ..., negative_prompt: _Optional[str] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., solver: _Optional[str] = ..., temporal_attention: _Optional[str] = ..., fps: _Optional[int] = ..., num_frames: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., deadline_s: _Optional[float] = ..., priority: _Optional[int] = ..., service_class: _Optional[str] = ..., input_reference: _Optional[_Union[Picture, _Mapping]] = ..., last_frame: _Optional[_Union[Picture, _Mapping]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., webhook_url: _Optional[str] = ..., webhook_events: _Optional[_Iterable[str]] = ...) -> None: ...

class Clip(_message.Message):
    __slots__ = ("id", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    data: bytes
    def __init__(self, id: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class RemixVideoRequest(_message.Message):
    __slots__ = ("video_id", "request", "strength")
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    request: CreateVideoRequest
    strength: float
    def __init__(self, video_id: _Optional[str] = ..., request: _Optional[_Union[CreateVideoRequest, _Mapping]] = ..., strength: _Optional[float] = ...) -> None: ...

class EditVideoRequest(_message.Message):
    __slots__ = ("video", "request", "strength")
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    video: Clip
    request: CreateVideoRequest
    strength: float
    def __init__(self, video: _Optional[_Union[Clip, _Mapping]] = ..., request: _Optional[_Union[CreateVideoRequest, _Mapping]] = ..., strength: _Optional[float] = ...) -> None: ...

class ExtendVideoRequest(_message.Message):
    __slots__ = ("video", "request")
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    video: Clip
    request: CreateVideoRequest
    def __init__(self, video: _Optional[_Union[Clip, _Mapping]] = ..., request: _Optional[_Union[CreateVideoRequest, _Mapping]] = ...) -> None: ...

class EstimateVideoRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: CreateVideoRequest
    def __init__(self, request: _Optional[_Union[CreateVideoRequest, _Mapping]] = ...) -> None: ...

class VideoEstimate(_message.Message):
    __slots__ = ("model", "seconds", "size", "num_frames", "fps", "num_inference_steps", "service_class", "currency", "price", "queue_position", "wait_seconds", "run_seconds", "eta_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    seconds: str
    size: str
    num_frames: int
    fps: int
    num_inference_steps: int
    service_class: str
    currency: str
    price: float
    queue_position: int
    wait_seconds: float
    run_seconds: float
    eta_seconds: float
    def __init__(self, model: _Optional[str] = ..., seconds: _Optional[str] = ..., size: _Optional[str] = ..., num_frames: _Optional[int] = ..., fps: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., service_class: _Optional[str] = ..., currency: _Optional[str] = ..., price: _Optional[float] = ..., queue_position: _Optional[int] = ..., wait_seconds: _Optional[float] = ..., run_seconds: _Optional[float] = ..., eta_seconds: _Optional[float] = ...) -> None: ...

class GetVideoRequest(_message.Message):
    __slots__ = ("video_id",)
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    def __init__(self, video_id: _Optional[str] = ...) -> None: ...

class ListVideosRequest(_message.Message):
    __slots__ = ("after", "limit", "order")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    after: str
    limit: int
    order: Order
    def __init__(self, after: _Optional[str] = ..., limit: _Optional[int] = ..., order: _Optional[_Union[Order, str]] = ...) -> None: ...

class ListVideosResponse(_message.Message):
    __slots__ = ("videos", "has_more")
    VIDEOS_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    videos: _containers.RepeatedCompositeFieldContainer[Video]
    has_more: bool
    def __init__(self, videos: _Optional[_Iterable[_Union[Video, _Mapping]]] = ..., has_more: _Optional[bool] = ...) -> None: ...

class DeleteVideoRequest(_message.Message):
    __slots__ = ("video_id",)
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    def __init__(self, video_id: _Optional[str] = ...) -> None: ...

class DeleteVideoResponse(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelVideoRequest(_message.Message):
    __slots__ = ("video_id",)
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    def __init__(self, video_id: _Optional[str] = ...) -> None: ...

class RetryVideoRequest(_message.Message):
    __slots__ = ("video_id",)
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    def __init__(self, video_id: _Optional[str] = ...) -> None: ...

class GetVideoContentRequest(_message.Message):
    __slots__ = ("video_id", "variant")
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    variant: str
    def __init__(self, video_id: _Optional[str] = ..., variant: _Optional[str] = ...) -> None: ...

class GetVideoContentResponse(_message.Message):
    __slots__ = ("url",)
    URL_FIELD_NUMBER: _ClassVar[int]
    url: str
    def __init__(self, url: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("video_id", "last_event_id")
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    last_event_id: str
    def __init__(self, video_id: _Optional[str] = ..., last_event_id: _Optional[str] = ...) -> None: ...

class VideoError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Video(_message.Message):
    __slots__ = ("id", "status", "progress", "created_at", "completed_at", "expires_at", "model", "prompt", "seconds", "size", "error", "phase", "queue_position", "eta_seconds", "steps_done", "steps_total", "attempt", "seed", "fps", "num_frames", "metadata", "service_class", "priority", "deadline_at", "retry_of", "remixed_from_video_id", "estimated_completion_at", "stage", "cost", "gpu_seconds", "inference_time_s", "stage_durations", "peak_memory_mb", "preview_url")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class StageDurationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_AT_FIELD_NUMBER: _ClassVar[int]
    RETRY_OF_FIELD_NUMBER: _ClassVar[int]
    REMIXED_FROM_VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_COMPLETION_AT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_TIME_S_FIELD_NUMBER: _ClassVar[int]
    STAGE_DURATIONS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_URL_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: VideoStatus
    progress: int
    created_at: int
    completed_at: int
    expires_at: int
    model: str
    prompt: str
    seconds: str
    size: str
    error: VideoError
    phase: str
    queue_position: int
    eta_seconds: float
    steps_done: int
    steps_total: int
    attempt: int
    seed: int
    fps: int
    num_frames: int
    metadata: _containers.ScalarMap[str, str]
    service_class: str
    priority: int
    deadline_at: int
    retry_of: str
    remixed_from_video_id: str
    estimated_completion_at: int
    stage: str
    cost: Cost
    gpu_seconds: float
    inference_time_s: float
    stage_durations: _containers.ScalarMap[str, float]
    peak_memory_mb: float
    preview_url: str
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[VideoStatus, str]] = ..., progress: _Optional[int] = ..., created_at: _Optional[int] = ..., completed_at: _Optional[int] = ..., expires_at: _Optional[int] = ..., model: _Optional[str] = ..., prompt: _Optional[str] = ..., seconds: _Optional[str] = ..., size: _Optional[str] = ..., error: _Optional[_Union[VideoError, _Mapping]] = ..., phase: _Optional[str] = ..., queue_position: _Optional[int] = ..., eta_seconds: _Optional[float] = ..., steps_done: _Optional[int] = ..., steps_total: _Optional[int] = ..., attempt: _Optional[int] = ..., seed: _Optional[int] = ..., fps: _Optional[int] = ..., num_frames: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., service_class: _Optional[str] = ..., priority: _Optional[int] = ..., deadline_at: _Optional[int] = ..., retry_of: _Optional[str] = ..., remixed_from_video_id: _Optional[str] = ..., estimated_completion_at: _Optional[int] = ..., stage: _Optional[str] = ..., cost: _Optional[_Union[Cost, _Mapping]] = ..., gpu_seconds: _Optional[float] = ..., inference_time_s: _Optional[float] = ..., stage_durations: _Optional[_Mapping[str, float]] = ..., peak_memory_mb: _Optional[float] = ..., preview_url: _Optional[str] = ...) -> None: ...

class Cost(_message.Message):
    __slots__ = ("currency", "estimated", "charged", "refunded")
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    REFUNDED_FIELD_NUMBER: _ClassVar[int]
    currency: str
    estimated: float
    charged: float
    refunded: float
    def __init__(self, currency: _Optional[str] = ..., estimated: _Optional[float] = ..., charged: _Optional[float] = ..., refunded: _Optional[float] = ...) -> None: ...

class VideoEvent(_message.Message):
    __slots__ = ("id", "video_id", "queued", "started", "progress", "checkpoint", "preempted", "resumed", "decoding", "postprocessing", "completed", "failed", "cancelled", "snapshot", "partial")
    class Queued(_message.Message):
        __slots__ = ("reason", "position", "eta_s")
        REASON_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        ETA_S_FIELD_NUMBER: _ClassVar[int]
        reason: str
        position: int
        eta_s: float
        def __init__(self, reason: _Optional[str] = ..., position: _Optional[int] = ..., eta_s: _Optional[float] = ...) -> None: ...
    class Started(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Progress(_message.Message):
        __slots__ = ("step", "steps", "percent", "eta_s", "phase", "preview_step", "preview_url")
        STEP_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        PERCENT_FIELD_NUMBER: _ClassVar[int]
        ETA_S_FIELD_NUMBER: _ClassVar[int]
        PHASE_FIELD_NUMBER: _ClassVar[int]
        PREVIEW_STEP_FIELD_NUMBER: _ClassVar[int]
        PREVIEW_URL_FIELD_NUMBER: _ClassVar[int]
        step: int
        steps: int
        percent: float
        eta_s: float
        phase: str
        preview_step: int
        preview_url: str
        def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., percent: _Optional[float] = ..., eta_s: _Optional[float] = ..., phase: _Optional[str] = ..., preview_step: _Optional[int] = ..., preview_url: _Optional[str] = ...) -> None: ...
    class Checkpoint(_message.Message):
        __slots__ = ("step",)
        STEP_FIELD_NUMBER: _ClassVar[int]
        step: int
        def __init__(self, step: _Optional[int] = ...) -> None: ...
    class Preempted(_message.Message):
        __slots__ = ("step",)
        STEP_FIELD_NUMBER: _ClassVar[int]
        step: int
        def __init__(self, step: _Optional[int] = ...) -> None: ...
    class Resumed(_message.Message):
        __slots__ = ("from_step",)
        FROM_STEP_FIELD_NUMBER: _ClassVar[int]
        from_step: int
        def __init__(self, from_step: _Optional[int] = ...) -> None: ...
    class Decoding(_message.Message):
        __slots__ = ("step", "steps", "eta_s")
        STEP_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        ETA_S_FIELD_NUMBER: _ClassVar[int]
        step: int
        steps: int
        eta_s: float
        def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., eta_s: _Optional[float] = ...) -> None: ...
    class Postprocessing(_message.Message):
        __slots__ = ("stage",)
        STAGE_FIELD_NUMBER: _ClassVar[int]
        stage: str
        def __init__(self, stage: _Optional[str] = ...) -> None: ...
    class Completed(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Cancelled(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESSING_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    id: str
    video_id: str
    queued: VideoEvent.Queued
    started: VideoEvent.Started
    progress: VideoEvent.Progress
    checkpoint: VideoEvent.Checkpoint
    preempted: VideoEvent.Preempted
    resumed: VideoEvent.Resumed
    decoding: VideoEvent.Decoding
    postprocessing: VideoEvent.Postprocessing
    completed: VideoEvent.Completed
    failed: VideoError
    cancelled: VideoEvent.Cancelled
    snapshot: Video
    partial: _struct_pb2.Struct
    def __init__(self, id: _Optional[str] = ..., video_id: _Optional[str] = ..., queued: _Optional[_Union[VideoEvent.Queued, _Mapping]] = ..., started: _Optional[_Union[VideoEvent.Started, _Mapping]] = ..., progress: _Optional[_Union[VideoEvent.Progress, _Mapping]] = ..., checkpoint: _Optional[_Union[VideoEvent.Checkpoint, _Mapping]] = ..., preempted: _Optional[_Union[VideoEvent.Preempted, _Mapping]] = ..., resumed: _Optional[_Union[VideoEvent.Resumed, _Mapping]] = ..., decoding: _Optional[_Union[VideoEvent.Decoding, _Mapping]] = ..., postprocessing: _Optional[_Union[VideoEvent.Postprocessing, _Mapping]] = ..., completed: _Optional[_Union[VideoEvent.Completed, _Mapping]] = ..., failed: _Optional[_Union[VideoError, _Mapping]] = ..., cancelled: _Optional[_Union[VideoEvent.Cancelled, _Mapping]] = ..., snapshot: _Optional[_Union[Video, _Mapping]] = ..., partial: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("id", "created", "owned_by", "title", "description", "licence", "sizes", "seconds", "capabilities", "solvers", "temporal_attention", "fps", "defaults", "limits", "price")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    OWNED_BY_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    SOLVERS_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    id: str
    created: int
    owned_by: str
    title: str
    description: str
    licence: str
    sizes: _containers.RepeatedScalarFieldContainer[str]
    seconds: _containers.RepeatedScalarFieldContainer[str]
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    solvers: _containers.RepeatedScalarFieldContainer[str]
    temporal_attention: _containers.RepeatedScalarFieldContainer[str]
    fps: int
    defaults: ModelDefaults
    limits: ModelLimits
    price: Price
    def __init__(self, id: _Optional[str] = ..., created: _Optional[int] = ..., owned_by: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., licence: _Optional[str] = ..., sizes: _Optional[_Iterable[str]] = ..., seconds: _Optional[_Iterable[str]] = ..., capabilities: _Optional[_Iterable[str]] = ..., solvers: _Optional[_Iterable[str]] = ..., temporal_attention: _Optional[_Iterable[str]] = ..., fps: _Optional[int] = ..., defaults: _Optional[_Union[ModelDefaults, _Mapping]] = ..., limits: _Optional[_Union[ModelLimits, _Mapping]] = ..., price: _Optional[_Union[Price, _Mapping]] = ...) -> None: ...

class Price(_message.Message):
    __slots__ = ("currency", "per_second")
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    currency: str
    per_second: float
    def __init__(self, currency: _Optional[str] = ..., per_second: _Optional[float] = ...) -> None: ...

class ModelDefaults(_message.Message):
    __slots__ = ("size", "seconds", "num_inference_steps", "guidance_scale", "solver", "temporal_attention")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    size: str
    seconds: str
    num_inference_steps: int
    guidance_scale: float
    solver: str
    temporal_attention: str
    def __init__(self, size: _Optional[str] = ..., seconds: _Optional[str] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., solver: _Optional[str] = ..., temporal_attention: _Optional[str] = ...) -> None: ...

class ModelLimits(_message.Message):
    __slots__ = ("min_num_inference_steps", "max_num_inference_steps", "min_guidance_scale", "max_guidance_scale", "prompt_max_chars")
    MIN_NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_MAX_CHARS_FIELD_NUMBER: _ClassVar[int]
    min_num_inference_steps: int
    max_num_inference_steps: int
    min_guidance_scale: float
    max_guidance_scale: float
    prompt_max_chars: int
    def __init__(self, min_num_inference_steps: _Optional[int] = ..., max_num_inference_steps: _Optional[int] = ..., min_guidance_scale: _Optional[float] = ..., max_guidance_scale: _Optional[float] = ..., prompt_max_chars: _Optional[int] = ...) -> None: ...
