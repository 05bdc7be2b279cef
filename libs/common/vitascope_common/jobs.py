"""Jobs and tasks: their states, their transition tables and the kinds of job.

A job is what the client sees. It consists of tasks, one per stage and shard; attempt, lease, checkpoint, inputs and
outputs belong to the task. A transition is one conditional UPDATE; zero rows is an answer.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from vitascope_common.references import num_repeated_frames


class JobState(StrEnum):
    """What became of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskState(StrEnum):
    """Where one task stands."""

    WAITING = "waiting"  # needs tasks that are not done
    READY = "ready"  # may be claimed
    LEASED = "leased"  # an attempt owns it
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

TASK_TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    TaskState.WAITING: frozenset({TaskState.READY, TaskState.CANCELLED}),
    TaskState.READY: frozenset({TaskState.LEASED, TaskState.CANCELLED}),
    TaskState.LEASED: frozenset({TaskState.READY, TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED}),
    TaskState.DONE: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
}

MAX_SHARDS = 256
MAX_READY_SHARDS = 4  # of one job at once: what waits in queues stays short, however many shards there are

TERMINAL_JOB = frozenset(state for state, after in JOB_TRANSITIONS.items() if not after)
TERMINAL_TASK = frozenset(state for state, after in TASK_TRANSITIONS.items() if not after)
ACTIVE_JOB = frozenset(JobState) - TERMINAL_JOB
OPEN_TASK = frozenset(TaskState) - TERMINAL_TASK


def job_states_before(state: JobState) -> frozenset[JobState]:
    """Return the states from which a job may go to `state`: the WHERE of its conditional UPDATE."""
    return frozenset(before for before, after in JOB_TRANSITIONS.items() if state in after)


def task_states_before(state: TaskState) -> frozenset[TaskState]:
    """Return the states from which a task may go to `state`: the WHERE of its conditional UPDATE."""
    return frozenset(before for before, after in TASK_TRANSITIONS.items() if state in after)


@dataclass(frozen=True)
class Artifact:
    """One immutable object in the object store."""

    name: str
    role: str
    media_type: str
    key: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Progress:
    """How far a task has come; `total` 0 means unknown."""

    done: int = 0
    total: int = 0
    unit: str = "step"
    phase: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A point to resume from, once it is recorded; one artifact per rank."""

    done: int
    unit: str
    artifacts: tuple[Artifact, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that the task row keeps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Checkpoint":
        """Rebuild a checkpoint from its JSON form."""
        return cls(data["done"], data["unit"], tuple(Artifact(**item) for item in data["artifacts"]))


@dataclass(frozen=True)
class Reference:
    """A picture or a clip that the new clip is made from."""

    role: str
    """One of `references.ReferenceRole`, as text: a newer build may know more of them."""
    artifact: Artifact
    strength: float = 0.0
    """Of "change": 0 keeps the clip, 1 ignores it; 0 for the other roles."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Reference":
        """Rebuild a reference from its JSON form. Raises TypeError or KeyError for one of another build."""
        return cls(**{**data, "artifact": Artifact(**data["artifact"])})


@dataclass(frozen=True)
class GenerateParams:
    """Everything the stage "generate" needs to know; all values resolved."""

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
    references: tuple[Reference, ...] = ()
    """At most one of each role."""
    guidance_start: float = 1.0
    guidance_end: float = 0.0
    """Flow times, 1 (noise) to 0, between which guidance acts."""
    guidance_rescale: float = 0.0
    temporal_attention: str = ""
    """One of "full", "causal", "window"; "": the model's own."""
    num_frames_before: int = 0
    """Of an extension: the frames of the clip that it continues; they come first, as they are."""

    @property
    def num_repeated_frames(self) -> int:
        """Of an extension: with so many of them the generated clip begins."""
        return num_repeated_frames(self.num_frames_before, self.num_frames)

    @property
    def num_frames_in_all(self) -> int:
        """How many frames the video has."""
        return self.num_frames_before + self.num_frames - self.num_repeated_frames

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GenerateParams":
        """Rebuild parameters from their JSON form. Raises TypeError or KeyError for those of another build."""
        return cls(**{**data, "references": tuple(map(Reference.from_dict, data.get("references", ())))})


@dataclass(frozen=True)
class FinishParams:
    """Everything the stage "finish" needs to know."""

    model: str
    prompt_sha256: str
    width_px: int
    height_px: int
    num_frames: int
    fps: int


@dataclass(frozen=True)
class JsonParams:
    """Parameters of a stage that has no message of its own: a JSON object that only its executor understands."""

    values: Mapping[str, Any]


