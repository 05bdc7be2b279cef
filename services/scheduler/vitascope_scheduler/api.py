"""The gRPC edge: `wire` translates each call, `service` and `operator` decide it, ErrorInterceptor maps the errors."""

from typing import Any

from vitascope_proto.v1 import scheduler_pb2, scheduler_pb2_grpc
from vitascope_scheduler import wire
from vitascope_scheduler.operator import Operator
from vitascope_scheduler.service import Scheduler

SERVICE_NAME = scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name


class SchedulerApi(scheduler_pb2_grpc.SchedulerServiceServicer):
    """SchedulerService over the use cases."""

    def __init__(self, scheduler: Scheduler, operator: Operator) -> None:
        self._scheduler = scheduler
        self._operator = operator

    def register_in(self, server: Any) -> None:
        """Add this service to a gRPC server."""
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(self, server)

    async def Submit(self, request: scheduler_pb2.SubmitRequest, context: Any) -> scheduler_pb2.SubmitResponse:
        """Hint that a committed job exists."""
        await self._scheduler.submit(wire.name(request.job_id, "job_id"))
        return scheduler_pb2.SubmitResponse()

    async def Cancel(self, request: scheduler_pb2.CancelRequest, context: Any) -> scheduler_pb2.CancelResponse:
        """Cancel a job that is not over."""
        state = await self._scheduler.cancel(wire.name(request.job_id, "job_id"), request.tenant_id)
        return scheduler_pb2.CancelResponse(state=state)

    async def Delete(self, request: scheduler_pb2.DeleteRequest, context: Any) -> scheduler_pb2.DeleteResponse:
        """Hide a job and its files."""
        await self._scheduler.delete(wire.name(request.job_id, "job_id"), request.tenant_id)
        return scheduler_pb2.DeleteResponse()

    async def GetQueuePosition(
        self, request: scheduler_pb2.GetQueuePositionRequest, context: Any
    ) -> scheduler_pb2.GetQueuePositionResponse:
        """Say where a waiting job stands."""
        (place,) = await self._scheduler.queue_positions([wire.name(request.job_id, "job_id")])
        return wire.position_answer(place)

    async def GetQueuePositions(
        self, request: scheduler_pb2.GetQueuePositionsRequest, context: Any
    ) -> scheduler_pb2.GetQueuePositionsResponse:
        """Say where many jobs stand."""
        job_ids = wire.job_ids_from_proto(request)
        return wire.positions_answer(job_ids, await self._scheduler.queue_positions(job_ids))

    async def Forecast(self, request: scheduler_pb2.ForecastRequest, context: Any) -> scheduler_pb2.ForecastResponse:
        """Say where a job would stand."""
        place = await self._scheduler.foresee(*wire.forecast_question(request))
        return scheduler_pb2.ForecastResponse(position=place.position, eta_s=place.eta_s)

    async def GetQueue(self, request: scheduler_pb2.GetQueueRequest, context: Any) -> scheduler_pb2.GetQueueResponse:
        """Show the queues to an operator."""
        return wire.queue_answer(await self._operator.queue(wire.optional_name(request.pool, "pool")))

    async def SetDrain(self, request: scheduler_pb2.SetDrainRequest, context: Any) -> scheduler_pb2.SetDrainResponse:
        """Give a worker or a pool no more work, or work again."""
        num_workers = await self._operator.set_drain(
            wire.name(request.pool, "pool"),
            wire.optional_name(request.worker_id, "worker_id"),
            request.is_draining,
            wire.name(request.tenant_id, "tenant_id"),
        )
        return scheduler_pb2.SetDrainResponse(num_workers=num_workers)

    async def Register(self, request: scheduler_pb2.RegisterRequest, context: Any) -> scheduler_pb2.RegisterResponse:
        """Enter a worker and its slots."""
        await self._scheduler.register(wire.worker_from_proto(request))
        return wire.register_answer(self._scheduler.timing)

    async def Claim(self, request: scheduler_pb2.ClaimRequest, context: Any) -> scheduler_pb2.ClaimResponse:
        """Begin an attempt."""
        task_id, worker_id = wire.name(request.task_id, "task_id"), wire.name(request.worker_id, "worker_id")
        claim = await self._scheduler.claim(task_id, worker_id, wire.group_size(request))
        return wire.claim_answer(claim, self._scheduler.timing)

    async def Heartbeat(self, request: scheduler_pb2.HeartbeatRequest, context: Any) -> scheduler_pb2.HeartbeatResponse:
        """Renew what an executor holds."""
        return wire.beat_answer(await self._scheduler.heartbeat(wire.beat_from_proto(request)))

    async def Report(self, request: scheduler_pb2.ReportRequest, context: Any) -> scheduler_pb2.ReportResponse:
        """End an attempt."""
        return wire.report_answer(await self._scheduler.report(wire.report_from_proto(request)))
