"""Text conditioning from the prompt service."""

from typing import Any

import grpc

from vitascope_common import rpc, telemetry
from vitascope_common.grpc_errors import from_rpc_error
from vitascope_common.jobs import Artifact
from vitascope_gpu_worker import wire
from vitascope_proto.v1 import prompt_pb2_grpc

CALL_TIMEOUT_S = 30.0


class PromptClient:
    """Asks `prompt.Encode`."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=rpc.CHANNEL_OPTIONS)
        self._stub: Any = prompt_pb2_grpc.PromptServiceStub(
            grpc.intercept_channel(self._channel, *telemetry.sync_client_interceptors())
        )

    def encode(self, model: str, prompt: str, negative_prompt: str) -> Artifact:
        """Return where the conditioning lies. Raises VitascopeError as the service means it."""
        try:
            answer = self._stub.Encode(wire.encode_request(model, prompt, negative_prompt), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return wire.conditioning_from(answer)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
