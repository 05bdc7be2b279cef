"""Scratch folders that disappear with the work, or else at the next start.

Each piece of work holds a lock on its folder. The kernel drops the lock with the process, however it ends, so a folder
that can be locked belongs to nobody; process ids, which containers repeat, are not needed.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import structlog

from vitascope_common.errors import UnavailableError

log = structlog.stdlib.get_logger("vitascope.postproc")

PREFIX = "work-"


class Scratch:
    """Local working space below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> int:
        """Remove what killed processes left behind; return how many folders."""
        num_removed = 0
        for folder in self._root.glob(f"{PREFIX}*"):
            lock = _lock(folder)
            if lock is None:
                continue
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
            num_removed += 1
            log.info("scratch.swept", folder=folder.name)
        return num_removed

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield an empty folder of our own, gone at the end of the block. Raises UnavailableError: no space for it."""
        try:
            folder, lock = self._make()
        except OSError as error:
            raise UnavailableError(f"The scratch space {self._root} cannot be used: {error.strerror}.") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _make(self) -> tuple[Path, int]:
        while True:
            folder = self._root / f"{PREFIX}{secrets.token_hex(8)}"
            folder.mkdir(mode=0o700)
            lock = _lock(folder)
            if lock is not None and folder.exists():
                return folder, lock
            if lock is not None:  # a sweep came between mkdir and lock
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; None when another process holds it or it has gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
