"""The public VideoService: `edge` knows the caller and shapes errors, `wire` translates, the use cases are REST's."""

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from vitascope_common.errors import NotFoundError, UnavailableError
from vitascope_gateway import objects
from vitascope_gateway.creation import Created, Creation
from vitascope_gateway.follow import Access, Following
from vitascope_gateway.grpc_api import wire
from vitascope_gateway.grpc_api.edge import Answer, headers_of, stream, unary
from vitascope_gateway.idempotency import COUNT_HEADER, REPLAYED_HEADER, Mark, mark_of
from vitascope_gateway.service import Caller, Gateway, Store
from vitascope_gateway.stream import SEND_TIMEOUT_S, End
from vitascope_gateway.told import Told
from vitascope_proto.v1 import videos_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VideoService"].full_name
REPLAYED = (REPLAYED_HEADER, "true")
ATTEMPTS = "grpc-previous-rpc-attempts"
"""What a gRPC client sends when it repeats a call by itself, under its channel's retry policy."""
_ENDS = {
    End.RESTARTING: "The server restarts; call again with the last event id.",
    End.TOO_SLOW: "The stream was read too slowly; call again with the last event id.",
}
_NOWHERE = objects.Urls("")
"""Messages have no URLs of this API."""

T = TypeVar("T")


