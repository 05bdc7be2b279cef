"""Request body -> fields. JSON and multipart mean the same; whatever cannot be read is a 4xx that says why."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from vitascope_common.errors import InvalidRequestError
from vitascope_gateway.forms import MAX_STRUCTURE, is_overgrown
from vitascope_gateway.places import Places
from vitascope_gateway.request import FILES
from vitascope_gateway.threads import BoundedThreads

READ_TYPES = ("application/json", "multipart/form-data")
MAX_BODY_BYTES = 28 * 1024 * 1024
"""Two pictures of the largest size, as base64."""
LARGE_BYTES = 64 * 1024
"""The parsers take up to 20 ms for a megabyte: beyond this in a thread, beside everybody else's requests."""
MAX_ARRIVING_BYTES, MAX_ARRIVING_BYTES_OF_TENANT = 512 * 1024 * 1024, 128 * 1024 * 1024
"""Of all bodies that are arriving, together: each may take half a minute for it."""
BODY_TIMEOUT_S = 30.0
MAX_PARTS = 64

_PARSERS = BoundedThreads("parser", 2, Places("large requests are being read", most=18, most_of_tenant=6))
ARRIVING = Places("bytes of requests are arriving", MAX_ARRIVING_BYTES, MAX_ARRIVING_BYTES_OF_TENANT)
_BRACKETS = re.compile(r"([^\[\]]+)(?:\[([^\[\]]*)\])?")
_JSON_TYPE = re.compile(r"application/(json|[a-z0-9.+-]+\+json)")


class EdgeError(InvalidRequestError):
    """A request that HTTP itself has a status for."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code


async def read_fields(request: Request, tenant_id: str) -> dict[str, Any]:
    """Return the fields of a JSON or multipart body: `a[b]` becomes an object, `a[]` a list, a file bytes.

    `extra_body` is merged.

    Raises:
        InvalidRequestError: names the field, or the place in the JSON text.
        EdgeError: 408 too slow, 413 too large, 415 neither JSON nor multipart.
        QuotaExceededError, UnavailableError: too many large bodies arrive or wait, of this tenant or of all.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    is_json = _JSON_TYPE.fullmatch(media_type) is not None
    if not is_json and media_type != "multipart/form-data":
        raise EdgeError(
            415,
            "unsupported_media_type",
            "The content type must be application/json or multipart/form-data.",
            param="content-type",
        )
    body = await _read(request, tenant_id)
    form_type = None if is_json else content_type
    if len(body) > LARGE_BYTES:
        return await _PARSERS.run(tenant_id, lambda: asyncio.run(_parse(body, form_type)))
    return await _parse(body, form_type)


async def _parse(body: bytes, form_type: str | None) -> dict[str, Any]:
    """Return the fields of a form of this content type; None: of JSON."""
    return merge_extra_body(parse_json(body, None) if form_type is None else await _parse_multipart(body, form_type))


