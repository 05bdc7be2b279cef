"""Protobuf <-> domain for the two services that the gateway calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

from vitascope_gateway.queue_view import ClassView, FlowView, LeaseView, PoolView, WorkerView
from vitascope_gateway.service import QueuePosition, Verdict
from vitascope_proto.v1 import prompt_pb2, scheduler_pb2

V = TypeVar("V")


def check_request(tenant_id: str, model: str, prompt: str, negative_prompt: str) -> prompt_pb2.CheckRequest:
    """Build the question whether a prompt may run."""
    return prompt_pb2.CheckRequest(tenant_id=tenant_id, model=model, prompt=prompt, negative_prompt=negative_prompt)


def verdict(message: prompt_pb2.CheckResponse) -> Verdict:
    """Translate the safety verdict."""
    return Verdict(
        is_allowed=message.allowed,
        prompt=message.prompt,
        negative_prompt=message.negative_prompt,
        category=message.category,
        score=message.score,
        policy_version=message.policy_version,
        message=message.message,
        param=message.param or "prompt",
    )


def submit_request(job_id: str) -> scheduler_pb2.SubmitRequest:
    """Build the hint that a job exists."""
    return scheduler_pb2.SubmitRequest(job_id=job_id)


def cancel_request(job_id: str, tenant_id: str) -> scheduler_pb2.CancelRequest:
    """Build the request to cancel."""
    return scheduler_pb2.CancelRequest(job_id=job_id, tenant_id=tenant_id)


def delete_request(job_id: str, tenant_id: str) -> scheduler_pb2.DeleteRequest:
    """Build the request to delete."""
    return scheduler_pb2.DeleteRequest(job_id=job_id, tenant_id=tenant_id)


def queue_position_request(job_id: str) -> scheduler_pb2.GetQueuePositionRequest:
    """Build the question where a job stands."""
    return scheduler_pb2.GetQueuePositionRequest(job_id=job_id)


def queue_positions_request(job_ids: Sequence[str]) -> scheduler_pb2.GetQueuePositionsRequest:
    """Build the question where many jobs stand."""
    return scheduler_pb2.GetQueuePositionsRequest(job_ids=job_ids)


def queue_positions(message: scheduler_pb2.GetQueuePositionsResponse) -> Mapping[str, QueuePosition]:
    """Translate where jobs stand, by job."""
    return {one.job_id: queue_position(one) for one in message.positions}


def queue_position(
    message: scheduler_pb2.GetQueuePositionResponse | scheduler_pb2.JobPosition | scheduler_pb2.ForecastResponse,
) -> QueuePosition:
    """Translate where a job stands; what the scheduler does not know becomes None."""
    return QueuePosition(
        position=int(message.position) if message.position >= 0 else None,
        eta_s=round(message.eta_s, 1) if message.eta_s >= 0 else None,
    )


def forecast_request(pool: str, tenant_id: str, class_name: str, cost_s: float) -> scheduler_pb2.ForecastRequest:
    """Build the question where a job would stand."""
    return scheduler_pb2.ForecastRequest(pool=pool, tenant_id=tenant_id, class_name=class_name, cost_s=cost_s)


def queue_request(pool: str) -> scheduler_pb2.GetQueueRequest:
    """Build the operator's question; "" means every pool."""
    return scheduler_pb2.GetQueueRequest(pool=pool)


def pools(message: scheduler_pb2.GetQueueResponse) -> Sequence[PoolView]:
    """Translate what operators see."""
    return [_pool(one) for one in message.pools]


def drain_request(tenant_id: str, pool: str, worker_id: str, is_draining: bool) -> scheduler_pb2.SetDrainRequest:
    """Build the operator's word; worker "" means every one of the pool."""
    return scheduler_pb2.SetDrainRequest(tenant_id=tenant_id, pool=pool, worker_id=worker_id, is_draining=is_draining)


def _pool(message: scheduler_pb2.PoolView) -> PoolView:
    workers = [
        _view(WorkerView, one, warm_models=list(one.warm_models), task_ids=list(one.task_ids))
        for one in message.workers
    ]
    leases = [_view(LeaseView, one) for one in message.leases]
    return _view(PoolView, message, classes=[_class(one) for one in message.classes], workers=workers, leases=leases)


def _class(message: scheduler_pb2.ClassView) -> ClassView:
    return _view(ClassView, message, flows=[_view(FlowView, one) for one in message.flows])


def _view(kind: Callable[..., V], message: Any, **lists: list[Any]) -> V:
    """Translate what has the same names on both sides; `lists` are those fields that hold several."""
    names = (field.name for field in fields(cast(Any, kind)))
    return kind(**{name: getattr(message, name) for name in names if name not in lists}, **lists)
