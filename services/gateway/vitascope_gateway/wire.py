"""Protobuf <-> domain for the two services that the gateway calls."""

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


def queue_position(message: scheduler_pb2.GetQueuePositionResponse) -> QueuePosition:
    """Translate where a job stands; what the scheduler does not know becomes None."""
    return QueuePosition(
        position=int(message.position) if message.position >= 0 else None,
        eta_s=message.eta_s if message.eta_s >= 0 else None,
    )
