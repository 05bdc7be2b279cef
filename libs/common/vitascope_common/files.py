"""Files that are either there in full or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMP_PREFIX = ".tmp-"
"""How unfinished files begin; whoever lists a folder passes over them."""


@contextlib.contextmanager
def atomic_writer(
    path: Path, *, temp_folder: Path | None = None, exclusive: bool = False, durable: bool = True
) -> Iterator[BinaryIO]:
    """Write a file that appears under its name complete and durable when the block ends, or not at all.

    temp + fsync + rename + fsync of the folder; missing folders are made. The temporary file lies in `temp_folder`
    (same file system) or beside the target. With `exclusive`, an existing file stays and FileExistsError is raised.
    Without `durable` nothing is fsynced: still never half a file while the machine stays up.
    """
    temp = (temp_folder or path.parent) / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
    make_folder(temp.parent)
    try:
        with temp.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        _place(temp, path, exclusive)
        if durable:
            with contextlib.suppress(FileNotFoundError):  # removed again by another, with its folder
                sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temp.unlink()
        raise


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file's content so that a crash leaves the old bytes or the new, never a mixture."""
    with atomic_writer(path) as file:
        file.write(data)


def _place(temp: Path, path: Path, exclusive: bool) -> None:
    while True:
        try:
            make_folder(path.parent)
            if exclusive:
                os.link(temp, path)
                temp.unlink()
            else:
                os.replace(temp, path)
            return
        except FileNotFoundError:  # another has just removed the empty folder: make it again
            if not temp.exists():
                raise


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable in the one above it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    with contextlib.suppress(FileNotFoundError):
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