class VideoApi:
    """VideoService over the use cases."""

    def __init__(self, gateway: Gateway, creation: Creation, store: Store, following: Following) -> None:
        self._gateway = gateway
        self._creation = creation
        self._store = store
        self._following = following
        self._under_way: set[asyncio.Task[Any]] = set()

    def register_in(self, server: Any) -> None:
        """Add this service to a gRPC server."""
        calls: dict[str, tuple[type[Any], Answer[Any]]] = {
            "CreateVideo": (pb.CreateVideoRequest, self._create),
            "GetVideo": (pb.GetVideoRequest, self._get),
            "ListVideos": (pb.ListVideosRequest, self._list),
            "DeleteVideo": (pb.DeleteVideoRequest, self._delete),
            "CancelVideo": (pb.CancelVideoRequest, self._cancel),
            "RetryVideo": (pb.RetryVideoRequest, self._retry),
            "RemixVideo": (pb.RemixVideoRequest, self._remix),
            "EditVideo": (pb.EditVideoRequest, self._edit),
            "ExtendVideo": (pb.ExtendVideoRequest, self._extend),
            "EstimateVideo": (pb.EstimateVideoRequest, self._estimate),
            "GetVideoContent": (pb.GetVideoContentRequest, self._content),
            "ListModels": (pb.ListModelsRequest, self._models),
        }
        handlers: dict[str, grpc.RpcMethodHandler] = {
            name: unary(self._store, f"{SERVICE_NAME}/{name}", kind, answer) for name, (kind, answer) in calls.items()
        }
        handlers["Watch"] = stream(self._store, pb.WatchRequest, self._watch)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def _create(self, caller: Caller, request: pb.CreateVideoRequest, context: Any) -> pb.Video:
        sent, fields = _mark(context), wire.create_fields(request)
        return _created(await self._finished(self._creation.create(caller, fields, sent)), context)

    async def _retry(self, caller: Caller, request: pb.RetryVideoRequest, context: Any) -> pb.Video:
        sent = _mark(context)
        return _created(await self._finished(self._creation.retry(caller, request.video_id, sent)), context)

    async def _remix(self, caller: Caller, request: pb.RemixVideoRequest, context: Any) -> pb.Video:
        sent, fields = _mark(context), wire.remix_fields(request)
        return _created(await self._finished(self._creation.remix(caller, request.video_id, fields, sent)), context)

    async def _edit(self, caller: Caller, request: pb.EditVideoRequest, context: Any) -> pb.Video:
        sent, fields = _mark(context), wire.clip_field(request.video) | wire.remix_fields(request)
        return _created(await self._finished(self._creation.edit(caller, fields, sent)), context)

    async def _extend(self, caller: Caller, request: pb.ExtendVideoRequest, context: Any) -> pb.Video:
        sent, fields = _mark(context), wire.clip_field(request.video) | wire.create_fields(request.request)
        return _created(await self._finished(self._creation.extend(caller, fields, sent)), context)

    async def _estimate(self, caller: Caller, request: pb.EstimateVideoRequest, _: Any) -> pb.VideoEstimate:
        found = await self._creation.estimate(caller, wire.create_fields(request.request))
        return wire.estimate(objects.estimate(found))

    async def _get(self, caller: Caller, request: pb.GetVideoRequest, _: Any) -> pb.Video:
        record = await self._gateway.video(caller.tenant_id, request.video_id)
        position = await self._gateway.queue_position(record)
        return wire.video(objects.video(record, _NOWHERE, position))

    async def _list(self, caller: Caller, request: pb.ListVideosRequest, _: Any) -> pb.ListVideosResponse:
        after, limit, is_ascending = wire.page_of(request)
        records, has_more = await self._gateway.page(caller.tenant_id, after, limit, is_ascending)
        return wire.page([objects.video(record, _NOWHERE) for record in records], has_more)

    async def _delete(self, caller: Caller, request: pb.DeleteVideoRequest, _: Any) -> pb.DeleteVideoResponse:
        await self._finished(self._gateway.delete(caller.tenant_id, request.video_id))
        return pb.DeleteVideoResponse(id=request.video_id)

    async def _cancel(self, caller: Caller, request: pb.CancelVideoRequest, _: Any) -> pb.Video:
        record = await self._finished(self._gateway.cancel(caller.tenant_id, request.video_id))
        return wire.video(objects.video(record, _NOWHERE))

    async def _content(self, caller: Caller, request: pb.GetVideoContentRequest, _: Any) -> pb.GetVideoContentResponse:
        variant = request.variant if request.HasField("variant") else "video"
        return pb.GetVideoContentResponse(
            url=await self._gateway.content_link(caller.tenant_id, request.video_id, variant)
        )

    async def _models(self, _: Caller, __: pb.ListModelsRequest, ___: Any) -> pb.ListModelsResponse:
        return wire.models([objects.model(card) for card in self._gateway.models()])

    async def _watch(self, caller: Caller, request: pb.WatchRequest, context: Any) -> None:
        """Write events until the last one.

        Raises:
            NotFoundError: no such video, or it was deleted meanwhile.
            UnavailableError: this process ends, or the client reads too slowly; what is left can be had again.
        """
        access = Access(caller.tenant_id, _NOWHERE)
        followed = await self._following.open(access, request.video_id, request.last_event_id)
        await context.send_initial_metadata(())  # so that the client knows that it is followed
        if followed is None:
            return
        async with aclosing(followed.batches()) as batches:
            async for batch in batches:
                for item in batch:
                    if isinstance(item, Told):  # what keeps a silent stream alive is HTTP/2's own ping
                        await _write(context, wire.event(item))
                        if wire.is_last(item):
                            return
        if followed.end is End.FINISHED:
            raise NotFoundError("This video was deleted.", param="video_id")
        raise UnavailableError(_ENDS[followed.end])

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what changes something to its end, also when the client gives up on the call meanwhile, as over HTTP."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be that nobody asks
        return await asyncio.shield(task)

    async def drain(self, timeout_s: float) -> None:
        """Let what was begun for clients that have gone end."""
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=timeout_s)


async def _write(context: Any, data: bytes) -> None:
    """Write, unless the client takes nothing for too long. Raises: UnavailableError."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await context.write(data)
    except TimeoutError:
        raise UnavailableError(_ENDS[End.TOO_SLOW]) from None


def _mark(context: Any) -> Mark | None:
    """Return how a call is recognised when it comes again: by its key, or as a channel's retry policy repeats it.

    A first attempt has no number, and nothing says whether there is a policy; so this alone promises nothing.
    """
    headers = headers_of(context).mutablecopy()
    headers.setdefault(COUNT_HEADER, headers.get(ATTEMPTS, "0"))
    return mark_of(headers)


def _created(created: Created, context: Any) -> pb.Video:
    if created.is_replayed:
        context.set_trailing_metadata((*context.trailing_metadata(), REPLAYED))
    return wire.video(objects.video(created.record, _NOWHERE))
