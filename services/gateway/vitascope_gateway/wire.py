"""Protobuf <-> domain for the two services that the gateway calls."""

from collections.abc import Mapping, Sequence

from vitascope_gateway.queue_view import ClassView, FlowView, LeaseView, PoolView, WorkerView
from vitascope_gateway.service import QueuePosition, Verdict
from vitascope_proto.v1 import prompt_pb2, scheduler_pb2


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


def queue_position(message: scheduler_pb2.GetQueuePositionResponse | scheduler_pb2.JobPosition) -> QueuePosition:
    """Translate where a job stands; what the scheduler does not know becomes None."""
    return QueuePosition(
        position=int(message.position) if message.position >= 0 else None,
        eta_s=round(message.eta_s, 1) if message.eta_s >= 0 else None,
    )


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
    return PoolView(
        pool=message.pool,
        is_draining=message.is_draining,
        num_waiting=message.num_waiting,
        num_in_flight=message.num_in_flight,
        backlog_s=message.backlog_s,
        virtual_time=message.virtual_time,
        classes=[_class(one) for one in message.classes],
        workers=[_worker(one) for one in message.workers],
        leases=[_lease(one) for one in message.leases],
    )


def _class(message: scheduler_pb2.ClassView) -> ClassView:
    return ClassView(
        class_name=message.class_name,
        weight=message.weight,
        virtual_time=message.virtual_time,
        start_tag=message.start_tag,
        num_waiting=message.num_waiting,
        num_in_flight=message.num_in_flight,
        backlog_s=message.backlog_s,
        served_s=message.served_s,
        entitled_s=message.entitled_s,
        flows=[_flow(one) for one in message.flows],
    )


def _flow(message: scheduler_pb2.FlowView) -> FlowView:
    return FlowView(
        tenant_id=message.tenant_id,
        weight=message.weight,
        cap=message.cap,
        start_tag=message.start_tag,
        num_waiting=message.num_waiting,
        num_in_flight=message.num_in_flight,
        backlog_s=message.backlog_s,
        served_s=message.served_s,
        entitled_s=message.entitled_s,
    )


def _worker(message: scheduler_pb2.WorkerView) -> WorkerView:
    return WorkerView(
        worker_id=message.worker_id,
        device=message.device,
        group_size=message.group_size,
        num_slots=message.num_slots,
        num_free_slots=message.num_free_slots,
        warm_models=list(message.warm_models),
        expires_in_ms=message.expires_in_ms,
        is_draining=message.is_draining,
        task_ids=list(message.task_ids),
    )


def _lease(message: scheduler_pb2.LeaseView) -> LeaseView:
    return LeaseView(
        task_id=message.task_id,
        tenant_id=message.tenant_id,
        class_name=message.class_name,
        worker_id=message.worker_id,
        state=message.state,
        expires_in_ms=message.expires_in_ms,
        charged_s=message.charged_s,
        attempt=message.attempt,
    )
