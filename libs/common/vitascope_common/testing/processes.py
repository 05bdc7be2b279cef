"""Ports and processes."""

import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path


def free_port() -> int:
    """Return a port of loopback that is free at this moment."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not. Linux."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(what: str, is_so: Callable[[], bool], timeout_s: float) -> None:
    """Return once `is_so`. Raises RuntimeError with `what` when it is not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.02)
