"""One row of `tasks` as the scheduler reads it, with its tenant's weight and cap."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vitascope_common.jobs import Artifact, Checkpoint, Task, TaskState, params_from_dict

EXECUTORS_OF_CELERY = frozenset({"postproc"})
"""Executors that get their work through Celery; all others have an inbox stream."""

YIELD_WINDOW_S = 3600.0


@dataclass(frozen=True)
class TaskRow:
    """A task as SQL has it."""

    task_id: str
    job_id: str
    tenant_id: str
    kind: str
    stage: str
    shard: int
    executor: str
    pool: str
    class_name: str
    priority: int
    state: str
    attempt: int
    needs: str
    needs_same_shard: bool
    num_needed: int
    publishes: bool
    num_failures: int
    params: Mapping[str, Any]
    inputs: list[Mapping[str, Any]]
    checkpoints: list[Mapping[str, Any]]
    done: int
    total: int
    unit: str
    cost_s: float
    cost_ratio: float
    used_s: float
    ran_s: float
    yielded_at_s: list[float]
    group_size: int
    yieldable: bool
    affinity: Mapping[str, Any]
    worker_id: str | None
    epoch: str | None
    enqueued_at_ms: int | None
    traceparent: str
    created_at_ms: int
    claimed_at_ms: int | None
    weight: float = 1.0
    cap: int = 0

    @classmethod
    def from_mapping(cls, row: Mapping[Any, Any]) -> "TaskRow":
        """Read a row, with or without the columns of its tenant."""
        given = {field.name: row[field.name] for field in fields(cls) if row.get(field.name) is not None}
        for nullable in ("worker_id", "epoch", "enqueued_at_ms", "claimed_at_ms"):
            given.setdefault(nullable, None)
        if given.get("weight", 1.0) <= 0:
            given["weight"] = 1.0
        return cls(**given)

    @property
    def is_for_celery(self) -> bool:
        """Tell whether Celery hands it out."""
        return self.executor in EXECUTORS_OF_CELERY

    @property
    def is_leased(self) -> bool:
        """Tell whether an attempt owns it."""
        return self.state == TaskState.LEASED

    @property
    def actual_s(self) -> float:
        """Busy seconds x group size of the running or last attempt: what its flow pays in the end."""
        return self.used_s * self.group_size

    @property
    def running_s(self) -> float:
        """Seconds that all attempts so far have run, the running one included."""
        return self.ran_s + self.used_s

    @property
    def num_recent_yields(self) -> int:
        """How often it gave way during its last hour of running."""
        return sum(self.running_s - yielded_at_s < YIELD_WINDOW_S for yielded_at_s in self.yielded_at_s)

    @property
    def newest_done(self) -> int:
        """Units that survive in the newest recorded checkpoint; 0 without one."""
        return int(self.checkpoints[0]["done"]) if self.checkpoints else 0

    @property
    def newest_attempt(self) -> int:
        """Attempt that made the newest recorded checkpoint; 0 without one."""
        return int(self.checkpoints[0].get("attempt", 0)) if self.checkpoints else 0

    @property
    def furthest_done(self) -> int:
        """Most units that any checkpoint of this task ever held, those that were replaced included."""
        return max((int(one.get("furthest_done", one["done"])) for one in self.checkpoints), default=0)

    def has_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Tell whether these very files are recorded."""
        return any(Checkpoint.from_dict(one) == checkpoint for one in self.checkpoints)

    @property
    def cost_left_s(self) -> float:
        """Estimated cost of what the newest checkpoint does not hold."""
        if not self.checkpoints:
            return self.cost_s
        total = self._total_of(str(self.checkpoints[0]["unit"]))
        return self.cost_s * max(0.0, 1 - self.newest_done / total) if total else self.cost_s

    def _total_of(self, unit: str) -> int:
        if unit == "step" and "num_inference_steps" in self.params:
            return int(self.params["num_inference_steps"])
        return self.total if unit == self.unit else 0

    def to_task(self) -> Task:
        """Return the task as its executor gets it. Raises KeyError or TypeError for parameters of another build."""
        return Task(
            task_id=self.task_id,
            job_id=self.job_id,
            tenant_id=self.tenant_id,
            kind=self.kind,
            stage=self.stage,
            shard=self.shard,
            executor=self.executor,
            pool=self.pool,
            attempt=self.attempt,
            params=params_from_dict(self.kind, self.stage, self.params),
            inputs=tuple(Artifact(**one) for one in self.inputs),
            checkpoints=tuple(Checkpoint.from_dict(one) for one in self.checkpoints),
            yieldable=self.yieldable,
            traceparent=self.traceparent,
            created_at_ms=self.created_at_ms,
            affinity={key: one if isinstance(one, str) else ",".join(one) for key, one in self.affinity.items()},
            group_size=self.group_size,
        )
