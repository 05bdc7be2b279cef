"""One way to serve gRPC and one way to call it: health, reflection, errors and traces are the same everywhere."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vitascope_common import telemetry
from vitascope_common.errors import ConfigurationError
from vitascope_common.grpc_errors import ErrorInterceptor

CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # services reach each other directly, whatever http_proxy says
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
)
MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # references only; a larger message is a mistake


class RpcServer:
    """A gRPC server with health and reflection; `port` is the one it really listens on.

    One that strangers call has an interceptor and limits (`options`) of its own, and may hide what it can do.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[str],
        register: Callable[[grpc.aio.Server], None],
        *,
        errors: grpc.aio.ServerInterceptor | None = None,
        options: Mapping[str, int] = MappingProxyType({}),
        servicer: health.aio.HealthServicer | None = None,
        has_reflection: bool = True,
    ) -> None:
        limits = {"grpc.max_receive_message_length": MAX_MESSAGE_BYTES, "grpc.so_reuseport": 0, **options}
        self._server = grpc.aio.server(
            interceptors=[*telemetry.server_interceptors(), errors or ErrorInterceptor()], options=[*limits.items()]
        )
        self._health = servicer or health.aio.HealthServicer()
        self._services = (*services, "")
        register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if has_reflection:
            names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigurationError(f"cannot listen on {address}: {error}") from error

    async def start(self) -> None:
        """Begin to answer; health says SERVING."""
        await self._server.start()
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self, grace_s: float = 5.0) -> None:
        """Say NOT_SERVING, refuse new calls and give running ones `grace_s` to end."""
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(grace_s)

    async def _say(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in self._services:
            await self._health.set(service, status)


def connect(address: str) -> grpc.aio.Channel:
    """Open a channel to another service; it reconnects within a second once the other side is back."""
    return grpc.aio.insecure_channel(
        address,
        interceptors=telemetry.client_interceptors(),
        options=CHANNEL_OPTIONS,
    )


async def is_serving(channel: grpc.aio.Channel, timeout_s: float = 1.0) -> bool:
    """Ask the other side's health service."""
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True
        )
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
