"""The folder in which an embedded stack keeps everything: database, objects, secrets, certificates, logs, its state.

DATA_DIR/            0700 when it is made here; a folder that was there keeps its mode, what is made inside is private
  lock               held by the `up` that runs here and by the processes it starts
  api_key            0600, the first API key; the database holds only its hash
  secrets.json       0600, signing key, Redis password and the name of this folder in the database, made once
  instance.json      thread count (fixed, so that resumed videos stay bit-identical) and the ports of last time
  stack.json         0600, while a stack runs: where it is, its key, its models folder, the pids
  models.json        which files of models were found right, so that lists need not read them again
  vitascope.db       SQLite
  objects/  redis/  certificates/  services/NAME/  logs/NAME.log
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from vitascope_common.database import Database, migrate
from vitascope_common.errors import ConfigurationError
from vitascope_common.files import atomic_writer
from vitascope_common.ids import now_ms
from vitascope_common.tables import api_keys, tenants
from vitascope_common.tokens import api_key_hash, new_api_key

FIRST_TENANT = "default"
FIRST_KEY_NAME = "vitascope up"
"""Followed by the folder that the key belongs to; a key that is called only so was made by the first Vitascope."""
FIRST_TENANT_CLASSES = "standard,realtime,batch"
FIRST_KEY_SCOPES = "admin"
MAX_DEFAULT_THREADS = 4
LOCK_PATIENCE_S = 3.0
"""The children of an `up` that was killed hold its lock a moment longer than it did itself."""


def default_data_dir() -> Path:
    """Return `$XDG_DATA_HOME/vitascope`, or `~/.local/share/vitascope`."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".local/share") / "vitascope"


