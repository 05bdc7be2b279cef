"""The files of a model, checked against its card, and what is remembered of such checks."""

import hashlib
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from vitascope_common.errors import CorruptObjectError, NotFoundError, UnavailableError, VitascopeError
from vitascope_common.files import atomic_write
from vitascope_common.registry_cards import Card, ModelFile

CHUNK_BYTES = 1 << 20

Advance = Callable[[int], None]
"""Is told how many more bytes are done."""
Look = list[Any]
"""How a file looked before it was read: its SHA-256 in the card, bytes, time of change in nanoseconds, inode."""


class FileState(StrEnum):
    """What is known of a model's files without reading them."""

    VERIFIED = "verified"  # every file was read and had the right SHA-256, and has not changed since
    UNCHECKED = "unchecked"  # every file is there in the right size
    DAMAGED = "damaged"  # a file is missing or has another size


def check_file(path: Path, file: ModelFile, advance: Advance | None = None) -> None:
    """Compare a file with the card: size first, then SHA-256.

    Raises:
        CorruptObjectError: it differs; names the file, what was expected and what was found.
        NotFoundError: it is missing.
    """
    check_size(path, file)
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
            if advance:
                advance(len(chunk))
    if digest.hexdigest() != file.sha256:
        raise corrupt(path, "sha256", file.sha256, digest.hexdigest())


def check_size(path: Path, file: ModelFile) -> None:
    """Compare a file's size with the card. Raises: CorruptObjectError; NotFoundError."""
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise NotFoundError(f"Model file {path} is missing.", detail={"path": file.path}) from error
    if num_bytes != file.num_bytes:
        raise corrupt(path, "num_bytes", file.num_bytes, num_bytes)


def corrupt(path: object, what: str, expected: object, found: object) -> CorruptObjectError:
    """Return the error for a file that is not what its card says."""
    return CorruptObjectError(
        f"Model file {path} is damaged: {what} is {found}, the card says {expected}.",
        detail={"path": str(path), "what": what, "expected": expected, "found": found},
    )


class CheckRecord:
    """Which files were found right, and how they looked then. In one JSON file; a damaged one is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def state(self, card: Card, folder: Path) -> tuple[FileState, str]:
        """Return what is known of a model's files, and the problem when one is damaged."""
        known, is_verified = self._load(), True
        for file in card.files.values():
            path = folder / file.path
            try:
                check_size(path, file)
            except (VitascopeError, OSError) as error:
                return FileState.DAMAGED, str(error)
            is_verified = is_verified and known.get(str(path.absolute())) == look(path, file)
        return FileState.VERIFIED if is_verified else FileState.UNCHECKED, ""

    def replace(self, card: Card, folder: Path, looks: Mapping[Path, Look]) -> None:
        """Remember the files of a model that were found right, by how they looked before; forget its other ones.

        One that was changed while it was read does not look like that any more, so it stays unchecked.
        """
        known = self._load()
        for file in card.files.values():
            path = folder / file.path
            known.pop(str(path.absolute()), None)
            if path in looks:
                known[str(path.absolute())] = looks[path]
        kept = {path: before for path, before in known.items() if Path(path).exists()}
        atomic_write(self._path, json.dumps(kept, indent=1).encode())

    def _load(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}


def verify(card: Card, folder: Path, advance: Advance | None = None) -> tuple[dict[Path, Look], list[VitascopeError]]:
    """Read every file of a model and compare it with the card.

    Returns how the right ones looked before they were read, and what is wrong with each other one.
    """
    looks: dict[Path, Look] = {}
    problems: list[VitascopeError] = []
    for file in card.files.values():
        path = folder / file.path
        try:
            check_size(path, file)
            before = look(path, file)
            check_file(path, file, advance)
        except VitascopeError as error:
            problems.append(error)
        except OSError as error:
            problems.append(UnavailableError(f"Model file {path} cannot be read: {error.strerror}."))
        else:
            looks[path] = before
    return looks, problems


def look(path: Path, file: ModelFile) -> Look:
    """Return how a file looks; the same again after it was read: nobody has changed it meanwhile. Raises: OSError."""
    status = path.stat()
    return [file.sha256, status.st_size, status.st_mtime_ns, status.st_ino]