async def _read(request: Request, tenant_id: str) -> bytes:
    """Read the body up to its limit; one that is announced as too large is not read at all."""
    too_large = EdgeError(413, "body_too_large", f"The body is too large; at most {MAX_BODY_BYTES} bytes are allowed.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY_BYTES):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                ARRIVING.take(tenant_id, len(chunk))
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise EdgeError(408, "body_too_slow", f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from None
    except ClientDisconnect:
        raise EdgeError(400, "body_incomplete", "The connection closed before the body had arrived.") from None
    finally:
        ARRIVING.leave(tenant_id, len(body))
    return bytes(body)


def parse_json(body: bytes | str, param: str | None, what: str = "The body") -> dict[str, Any]:
    """Return the object that a text is. Raises: InvalidRequestError: where it is none, and why."""
    what = param or what
    try:
        text = body.decode() if isinstance(body, bytes) else body
        if is_overgrown(text):
            raise InvalidRequestError(
                f"{what} has more than {MAX_STRUCTURE} brackets, commas and colons; no request needs so many.",
                param=param,
            )
        fields = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{what} is not UTF-8: byte {error.start} is wrong.", param=param) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequestError(f"{what} is not valid JSON ({where}: {error.msg}).", param=param) from None
    except RecursionError:
        raise InvalidRequestError(f"{what} is nested too deeply.", param=param) from None
    except ValueError:  # a number with thousands of digits
        raise InvalidRequestError(f"{what} holds a number that is too large.", param=param) from None
    if not isinstance(fields, dict):
        raise InvalidRequestError(f'{what} must be a JSON object such as {{"prompt": "a red circle"}}.', param=param)
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequestError(f"The body holds {name}, which is not valid JSON.")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _twice(name)
            seen.add(name)
    return found


def _twice(name: str) -> InvalidRequestError:
    shown = ascii(name[:60])[1:-1]
    return InvalidRequestError(f"The field {shown} is given more than once.", param=shown)


def multipart_headers(content_type: str, charset: str) -> tuple[bytes, Headers]:
    """Return the boundary of a form, and what its parser is told: texts are of this charset, whatever the type claims.

    Raises: InvalidRequestError: it has no boundary.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise InvalidRequestError("The multipart content type has no usable boundary.", param="content-type")
    told = b'multipart/form-data; charset=%s; boundary="%s"' % (charset.encode(), boundary.replace(b'"', b""))
    return boundary, Headers(raw=[(b"content-type", told)])


async def _parse_multipart(body: bytes, content_type: str) -> dict[str, Any]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # Text is UTF-8 whatever the outer type claims (RFC 7578). The parser would take what is not for Latin-1 without a
    # word, so it gets to read everything as Latin-1, which loses nothing, and _text decodes.
    boundary, headers = multipart_headers(content_type, "latin-1")
    parser = MultiPartParser(headers, stream(), max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_BODY_BYTES)
    parser.spool_max_size = MAX_BODY_BYTES  # the body is in memory already: no file on disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequestError(f"The multipart body cannot be read: {error.message}") from None
    if body and not body.rstrip().endswith(b"--" + boundary + b"--"):
        await form.close()
        raise InvalidRequestError("The multipart body is cut off: its closing boundary is missing.")
    fields: dict[str, Any] = {}
    try:
        for raw_name, value in form.multi_items():
            name = _text(raw_name, "The name of a form field", None)
            shown = ascii(name[:60])[1:-1]
            if isinstance(value, str):
                _put(fields, name, _text(value, f"The field {shown}", shown))
            else:
                _put(fields, name, await value.read())
    finally:
        await form.close()
    return fields


def _text(raw: str, what: str, param: str | None) -> str:
    try:
        return raw.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{what} is not UTF-8: byte {error.start} is wrong.", param=param) from None


def _put(fields: dict[str, Any], name: str, value: str | bytes) -> None:
    shown = ascii(name[:60])[1:-1]
    match = _BRACKETS.fullmatch(name)
    if match is None:
        message = f"The form field {shown} has a name that cannot be read; send the object as JSON text."
        raise InvalidRequestError(message, param=shown.partition("[")[0] or None)
    root, key = match.group(1), match.group(2)
    if isinstance(value, bytes) and (root not in FILES or key is not None):
        raise InvalidRequestError(f"The field {shown} must be text, not a file.", param=shown)
    if key is None:
        if root in fields:
            raise _twice(root)
        fields[root] = value
        return
    if not key:
        items = fields.setdefault(root, [])
        if not isinstance(items, list):
            raise _twice(root)
        items.append(value)
        return
    inner = fields.setdefault(root, {})
    if not isinstance(inner, dict) or key in inner:
        raise _twice(name)
    inner[key] = value


def merge_extra_body(fields: dict[str, Any]) -> dict[str, Any]:
    """Merge `extra_body`, an object or its JSON text, as other servers of this format do."""
    extra = fields.pop("extra_body", None)
    if extra is None:
        return fields
    if isinstance(extra, str):
        extra = parse_json(extra, "extra_body")
    if not isinstance(extra, dict):
        raise InvalidRequestError("extra_body must be an object or the JSON text of one.", param="extra_body")
    for name, value in extra.items():
        if name in fields:
            raise _twice(name)
        fields[name] = value
    return fields