class DataDir:
    """Names of what is inside, and the small files that `up` and the other commands share."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @property
    def api_key_file(self) -> Path:
        """The first API key."""
        return self.path / "api_key"

    @property
    def state_file(self) -> Path:
        """Where the running stack is."""
        return self.path / "stack.json"

    @property
    def model_checks(self) -> Path:
        """What is remembered of checks of models."""
        return self.path / "models.json"

    @property
    def certificates(self) -> Path:
        """Where postproc keeps the certificate chain that signs videos."""
        return self.path / "certificates"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.path / "logs"

    @property
    def redis(self) -> Path:
        """Redis' configuration and append-only file."""
        return self.path / "redis"

    @property
    def database_url(self) -> str:
        """The SQLite file, as SQLAlchemy names it."""
        return f"sqlite+aiosqlite:///{self.path / 'vitascope.db'}"

    @property
    def object_store_url(self) -> str:
        """The folder of objects, as `open_store` takes it."""
        return (self.path / "objects").as_uri()

    def service(self, name: str) -> Path:
        """Return a service's local scratch space."""
        return self.path / "services" / name

    def prepare(self) -> None:
        """Make the folders that are not there, readable by their owner alone. Repeatable.

        Raises:
            ConfigurationError: the folder cannot be made or written.
        """
        if any(character in str(self.path) for character in '?#%"\n\r'):
            raise ConfigurationError(f"The data folder {str(self.path)!r} may not contain ? # % quotes or line breaks.")
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.path / "objects", self.redis, self.certificates, self.path / "services", self.logs):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"The data folder {self.path} cannot be used: {error.strerror}.") from error

    @contextlib.contextmanager
    def locked(self, patience_s: float = LOCK_PATIENCE_S) -> Iterator[int]:
        """Hold the folder for this process, and for each child that inherits the descriptor.

        Raises:
            ConfigurationError: another stack runs here.
        """
        with (self.path / "lock").open("a") as file:
            deadline_s = time.monotonic() + patience_s
            while not _try_lock(file.fileno()):
                if time.monotonic() >= deadline_s:
                    raise ConfigurationError(
                        f"Another `vitascope up` is running on {self.path}. Use that one, stop it, or choose another "
                        "folder with --data-dir."
                    )
                time.sleep(0.05)
            yield file.fileno()

    def secret(self, name: str) -> str:
        """Return a random secret of this folder, made at the first call: 64 hex digits. Only under the lock.

        Raises:
            ConfigurationError: the file that holds it is damaged.
        """
        path = self.path / "secrets.json"
        values = _read_json(path)
        if name not in values:
            values[name] = secrets.token_hex(32)
            write_private(path, json.dumps(values))
        return str(values[name])

    def num_threads(self, asked: int | None = None, num_ranks: int = 1) -> int:
        """Return the thread count of each of the worker's ranks. Only under the lock.

        Recorded at first, when the ranks share what there is by default; changed only by `asked`.
        """
        values = self._instance()
        known = values.get("num_threads")
        num_threads = asked or (known if isinstance(known, int) and known > 0 else default_num_threads(num_ranks))
        if num_threads != known:
            self._write_instance({**values, "num_threads": num_threads})
        return num_threads

    def ports_before(self) -> dict[str, int]:
        """Return the ports of the last run; {} at first."""
        ports = self._instance().get("ports")
        return {name: port for name, port in ports.items() if isinstance(port, int)} if isinstance(ports, dict) else {}

    def keep_ports(self, ports: Mapping[str, int]) -> None:
        """Remember the ports for the next run. Only under the lock."""
        self._write_instance({**self._instance(), "ports": dict(ports)})

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Say where the running stack is."""
        write_private(self.state_file, json.dumps(state, indent=2))

    def read_state(self) -> dict[str, Any] | None:
        """Return what the stack that runs here said of itself; None when none does, or an unreadable file."""
        try:
            state = json.loads(self.state_file.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) and {"base_url", "api_key"} <= state.keys() else None

    def running_models_dir(self) -> Path | None:
        """Return the models folder of the stack that runs here; None when none does."""
        models_dir = (self.read_state() or {}).get("models_dir")
        return Path(models_dir) if isinstance(models_dir, str) else None

    def remove_state(self) -> None:
        """Say that no stack runs here (any more)."""
        self.state_file.unlink(missing_ok=True)

    def _instance(self) -> dict[str, Any]:
        return _read_json(self.path / "instance.json")

    def _write_instance(self, values: Mapping[str, Any]) -> None:
        write_private(self.path / "instance.json", json.dumps(values, indent=2))


def default_num_threads(num_ranks: int = 1) -> int:
    """Return how many threads each rank computes on: together all physical cores but one, at most 4; at least 1 each.

    One core is for the other processes. A thread that waits for another which has lost its core costs far more than a
    second thread gains: on two busy cores, two threads took thirty times as long per step as one.
    """
    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, (min(physical, allowed, MAX_DEFAULT_THREADS + 1) - 1) // num_ranks)


def migrate_database(database_url: str) -> None:
    """Bring the database to the newest schema. Not from inside an event loop.

    Raises:
        ConfigurationError: it is away, a newer Vitascope wrote it, or it is damaged.
    """
    try:
        migrate(database_url)
    except (CommandError, SQLAlchemyError, OSError) as error:
        where = sa.make_url(database_url).render_as_string(hide_password=True)
        raise ConfigurationError(
            f"The database {where} cannot be used: {(str(error).splitlines() or [type(error).__name__])[0]}. "
            "If a newer Vitascope wrote it, use that one; else choose another folder with --data-dir, or another "
            "database with VITASCOPE_DATABASE_URL."
        ) from error


def ensure_api_key(data_dir: DataDir, database_url: str) -> str:
    """Return the first API key; after it, the file and the database agree. Only under the lock, after the migration.

    The file decides: the key in it is entered if the database does not know it (a new database), and every other one
    made for this folder is revoked, so that deleting the file and starting again ends the old key. A key that was
    revoked is replaced. Keys of other folders, which may share a database, are left alone.

    When they are made, the tenant may use every class and the key may do what operators do; a key of the first
    Vitascope, which knew neither, gets both once. What an operator says afterwards holds.

    Not from inside an event loop.
    """
    return asyncio.run(_ensure_api_key(data_dir, database_url))


async def _ensure_api_key(data_dir: DataDir, database_url: str) -> str:
    database = Database(database_url)
    try:
        key = _read_key(data_dir.api_key_file)
        async with database.read() as connection:
            row = sa.select(api_keys.c.name, api_keys.c.revoked_at_ms).where(api_keys.c.key_sha256 == api_key_hash(key))
            known = (await connection.execute(row)).one_or_none()
        if not key or (known is not None and known.revoked_at_ms is not None):
            key, known = new_api_key(), None
        # The file first: a key that is only there is entered at the next start, one that is only in SQL would be lost.
        write_private(data_dir.api_key_file, key + "\n")
        key_sha256, now = api_key_hash(key), now_ms()
        name = f"{FIRST_KEY_NAME} {data_dir.secret('key_name')[:12]}"
        own_names = [name, FIRST_KEY_NAME] if database_url == data_dir.database_url else [name]
        async with database.transaction() as connection:
            tenant = sa.select(tenants.c.tenant_id).where(tenants.c.tenant_id == FIRST_TENANT)
            if await connection.scalar(tenant) is None:
                first = {"tenant_id": FIRST_TENANT, "name": FIRST_TENANT, "classes": FIRST_TENANT_CLASSES}
                await connection.execute(tenants.insert().values(**first, created_at_ms=now))
            others = api_keys.c.name.in_(own_names) & (api_keys.c.key_sha256 != key_sha256)
            await connection.execute(
                api_keys.update().where(others, api_keys.c.revoked_at_ms.is_(None)).values(revoked_at_ms=now)
            )
            terms = {"name": name, "scopes": FIRST_KEY_SCOPES}
            if known is None:
                await connection.execute(
                    api_keys.insert().values(key_sha256=key_sha256, tenant_id=FIRST_TENANT, created_at_ms=now, **terms)
                )
            elif known.name == FIRST_KEY_NAME:
                await connection.execute(api_keys.update().where(api_keys.c.key_sha256 == key_sha256).values(terms))
                as_migrated = (tenants.c.tenant_id == FIRST_TENANT) & (tenants.c.classes == "standard,batch")
                await connection.execute(tenants.update().where(as_migrated).values(classes=FIRST_TENANT_CLASSES))
        return key
    finally:
        await database.close()


def _read_key(file: Path) -> str:
    try:
        key = file.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read; delete it to have a new key made.") from error
    return key


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read; whole or not at all."""
    with atomic_writer(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text.encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} is damaged; delete it to have it made anew.")
    return values


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
