"""The lines of a batch: what clients write, and what they get to read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vitascope_common.errors import InvalidRequestError
from vitascope_common.objectstore import ByteStream
from vitascope_gateway import objects
from vitascope_gateway.batches import ENDPOINT, SERVICE_CLASS, Batch, Line
from vitascope_gateway.body import MAX_BODY_BYTES, merge_extra_body, parse_json
from vitascope_gateway.request import show
from vitascope_gateway.service import JobRecord

MAX_LINES = 10_000
MAX_LINES_IN_ALL = 2 * MAX_LINES
"""With those that are blank."""
MAX_LINE_BYTES = MAX_BODY_BYTES
MAX_CUSTOM_ID_CHARS = 512
EXPIRED = {"code": "batch_expired", "message": "It could not be finished within the completion window of the batch."}
CANCELLED = {"code": "batch_cancelled", "message": "The batch was cancelled before this was finished."}

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Text:
    """A line of a file as it is written; numbers begin with 1."""

    number: int
    start_byte: int
    data: bytes


class LineError(InvalidRequestError):
    """A line that makes its whole file useless; `line` is its number."""

    def __init__(self, line: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.line = line
        self.code = code

    def shown(self) -> dict[str, Any]:
        """Return what the batch says of it."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


def split(chunks: ByteStream) -> Iterator[Text]:
    """Yield the lines of a file, without those that are blank. Raises: LineError: one too long, or one too many."""
    number, start_byte, rest = 1, 0, bytearray()
    for chunk in chunks:
        rest += chunk
        if b"\n" in chunk:
            *whole, rest = rest.split(b"\n")
            for data in whole:
                if number > MAX_LINES_IN_ALL:
                    raise too_many(number)
                yield from _text(number, start_byte, bytes(data))
                number, start_byte = number + 1, start_byte + len(data) + 1
        if len(rest) > MAX_LINE_BYTES:
            raise _too_long(number)
    yield from _text(number, start_byte, bytes(rest))


def _text(number: int, start_byte: int, data: bytes) -> Iterable[Text]:
    if len(data) > MAX_LINE_BYTES:
        raise _too_long(number)
    if number == 1 and data.startswith(_BOM):
        data, start_byte = data[len(_BOM) :], start_byte + len(_BOM)
    return [Text(number, start_byte, data)] if data.strip() else []


def too_many(number: int) -> LineError:
    """Return what is wrong with a file that goes on after its last line."""
    return LineError(number, "too_many_lines", f"The file holds more than {MAX_LINES} requests; send several.")


def _too_long(number: int) -> LineError:
    return LineError(number, "line_too_long", f"The line is too long; at most {MAX_LINE_BYTES} bytes are allowed.")


def parse(text: Text) -> tuple[Line, dict[str, Any]]:
    """Return a line and the fields of its request, which nobody has looked at yet. Raises: LineError."""
    try:
        said = parse_json(text.data, None, "The line")
    except InvalidRequestError as error:
        raise LineError(text.number, "invalid_json_line", error.message, error.param) from None
    custom_id, body = said.get("custom_id"), said.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS or not _is_clean(custom_id):
        message = f"custom_id must be a text of 1 to {MAX_CUSTOM_ID_CHARS} characters; got {show(custom_id)}."
        raise LineError(text.number, "invalid_custom_id", message, "custom_id")
    for name, allowed in (("method", "POST"), ("url", ENDPOINT)):
        if said.get(name) != allowed:
            message = f'{name} must be "{allowed}"; got {show(said.get(name))}.'
            raise LineError(text.number, f"invalid_{name}", message, name)
    if not isinstance(body, dict):
        raise LineError(text.number, "invalid_body", "body must be the JSON object of a request.", "body")
    unknown = next((name for name in said if name not in ("custom_id", "method", "url", "body")), None)
    if unknown is not None:
        shown = ascii(unknown[:60])[1:-1]
        raise LineError(text.number, "unknown_field", f"Unknown field {shown} beside body.", shown)
    return Line(text.number, custom_id, text.start_byte, len(text.data)), body


def _is_clean(text: str) -> bool:
    """Whether SQL can keep it: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def fields_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the request of a line. Raises: InvalidRequestError: it wants another service class."""
    fields = merge_extra_body(dict(body))
    if fields.get("service_class") not in (None, SERVICE_CLASS):
        message = f'The lines of a batch have the service class "{SERVICE_CLASS}"; leave service_class out.'
        raise InvalidRequestError(message, param="service_class")
    return fields


def refused(line: Line, status_code: int, error: Mapping[str, Any]) -> Line:
    """Return a line with the answer that its request gets."""
    return replace(line, status_code=status_code, error=error)


def answer(batch: Batch, line: Line, record: JobRecord | None) -> tuple[dict[str, Any], bool]:
    """Return what output or error file say of a line that is over, and whether it went well.

    A request that was refused has that answer. A video that failed is shown as it is, its error beside it; what no
    answer says, because the batch ended before or the video was deleted, is an error alone.
    """
    suffix = f"{batch.batch_id.removeprefix('batch_')}_{line.number}"
    video = None if record is None else objects.video(record, objects.Urls(batch.base_url)).model_dump()
    response: dict[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    if line.status_code is not None:
        response = {"status_code": line.status_code, "body": {"error": dict(line.error)}}
    elif line.error:
        error = dict(line.error)
    elif video is None:
        error = {"code": "not_found", "message": "The video was deleted."}
    else:
        response, error = {"status_code": 200, "body": video}, video["error"]
    if response is not None:
        response["request_id"] = f"req_{suffix}"
    is_done = line.status_code is None and error is None
    return {"id": f"batch_req_{suffix}", "custom_id": line.custom_id, "response": response, "error": error}, is_done


def code_of(shown: Mapping[str, Any]) -> str:
    """Return the code of the error in what `answer` says of a line that did not go well."""
    error = shown["error"] or shown["response"]["body"]["error"]
    return str(error["code"])
