"""A job's stream as server-sent events (WHATWG HTML, 9.2)."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import lru_cache

from vitascope_gateway.told import Pause, Told

RETRY_MS = 1000
MAX_WRITE_BYTES = 16 * 1024
"""From here on more is not put together: a client that does not read must not have a whole history in our memory."""
NUM_KEPT = 256
"""How many of the events that were encoded last are kept: all followers of a job want the same ones at about a time."""


async def frames(batches: AsyncGenerator[Sequence[Told | Pause]]) -> AsyncGenerator[bytes]:
    """Yield the bytes of a stream, as much at once as there is."""
    yield b"retry: %d\n\n" % RETRY_MS
    async with aclosing(batches):
        async for batch in batches:
            waiting = b""
            for item in batch:
                waiting += frame(item)
                if len(waiting) >= MAX_WRITE_BYTES:
                    yield waiting
                    waiting = b""
            if waiting:
                yield waiting


@lru_cache(NUM_KEPT)
def frame(item: Told | Pause) -> bytes:
    """Return one event, or a comment."""
    if isinstance(item, Pause):
        return b": %s\n\n" % item.value.encode()
    id_line = f"id: {item.id}\n" if item.id else ""
    return f"{id_line}event: {item.type.value}\ndata: {item.json}\n\n".encode()
