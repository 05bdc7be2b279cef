"""Ports for the services of one stack: chosen once, so that a restarted service comes back on its old address."""

import random
import socket
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing

FIRST_PORT = 20_000
LAST_PORT = 32_700
"""Below Linux' range for outgoing connections (32768 and up), which could otherwise take the port of a dead service."""


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def choose(
    names: Iterable[str], before: Mapping[str, int], host: str = "127.0.0.1", taken: Collection[int] = ()
) -> dict[str, int]:
    """Give every name a free port of its own, none of `taken`: the one it had `before` if that is still free.

    Raises:
        OSError: nothing is free.
    """
    chosen: dict[str, int] = {}
    for name in names:
        last = before.get(name, 0)
        used = {*chosen.values(), *taken}
        if last and last not in used and is_free(host, last):
            chosen[name] = last
            continue
        candidates = random.sample(range(FIRST_PORT, LAST_PORT), 500)
        used.update(before.values())
        found = next((port for port in candidates if port not in used and is_free(host, port)), None)
        if found is None:
            raise OSError(f"no free port between {FIRST_PORT} and {LAST_PORT} on {host}")
        chosen[name] = found
    return chosen


def is_wildcard(host: str) -> bool:
    """Tell whether a server on this host listens on every interface."""
    return host in ("0.0.0.0", "::", "")  # noqa: S104 — compared, not bound


def local_host(host: str) -> str:
    """Return the host under which this machine reaches a server that listens on `host`."""
    return "127.0.0.1" if is_wildcard(host) else host


def public_host(host: str) -> str:
    """Return the host under which clients reach a server that listens on `host`.

    For every interface: the address of the one that leads outside, or loopback when there is none. Nothing is sent.
    """
    if not is_wildcard(host):
        return host
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def url(host: str, port: int) -> str:
    """Return the base URL of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
