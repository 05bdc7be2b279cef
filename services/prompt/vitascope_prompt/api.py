"""The gRPC edge."""

from typing import Any

from vitascope_common.rpc import RpcServer
from vitascope_prompt import wire
from vitascope_prompt.service import PromptService
from vitascope_proto.v1 import prompt_pb2, prompt_pb2_grpc

SERVICE_NAME = prompt_pb2.DESCRIPTOR.services_by_name["PromptService"].full_name


class PromptApi(prompt_pb2_grpc.PromptServiceServicer):
    """Hands each call to the service; errors become statuses in the server's interceptor."""

    def __init__(self, service: PromptService) -> None:
        self._service = service

    async def Check(self, request: prompt_pb2.CheckRequest, context: Any) -> prompt_pb2.CheckResponse:
        """Judge a prompt."""
        checked = await self._service.check(request.tenant_id, request.model, request.prompt, request.negative_prompt)
        return wire.checked_to_proto(checked)

    async def Encode(self, request: prompt_pb2.EncodeRequest, context: Any) -> prompt_pb2.EncodeResponse:
        """Encode a prompt."""
        encoded = await self._service.encode(request.model, request.prompt, request.negative_prompt)
        return wire.encoded_to_proto(encoded)


def make_server(address: str, service: PromptService) -> RpcServer:
    """Build the server; its `port` is bound, it answers after `start`."""
    api = PromptApi(service)
    return RpcServer(
        address,
        [SERVICE_NAME],
        lambda server: prompt_pb2_grpc.add_PromptServiceServicer_to_server(api, server),
    )
