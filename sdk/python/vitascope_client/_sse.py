"""Server-sent events, read as they arrive (WHATWG HTML, 9.2.6)."""

import json
import re
from collections.abc import Iterator

from vitascope_client._errors import APIError
from vitascope_client._objects import Event

_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")  # nothing else; a CR that came last may have a LF behind it


class EventParser:
    """Takes bytes, gives events, and None for each comment. An event that is cut off is never given."""

    def __init__(self) -> None:
        self._rest = b""
        self._id, self._name = "", "message"
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event | None]:
        """Yield what these bytes complete.

        Raises:
            APIError: the data of an event is not JSON.
        """
        *lines, self._rest = _LINE_END.split(self._rest + chunk)
        for line in lines:
            if line.startswith(b":"):
                yield None
            elif line:
                self._take(line.decode(errors="replace"))
            elif event := self._finished():
                yield event

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            self._id = value
        elif field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)

    def _finished(self) -> Event | None:
        event_id, name, data = self._id, self._name, self._data
        self._id, self._name, self._data = "", "message", []
        try:
            return Event(event_id, name, json.loads("\n".join(data))) if data else None
        except ValueError as error:
            raise APIError("The server sent an event that cannot be read.") from error
