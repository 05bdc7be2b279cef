"""Protobuf <-> domain of every call. What an executor measures is cleaned, not refused: it would repeat it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from vitascope_common import wire
from vitascope_common.errors import InvalidRequestError
from vitascope_common.executor import Action, Outcome
from vitascope_common.jobs import Checkpoint, Progress
from vitascope_proto.v1 import jobs_pb2, scheduler_pb2
from vitascope_scheduler.dispatch import Timing
from vitascope_scheduler.job_manager import Claim, Ended, Report, TaskStatus
from vitascope_scheduler.positions import QueuePosition
from vitascope_scheduler.service import Beat, BeatAnswer
from vitascope_scheduler.view import PoolView
from vitascope_scheduler.worker import Worker

MAX_MESSAGE_CHARS = 500
MAX_SLOTS = 1024
MAX_RANKS = 1024
MAX_JOB_IDS = 1000
_NAME = re.compile(r"[A-Za-z0-9._@:+-]{1,200}")

_ACTIONS: Mapping[Action, scheduler_pb2.Action] = {
    Action.RUN: scheduler_pb2.ACTION_RUN,
    Action.YIELD: scheduler_pb2.ACTION_YIELD,
    Action.STOP: scheduler_pb2.ACTION_STOP,
    Action.STALE: scheduler_pb2.ACTION_STALE,
}
_OUTCOMES: Mapping[int, Outcome] = {
    scheduler_pb2.OUTCOME_DONE: Outcome.DONE,
    scheduler_pb2.OUTCOME_FAILED: Outcome.FAILED,
    scheduler_pb2.OUTCOME_YIELDED: Outcome.YIELDED,
    scheduler_pb2.OUTCOME_CANCELLED: Outcome.CANCELLED,
}


def name(value: str, param: str) -> str:
    """Return an id that may become part of a Redis key. Raises InvalidRequestError."""
    if not _NAME.fullmatch(value):
        raise InvalidRequestError(
            f"{param} must be 1 to 200 letters, digits or any of . _ @ : + - (got {value[:40]!r})", param=param
        )
    return value


def optional_name(value: str, param: str) -> str:
    """Return an id, or "" for none. Raises InvalidRequestError."""
    return name(value, param) if value else ""


def job_ids_from_proto(message: scheduler_pb2.GetQueuePositionsRequest) -> list[str]:
    """Translate the question where many jobs stand. Raises InvalidRequestError."""
    if len(message.job_ids) > MAX_JOB_IDS:
        raise InvalidRequestError(
            f"job_ids must name at most {MAX_JOB_IDS} jobs (got {len(message.job_ids)})", param="job_ids"
        )
    return [name(one, "job_ids") for one in message.job_ids]


def worker_from_proto(message: scheduler_pb2.RegisterRequest) -> Worker:
    """Translate a registration. Raises InvalidRequestError."""
    if not 1 <= message.num_slots <= MAX_SLOTS:
        raise InvalidRequestError(f"num_slots must be 1 to {MAX_SLOTS} (got {message.num_slots})", param="num_slots")
    return Worker(
        worker_id=name(message.worker_id, "worker_id"),
        executor=name(message.executor, "executor"),
        pool=name(message.pool, "pool"),
        device=message.device,
        group_size=max(1, message.group_size),
        num_slots=message.num_slots,
        warm_models=tuple(message.warm_models),
    )


def register_answer(timing: Timing) -> scheduler_pb2.RegisterResponse:
    """Answer a registration."""
    return scheduler_pb2.RegisterResponse(lease_ttl_ms=timing.lease_ttl_ms, heartbeat_ms=timing.heartbeat_ms)


def group_size(message: scheduler_pb2.ClaimRequest) -> int:
    """Return how many ranks will work on it; 0: it is not said."""
    return min(MAX_RANKS, max(0, message.group_size))


def claim_answer(claim: Claim, timing: Timing) -> scheduler_pb2.ClaimResponse:
    """Answer a claim."""
    return scheduler_pb2.ClaimResponse(
        granted=claim.task is not None,
        reason=claim.reason,
        task=wire.task_to_proto(claim.task) if claim.task else None,
        lease_ttl_ms=timing.lease_ttl_ms,
        heartbeat_ms=timing.heartbeat_ms,
    )


def beat_from_proto(message: scheduler_pb2.HeartbeatRequest) -> Beat:
    """Translate a heartbeat. Raises InvalidRequestError."""
    return Beat(
        worker_id=name(message.worker_id, "worker_id"),
        executor=name(message.executor, "executor"),
        pool=name(message.pool, "pool"),
        warm_models=tuple(message.warm_models),
        tasks=tuple(_status_from_proto(one) for one in message.tasks),
        is_draining=message.is_draining,
    )


def _status_from_proto(message: scheduler_pb2.TaskStatus) -> TaskStatus:
    progress = wire.progress_from_proto(message.progress)
    return TaskStatus(
        task_id=name(message.task_id, "tasks.task_id"),
        attempt=int(message.attempt),
        progress=Progress(max(0, progress.done), max(0, progress.total), _text(progress.unit), _text(progress.phase)),
        used_s=_seconds(message.used_s),
        checkpoint=_checkpoint(message.checkpoint) if message.HasField("checkpoint") else None,
    )


def beat_answer(answer: BeatAnswer) -> scheduler_pb2.HeartbeatResponse:
    """Answer a heartbeat."""
    actions = [
        scheduler_pb2.TaskAction(task_id=status.task_id, attempt=status.attempt, action=_ACTIONS[action])
        for status, action in answer.actions
    ]
    return scheduler_pb2.HeartbeatResponse(must_register=answer.must_register, actions=actions)


def report_from_proto(message: scheduler_pb2.ReportRequest) -> Report:
    """Translate a report. Raises InvalidRequestError."""
    outcome = _OUTCOMES.get(message.outcome)
    if outcome is None:
        raise InvalidRequestError("outcome must say how the attempt ended", param="outcome")
    return Report(
        task_id=name(message.task_id, "task_id"),
        attempt=int(message.attempt),
        outcome=outcome,
        outputs=wire.artifacts_from_proto(message.outputs),
        error_code=_text(message.error_code),
        error_message=_text(message.error_message),
        is_retryable=message.is_retryable,
        used_s=_seconds(message.used_s),
        meters={_text(key): value for key, value in message.meters.items() if math.isfinite(value)},
        checkpoint=_checkpoint(message.checkpoint) if message.HasField("checkpoint") else None,
    )


def report_answer(ended: Ended) -> scheduler_pb2.ReportResponse:
    """Answer a report."""
    return scheduler_pb2.ReportResponse(accepted=ended.is_accepted, state=ended.state)


def position_answer(place: QueuePosition) -> scheduler_pb2.GetQueuePositionResponse:
    """Answer where a job stands."""
    return scheduler_pb2.GetQueuePositionResponse(position=place.position, eta_s=place.eta_s)


def forecast_question(request: scheduler_pb2.ForecastRequest) -> tuple[str, str, str, float]:
    """Read pool, tenant, class and cost. Raises InvalidRequestError."""
    pool, tenant_id = name(request.pool, "pool"), name(request.tenant_id, "tenant_id")
    return pool, tenant_id, name(request.class_name, "class_name"), _seconds(request.cost_s)


def positions_answer(
    job_ids: Sequence[str], places: Sequence[QueuePosition]
) -> scheduler_pb2.GetQueuePositionsResponse:
    """Answer where many jobs stand."""
    pairs = zip(job_ids, places, strict=True)
    positions = [scheduler_pb2.JobPosition(job_id=one, position=at.position, eta_s=at.eta_s) for one, at in pairs]
    return scheduler_pb2.GetQueuePositionsResponse(positions=positions)


def queue_answer(pools: Sequence[PoolView]) -> scheduler_pb2.GetQueueResponse:
    """Answer what operators see."""
    return scheduler_pb2.GetQueueResponse(pools=[scheduler_pb2.PoolView(**asdict(one)) for one in pools])


def _checkpoint(message: jobs_pb2.Checkpoint) -> Checkpoint:
    return wire.checkpoint_from_proto(message)


def _text(value: str) -> str:
    return value.replace("\0", "")[:MAX_MESSAGE_CHARS]  # PostgreSQL keeps no NUL


def _seconds(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0
