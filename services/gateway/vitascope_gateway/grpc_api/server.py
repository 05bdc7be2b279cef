"""The public gRPC server: its limits, its health, and what it shows of itself."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from vitascope_common.rpc import RpcServer
from vitascope_gateway.body import MAX_BODY_BYTES
from vitascope_gateway.grpc_api.api import SERVICE_NAME, VideoApi
from vitascope_gateway.grpc_api.edge import PublicEdge
from vitascope_gateway.service import Gateway

OPTIONS = {
    "grpc.max_receive_message_length": MAX_BODY_BYTES,
    "grpc.max_concurrent_streams": 1000,  # of one connection
    "grpc.max_connection_idle_ms": 600_000,
    "grpc.keepalive_time_ms": 30_000,  # a client that is gone is noticed, though it sends nothing
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,  # who pings more often than that is disconnected
}


class Readiness(health.aio.HealthServicer):  # type: ignore[misc]  # untyped
    """Health as `/readyz` says it: whether a call could be served now."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Ask what is needed, unless this server drains."""
        answer: health_pb2.HealthCheckResponse = await super().Check(request, context)
        if answer.status == health_pb2.HealthCheckResponse.SERVING and await self._gateway.missing():
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return answer

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Refuse: anybody could hold up everybody else's answers by not reading theirs. Clients then go without."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Use Check.")


def make_server(host: str, port: int, api: VideoApi, gateway: Gateway, *, has_reflection: bool) -> RpcServer:
    """Build the server. Raises: ConfigurationError: the port is taken."""
    return RpcServer(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        [SERVICE_NAME],
        api.register_in,
        errors=PublicEdge(SERVICE_NAME),
        options=OPTIONS,
        servicer=Readiness(gateway),
        has_reflection=has_reflection,
    )
