"""The routes of files and batches, in the wire format of OpenAI's /v1/files and /v1/batches."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vitascope_common import serving
from vitascope_common.errors import QuotaExceededError
from vitascope_common.objectstore import ByteStream
from vitascope_gateway import batch_objects
from vitascope_gateway.batch_lines import MAX_LINES
from vitascope_gateway.batch_objects import BatchList, BatchObject, FileDeleted, FileList, FileObject
from vitascope_gateway.batches import ENDPOINT, WINDOW, Batches
from vitascope_gateway.body import READ_TYPES, EdgeError, read_fields
from vitascope_gateway.files import MAX_FILE_BYTES, MAX_PAGE, MEDIA_TYPE, TTL_S, File, Files
from vitascope_gateway.idempotency import REPLAYED_ANSWER, Mark, replayed
from vitascope_gateway.service import Caller
from vitascope_gateway.stream import SEND_TIMEOUT_S
from vitascope_gateway.uploads import Uploads

_TTL: dict[str, Any] = {
    "type": "object",
    "required": ["anchor", "seconds"],
    "properties": {
        "anchor": {"type": "string", "enum": ["created_at"]},
        "seconds": {"type": "integer", "minimum": TTL_S[0], "maximum": TTL_S[1]},
    },
}
_UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": f"At most {MAX_FILE_BYTES} bytes; one JSON object per line, at most {MAX_LINES} of them: "
            '{"custom_id": "…", "method": "POST", "url": "/v1/videos", "body": {…}}.',
        },
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after": {**_TTL, "description": "Default, and most: 30 days."},
    },
}
_BATCH: dict[str, Any] = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": {
        "input_file_id": {"type": "string"},
        "endpoint": {"type": "string", "enum": [ENDPOINT]},
        "completion_window": {"type": "string", "enum": [WINDOW]},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "output_expires_after": {**_TTL, "description": "How long output and error file are kept; default: 30 days."},
    },
}


def _body(schema: dict[str, Any], *media_types: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {one: {"schema": schema} for one in media_types}}}


def make_batch_router(
    files: Files,
    batches: Batches,
    caller: Callable[..., Any],
    mark: Callable[..., Any],
    base_url: Callable[[Request], str],
    errors: Callable[..., dict[int | str, dict[str, Any]]],
) -> APIRouter:
    """Build the routes; `caller` and `mark` find whose request it is and which, `base_url` where it came.

    `errors` documents statuses.
    """
    router = APIRouter(prefix="/v1")
    uploads = Uploads()
    Known = Annotated[Caller, Depends(caller)]
    Marked = Annotated[Mark | None, Depends(mark)]
    After = Annotated[str | None, Query(description="Id of the last one of the page before.")]

    @router.post(
        "/files",
        response_model=FileObject,
        responses=errors(400, 401, 408, 413, 415, 429, 503),
        openapi_extra=_body(_UPLOAD, "multipart/form-data"),
        tags=["files"],
    )
    async def create_file(request: Request, known: Known) -> Response:
        """Upload the requests of a batch, one per line."""
        async with uploads.receive(known.tenant_id, request) as upload:
            try:
                file = await files.upload(known.tenant_id, upload.filename, upload.path, upload.ttl_ms)
            except QuotaExceededError as error:  # after a 429 stock clients would send all of it twice more
                raise EdgeError(413, error.code, error.message, param=error.param) from error
        return JSONResponse(batch_objects.file(file).model_dump())

    @router.get("/files", response_model=FileList, responses=errors(400, 401, 503), tags=["files"])
    async def list_files(
        known: Known,
        after: After = None,
        limit: Annotated[int, Query(ge=1, le=10_000, description=f"A page has {MAX_PAGE} at most.")] = MAX_PAGE,
        order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
        purpose: Annotated[str | None, Query(description="batch or batch_output; default: both.")] = None,
    ) -> Response:
        """List your files: what you uploaded, and what batches left."""
        found, has_more = await files.page(known.tenant_id, purpose, after, limit, order == "asc")
        return JSONResponse(batch_objects.file_list(found, has_more).model_dump())

    @router.get("/files/{file_id}", response_model=FileObject, responses=errors(401, 404, 503), tags=["files"])
    async def get_file(file_id: str, known: Known) -> Response:
        """Show one file."""
        return JSONResponse(batch_objects.file(await files.file(known.tenant_id, file_id)).model_dump())

    @router.get(
        "/files/{file_id}/content",
        response_class=Response,
        responses={200: {"content": {MEDIA_TYPE: {}}, "description": "Its bytes."}, **errors(401, 404, 503)},
        tags=["files"],
    )
    async def get_file_content(file_id: str, known: Known) -> Response:
        """Download a file."""
        return _FileResponse(*await files.open(known.tenant_id, file_id))

    @router.delete("/files/{file_id}", response_model=FileDeleted, responses=errors(401, 404, 503), tags=["files"])
    async def delete_file(file_id: str, known: Known) -> Response:
        """Delete a file; a batch under way that reads it goes on."""
        await files.delete(known.tenant_id, file_id)
        return JSONResponse(FileDeleted(id=file_id).model_dump())

    @router.post(
        "/batches",
        response_model=BatchObject,
        responses=errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 503) | {200: REPLAYED_ANSWER},
        openapi_extra=_body(_BATCH, *READ_TYPES),
        tags=["batches"],
    )
    async def create_batch(request: Request, known: Known, sent: Marked) -> Response:
        """Work off the requests of a file within 24 hours, in the service class `batch`."""
        asked = await batches.create(known, await read_fields(request, known.tenant_id), base_url(request), sent)
        return JSONResponse(batch_objects.batch(asked.batch).model_dump(), headers=replayed(asked.is_replayed))

    @router.get("/batches", response_model=BatchList, responses=errors(400, 401, 503), tags=["batches"])
    async def list_batches(
        known: Known, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Response:
        """List your batches, newest first; one is kept for 30 days after its end."""
        found, has_more = await batches.page(known.tenant_id, after, limit)
        return JSONResponse(batch_objects.batch_list(found, has_more).model_dump())

    @router.get("/batches/{batch_id}", response_model=BatchObject, responses=errors(401, 404, 503), tags=["batches"])
    async def get_batch(batch_id: str, known: Known) -> Response:
        """Show one batch."""
        return JSONResponse(batch_objects.batch(await batches.batch(known.tenant_id, batch_id)).model_dump())

    @router.post(
        "/batches/{batch_id}/cancel",
        response_model=BatchObject,
        responses=errors(401, 404, 409, 503),
        tags=["batches"],
    )
    async def cancel_batch(batch_id: str, known: Known) -> Response:
        """Cancel a batch: its videos that are not finished are cancelled, those that are go into the output."""
        return JSONResponse(batch_objects.batch(await batches.cancel(known.tenant_id, batch_id)).model_dump())

    return router


class _FileResponse(StreamingResponse):
    """The bytes of a file; what is held for them is freed with the client."""

    def __init__(self, file: File, stream: ByteStream) -> None:
        self._chunks = _chunks(stream)
        headers = {
            "Content-Length": str(file.num_bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        super().__init__(self._chunks, 200, headers, MEDIA_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client takes nothing any more."""
        async with aclosing(self._chunks):
            with suppress(TimeoutError):  # the server closes what it has begun and not finished
                await super().__call__(scope, receive, serving.in_time(send, SEND_TIMEOUT_S))


async def _chunks(stream: ByteStream) -> AsyncGenerator[bytes]:
    try:
        while chunk := await asyncio.to_thread(next, stream, b""):
            yield chunk
    finally:
        await asyncio.to_thread(stream.close)
