"""SQLite for tests."""

import functools
import tempfile
from pathlib import Path

from vitascope_common.database import migrate


def sqlite_database(path: Path) -> str:
    """Write a database that has every table and no rows to this new file; returns its URL."""
    path.write_bytes(_migrated())
    return _url(path)


@functools.cache
def _migrated() -> bytes:
    """Migrating once in a process is enough."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        migrate(_url(path))
        return path.read_bytes()


def _url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"