Params = GenerateParams | FinishParams | JsonParams

PARAMS: Mapping[str, type[GenerateParams] | type[FinishParams]] = {"generate": GenerateParams, "finish": FinishParams}
"""The stages of the kind "generate"; those of other kinds carry JsonParams."""


def params_to_dict(params: Params) -> dict[str, Any]:
    """Return the JSON form that a task row keeps.

    Without the fields that hold their default: what says no more than an older build could say, is what it said.
    """
    if isinstance(params, JsonParams):
        return dict(params.values)
    values = {one.name: getattr(params, one.name) for one in fields(params)}
    said = {one.name for one in fields(params) if one.default is MISSING or values[one.name] != one.default}
    return {
        name: tuple(map(asdict, value)) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name in said
    }


def params_from_dict(kind: str, stage: str, data: Mapping[str, Any]) -> Params:
    """Rebuild the parameters of a stage. Raises TypeError or KeyError for those of another build."""
    if kind != "generate":
        return JsonParams(dict(data))
    return GenerateParams.from_dict(data) if PARAMS[stage] is GenerateParams else FinishParams(**data)


@dataclass(frozen=True)
class Task:
    """One unit of work as handed to the executor that claimed it; `attempt` fences every effect."""

    task_id: str
    job_id: str
    tenant_id: str
    kind: str
    stage: str
    shard: int
    executor: str
    pool: str
    attempt: int
    params: Params
    inputs: tuple[Artifact, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()  # recorded ones, newest first
    yieldable: bool = False
    traceparent: str = ""
    created_at_ms: int = 0
    affinity: Mapping[str, str] = field(default_factory=dict)  # what a warm worker has loaded: model, adapters
    group_size: int = 1  # ranks that run it together

    def work_key(self, name: str) -> str:
        """Return the object key for a file of this attempt that the next stage or a resume reads."""
        return f"work/{self.job_id}/{self.stage}/{self.shard}/{self.attempt}/{name}"

    def video_key(self, name: str) -> str:
        """Return the object key for a file of this attempt that is to be published."""
        return f"videos/{self.job_id}/{self.attempt}/{name}"


@dataclass(frozen=True)
class Stage:
    """One step of a kind, cut into shards when it is admitted.

    `pool` None means the pool of the model card; `needs` names the stage before it, or None. A shard needs all shards
    of that stage, or with `needs_same_shard` only its own number. With `publishes` its outputs name the manifest.
    """

    name: str
    executor: str
    pool: str | None
    needs: str | None
    yieldable: bool
    unit: str
    num_shards: int = 1
    needs_same_shard: bool = False
    publishes: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of job is data: the stages it passes, in order.

    Raises ValueError for one that could never end: a stage needs one that comes before it, and at most MAX_SHARDS
    shards; only shards of the same number of siblings can need each other one by one. One task publishes at most.
    """

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        before: dict[str, Stage] = {}
        for stage in self.stages:
            needed = before.get(stage.needs) if stage.needs is not None else None
            if stage.name in before or (stage.needs is not None and needed is None):
                raise ValueError(f"stage {stage.name!r} of kind {self.name!r} is no step after those before it")
            if not 1 <= stage.num_shards <= MAX_SHARDS:
                raise ValueError(f"stage {stage.name!r} has {stage.num_shards} shards, allowed are 1 to {MAX_SHARDS}")
            if stage.needs_same_shard and (needed is None or needed.num_shards != stage.num_shards):
                raise ValueError(f"stage {stage.name!r} needs the same shard of a stage with other shards")
            before[stage.name] = stage
        publishing = [stage for stage in self.stages if stage.publishes]
        if sum(stage.num_shards for stage in publishing) > 1:
            raise ValueError(f"kind {self.name!r} has more than one task that publishes")
        if not self.stages:
            raise ValueError(f"kind {self.name!r} has no stage")

    def after(self, stage: str) -> Stage | None:
        """Return the stage that needs `stage`, or None for the last one."""
        return next((candidate for candidate in self.stages if candidate.needs == stage), None)

    def num_needed(self, stage: Stage) -> int:
        """Return how many tasks must be done before a shard of this stage may be ready."""
        if stage.needs is None:
            return 0
        return 1 if stage.needs_same_shard else next(one.num_shards for one in self.stages if one.name == stage.needs)


GENERATE = Kind(
    "generate",
    (
        Stage("generate", executor="gpu-worker", pool=None, needs=None, yieldable=True, unit="step"),
        Stage(
            "finish",
            executor="postproc",
            pool="postproc",
            needs="generate",
            yieldable=False,
            unit="frame",
            publishes=True,
        ),
    ),
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (GENERATE,)}
