"""Server-sent events, read line by line (WHATWG HTML, 9.2.6)."""

import json

from vitascope_client._errors import APIError
from vitascope_client._objects import Event


class EventParser:
    """Takes lines, gives events. One that is cut off is never given."""

    def __init__(self) -> None:
        self._id, self._name = "", "message"
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """Return the event that this line completes; most lines complete none.

        Raises:
            APIError: the data is not JSON.
        """
        if not line:
            event_id, name, data = self._id, self._name, self._data
            self._id, self._name, self._data = "", "message", []
            try:
                return Event(event_id, name, json.loads("\n".join(data))) if data else None
            except ValueError as error:
                raise APIError("The server sent an event that cannot be read.") from error
        field, _, value = line.partition(":")  # of a comment: the field without a name
        value = value.removeprefix(" ")
        if field == "id":
            self._id = value
        elif field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None
