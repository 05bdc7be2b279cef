"""The body of an upload -> a file on local disk. It is never in memory as a whole."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from vitascope_common.errors import InvalidRequestError
from vitascope_gateway.body import EdgeError, multipart_headers
from vitascope_gateway.files import INPUT, MAX_FILE_BYTES, read_ttl_ms
from vitascope_gateway.places import Places
from vitascope_gateway.request import show

MAX_UPLOADS, MAX_UPLOADS_OF_TENANT = 8, 3
"""At once; each lies on local disk, twice at most, and may take a quarter of an hour."""
MAX_REST_BYTES = 64 * 1024
"""Of an upload, beside the file."""
IDLE_TIMEOUT_S, UPLOAD_TIMEOUT_S = 30.0, 900.0
MIN_BYTES_PER_S = 10_000
"""On average, after the first half minute: who sends less keeps a place from those who send more."""
MAX_FILENAME_CHARS = 255
MAX_TAIL_BYTES = 1024
"""In which the closing boundary lies; parsers allow one of 256 bytes."""

_FIELDS = ("file", "purpose", "expires_after", "expires_after[anchor]", "expires_after[seconds]")


@dataclass(frozen=True)
class Upload:
    """A file that has arrived."""

    path: Path
    filename: str
    ttl_ms: int


class Uploads:
    """Receives uploads, a few at once."""

    def __init__(self) -> None:
        self._places = Places("files are being uploaded", MAX_UPLOADS, MAX_UPLOADS_OF_TENANT)

    @asynccontextmanager
    async def receive(self, tenant_id: str, request: Request) -> AsyncIterator[Upload]:
        """Receive one; the file is there until the block ends.

        Raises:
            InvalidRequestError: names the field at fault.
            EdgeError: 408 too slow, 413 too large, 415 not multipart.
            QuotaExceededError, UnavailableError: too many at once, of this tenant or of all.
        """
        with self._places.held(tenant_id), tempfile.TemporaryDirectory() as folder:
            yield await _receive(request, Path(folder) / "upload")


async def _receive(request: Request, path: Path) -> Upload:
    content_type = request.headers.get("content-type", "")
    if parse_options_header(content_type)[0] != b"multipart/form-data":
        message = "The content type must be multipart/form-data, with the fields file and purpose."
        raise EdgeError(415, "unsupported_media_type", message, param="content-type")
    boundary, headers = multipart_headers(content_type, "utf-8")
    parser = MultiPartParser(
        headers,
        _chunks(request, boundary),
        max_files=1,
        max_fields=len(_FIELDS),
        max_part_size=MAX_REST_BYTES,
    )
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequestError(f"The multipart body cannot be read: {error.message}") from None
    except TimeoutError:
        raise EdgeError(408, "body_too_slow", f"The file did not arrive within {UPLOAD_TIMEOUT_S:.0f} s.") from None
    except ClientDisconnect:
        raise EdgeError(400, "body_incomplete", "The connection closed before the body had arrived.") from None
    try:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            shown = ascii(name[:60])[1:-1]
            if name not in _FIELDS or name in fields:
                message = f"Unknown field {shown}; known are file, purpose, expires_after."
                raise InvalidRequestError(message if name not in _FIELDS else f"{shown} is given twice.", param=shown)
            fields[name] = value
        file = fields.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequestError("file is required: a file, one JSON object per line.", param="file")
        purpose = fields.get("purpose")
        if purpose != INPUT:
            raise InvalidRequestError(f'purpose must be "{INPUT}"; got {show(purpose)}.', param="purpose")
        if not file.size:
            raise InvalidRequestError("The file is empty.", param="file")
        if file.size > MAX_FILE_BYTES:
            raise _too_large()
        anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
        after = fields.get("expires_after")
        if anchor is not None or seconds is not None:
            if after is not None:
                raise InvalidRequestError("expires_after is given twice.", param="expires_after")
            after = {"anchor": anchor, "seconds": seconds}
        ttl_ms = read_ttl_ms(after, "expires_after")
        await asyncio.to_thread(_copy, file.file, path)
        filename = "".join(char for char in file.filename or "" if char.isprintable())[:MAX_FILENAME_CHARS]
        return Upload(path, filename or "batch.jsonl", ttl_ms)
    finally:
        await form.close()


async def _chunks(request: Request, boundary: bytes) -> AsyncGenerator[bytes]:
    """Yield the body up to its limit; one that is announced as too large is not read at all.

    Whatever is wrong is raised while the parser reads, which then closes its files.
    """
    most = MAX_FILE_BYTES + MAX_REST_BYTES
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > most):
        raise _too_large()
    num_bytes, tail, started_s = 0, b"", time.monotonic()
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                chunk = await anext(stream)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise EdgeError(408, "body_too_slow", f"Nothing arrived for {IDLE_TIMEOUT_S:.0f} s.") from None
        num_bytes += len(chunk)
        if num_bytes > most:
            raise _too_large()
        if time.monotonic() - started_s > IDLE_TIMEOUT_S + num_bytes / MIN_BYTES_PER_S:
            raise EdgeError(408, "body_too_slow", f"Less than {MIN_BYTES_PER_S} bytes arrive in a second.")
        tail = (tail + chunk)[-MAX_TAIL_BYTES:]
        yield chunk
    if not tail.rstrip().endswith(b"\r\n--" + boundary + b"--"):
        raise InvalidRequestError("The multipart body is cut off: its closing boundary is missing.")


def _copy(source: IO[bytes], path: Path) -> None:
    source.seek(0)
    with path.open("xb") as target:
        shutil.copyfileobj(source, target, 1024 * 1024)


def _too_large() -> EdgeError:
    message = f"The file is too large; at most {MAX_FILE_BYTES} bytes are allowed."
    return EdgeError(413, "body_too_large", message, param="file")
