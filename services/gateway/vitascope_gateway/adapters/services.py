"""gRPC: the prompt service and the scheduler."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog

from vitascope_common import rpc
from vitascope_common.errors import ErrorKind, UnavailableError
from vitascope_common.grpc_errors import from_rpc_error
from vitascope_gateway import wire
from vitascope_gateway.queue_view import PoolView
from vitascope_gateway.service import QueuePosition, Verdict
from vitascope_proto.v1 import prompt_pb2_grpc, scheduler_pb2_grpc

CHECK_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 5.0
POSITION_TIMEOUT_S = 0.25

_log = structlog.stdlib.get_logger("vitascope.gateway")
_Answer = TypeVar("_Answer")


class PromptClient:
    """Implements service.Prompts."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub: Any = prompt_pb2_grpc.PromptServiceStub(channel)

    async def check(self, tenant_id: str, model: str, prompt: str, negative_prompt: str) -> Verdict:
        """Ask for the verdict. Raises UnavailableError for whatever keeps us from having one: never a pass."""
        request = wire.check_request(tenant_id, model, prompt, negative_prompt)
        return wire.verdict(await _call("prompt", self._stub.Check(request, timeout=CHECK_TIMEOUT_S)))

    async def is_serving(self) -> bool:
        """Ask its health service."""
        return await rpc.is_serving(self._channel)


class SchedulerClient:
    """Implements service.Scheduler."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)

    async def submit(self, job_id: str, timeout_s: float) -> None:
        """Hint that a job exists."""
        await _call("scheduler", self._stub.Submit(wire.submit_request(job_id), timeout=timeout_s))

    async def cancel(self, tenant_id: str, job_id: str) -> None:
        """Cancel a job; one that has ended stays as it is."""
        request = wire.cancel_request(job_id, tenant_id)
        await _call("scheduler", self._stub.Cancel(request, timeout=CALL_TIMEOUT_S))

    async def delete(self, tenant_id: str, job_id: str) -> None:
        """Cancel if needed and hide a job."""
        request = wire.delete_request(job_id, tenant_id)
        await _call("scheduler", self._stub.Delete(request, timeout=CALL_TIMEOUT_S))

    async def queue_position(self, job_id: str) -> QueuePosition:
        """Ask where a job stands; gives up quickly."""
        request = wire.queue_position_request(job_id)
        answer = await _call("scheduler", self._stub.GetQueuePosition(request, timeout=POSITION_TIMEOUT_S))
        return wire.queue_position(answer)

    async def queue_positions(self, job_ids: Sequence[str]) -> Mapping[str, QueuePosition]:
        """Ask where many jobs stand; nobody waits for the answer."""
        request = wire.queue_positions_request(job_ids)
        answer = await _call("scheduler", self._stub.GetQueuePositions(request, timeout=CALL_TIMEOUT_S))
        return wire.queue_positions(answer)

    async def forecast(self, pool: str, tenant_id: str, class_name: str, cost_s: float) -> QueuePosition:
        """Ask where a job would stand that came now."""
        request = wire.forecast_request(pool, tenant_id, class_name, cost_s)
        return wire.queue_position(await _call("scheduler", self._stub.Forecast(request, timeout=CALL_TIMEOUT_S)))

    async def queue(self, pool: str) -> Sequence[PoolView]:
        """Ask what operators see of one pool, or of all ("")."""
        request = wire.queue_request(pool)
        return wire.pools(await _call("scheduler", self._stub.GetQueue(request, timeout=CALL_TIMEOUT_S)))

    async def set_drain(self, tenant_id: str, pool: str, worker_id: str, is_draining: bool) -> int:
        """Give a worker, or all of a pool (""), no more work, or end that; return how many it concerns now."""
        request = wire.drain_request(tenant_id, pool, worker_id, is_draining)
        answer = await _call("scheduler", self._stub.SetDrain(request, timeout=CALL_TIMEOUT_S))
        return int(answer.num_workers)

    async def is_serving(self) -> bool:
        """Ask its health service."""
        return await rpc.is_serving(self._channel)


async def _call(service: str, call: Awaitable[_Answer]) -> _Answer:
    """Translate the other side's errors; a fault or silence of the other side means that it is unavailable."""
    try:
        return await call
    except grpc.RpcError as rpc_error:
        error = from_rpc_error(rpc_error)
        if error.kind in (ErrorKind.INVALID, ErrorKind.NOT_FOUND):
            raise error from rpc_error
        _log.warning("call.failed", to=service, code=error.code, error=error.message)
        raise UnavailableError(
            f"The {service} service is not available at the moment; the request can be repeated."
        ) from rpc_error
