"""Log files of supervised processes: one per process, bounded, with the run before kept beside it."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

MAX_LOG_BYTES = 8 * 1024 * 1024
_TAIL_BYTES = 64 * 1024


def older(path: Path) -> Path:
    """Return where the log before this one is kept: `NAME.log.1`."""
    return path.with_name(f"{path.name}.1")


def begin(path: Path) -> None:
    """Start an empty log; what was there moves to `older(path)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size:
        os.replace(path, older(path))
    path.touch()


def open_for_append(path: Path) -> BinaryIO:
    """Open for a child process; every write goes to the end, also after `trim` cut the file."""
    return path.open("ab", buffering=0)


def trim(path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Move a log that grew too long to `older(path)` while its writer goes on; lines of that moment may be lost."""
    if path.stat().st_size > max_bytes:
        shutil.copyfile(path, older(path))
        os.truncate(path, 0)


def tail(path: Path, num_lines: int = 20) -> list[str]:
    """Return the last lines, [] when there is nothing to read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-num_lines:]
    except OSError:
        return []
