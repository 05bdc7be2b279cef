"""Bring a model from a folder or a bucket into the models folder.

    MODELS_DIR/.pull/ID/lock             flock of the one pull of this model; the kernel drops it with the process
    MODELS_DIR/.pull/ID/SHA256.part      a file on its way, named by its content: never continues another one
    MODELS_DIR/ID/…                      files, each placed when it is whole and right
    MODELS_DIR/ID/card.yaml              written last: before it, nobody sees the model

An id stands for one model (`Card.sha256`): what is there under the same id and is another one is never replaced.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr

from vitascope_common.errors import (
    ConfigurationError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ObjectNotFoundError,
    UnavailableError,
    VitascopeError,
)
from vitascope_common.files import atomic_write, make_folder, sync_folder
from vitascope_common.objectstore import ObjectStore, local_file, open_store
from vitascope_common.registry_cards import CARD_FILE, MAX_CARD_BYTES, AnyCard, ModelFile, load_card, parse_card
from vitascope_common.registry_files import CHUNK_BYTES, Look, check_file, check_size, corrupt, look

STAGING = ".pull"


class Source(Protocol):
    """Where models come from: one model's folder, or a folder of such folders. Keys are paths below it."""

    name: str
    """As people know it."""

    def ids(self) -> list[str]:
        """Name the folders with a card."""
        ...

    def num_bytes(self, key: str) -> int | None:
        """Return a file's size; None: it is not there. Raises: UnavailableError."""
        ...

    def read(self, key: str, start: int) -> Iterator[bytes]:
        """Yield a file's bytes from `start`, which lies before its end. Raises: UnavailableError."""
        ...


class Watcher(Protocol):
    """Is told how a pull goes."""

    def waits(self, model_id: str) -> None:
        """Another pull of this model is under way; this one goes on when it has ended."""
        ...

    def begins(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        """Begin `checking` what is here, or `pulling` what is not."""
        ...

    def moves(self, done_bytes: int) -> None:
        """So much of the phase is done; less than before when something has to be done again."""
        ...


@dataclass(frozen=True)
class Pulled:
    """A model that is here now."""

    card: AnyCard
    folder: Path
    num_bytes: int
    """How much of it was not here before; 0: nothing."""
    looks: Mapping[Path, Look]
    """How each file looked when it was found right."""


def open_source(
    where: str,
    object_store_url: str | None = None,
    access_key: SecretStr | None = None,
    secret_key: SecretStr | None = None,
) -> Source:
    """Open a folder or `s3://bucket/prefix`.

    A bucket without `?endpoint=…&region=…` of its own is looked for where `object_store_url` says, if that is S3 too.

    Raises:
        NotFoundError: there is no such folder.
        InvalidRequestError: it is neither.
        ConfigurationError: the store cannot be opened.
    """
    if where.startswith("s3://"):
        parts, usual = urlsplit(where), urlsplit(object_store_url or "")
        query = parts.query or (usual.query if usual.scheme == "s3" else "")
        url = parts._replace(query=query).geturl()
        return _Bucket(where.partition("?")[0], open_store(url, access_key, secret_key))
    if "://" in where:
        raise InvalidRequestError("A model is pulled from a folder or from s3://bucket/prefix.", param="source")
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {where}.", param="source")
    return _Folder(where, folder)


def pull(source: Source, model_id: str | None, models_dir: Path, watcher: Watcher) -> Pulled:
    """Bring a model here, unless it is. Idempotent; goes on where an earlier one was interrupted.

    `model_id` may be None where the source holds only one.

    Raises:
        NotFoundError: the source has no such model, or not all of its files.
        InvalidRequestError: the source has several models, and none was named.
        ConfigurationError: its card cannot be used.
        ConflictError: another model has this id here.
        CorruptObjectError: a file of the source is not what its card says.
        UnavailableError: no space here, or the source or the disk is away; what was brought is kept for the next time.
    """
    prefix, card, text = _find(source, model_id)
    folder = models_dir / card.id
    with local_file(folder), _locked(models_dir, card.id, watcher) as staging:
        has_card = _has_same_card(folder, card, text, source)
        missing, parts, looks = _examine(folder, staging, card, watcher)
        if missing:
            _check_source(source, prefix, missing)
            _check_space(models_dir, card, missing, parts)
        num_bytes = sum(file.num_bytes for file in missing)
        meter = _Meter(watcher)
        if missing:
            meter.begin("pulling", sum(part.num_bytes for part in parts.values()), num_bytes)
        for file in missing:
            part = parts.pop(file.sha256, None) or _Part(staging / f"{file.sha256}.part")
            _bring(source, prefix + str(PurePosixPath(file.path)), file, part, meter)
            looks[folder / file.path] = look(part.path, file)
            _place(part.path, folder / file.path)
        if not has_card:
            atomic_write(folder / CARD_FILE, text)
        for part_path in staging.glob("*.part"):  # of another version of the model
            part_path.unlink()
        return Pulled(card, folder, num_bytes, looks)


class _Folder:
    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._root = root

    def ids(self) -> list[str]:
        return sorted(path.parent.name for path in self._root.glob(f"*/{CARD_FILE}"))

    def num_bytes(self, key: str) -> int | None:
        path = self._root / key
        with _readable(path):
            return path.stat().st_size if path.is_file() else None

    def read(self, key: str, start: int) -> Iterator[bytes]:
        path = self._root / key
        with _readable(path):
            file = path.open("rb")
        with file:
            file.seek(start)
            while True:
                with _readable(path):
                    chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk


class _Bucket:
    def __init__(self, name: str, store: ObjectStore) -> None:
        self.name = name
        self._store = store

    def ids(self) -> list[str]:
        found = (info.key.split("/") for info in self._store.list())
        return sorted(parts[0] for parts in found if len(parts) == 2 and parts[1] == CARD_FILE)

    def num_bytes(self, key: str) -> int | None:
        try:
            return self._store.stat(key).num_bytes
        except ObjectNotFoundError:
            return None

    def read(self, key: str, start: int) -> Iterator[bytes]:
        stream = self._store.open_range(key, start)
        with contextlib.closing(stream):
            yield from stream


class _Part:
    """A file on its way: what of it is on disk, and the digest of that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self.digest: Any = hashlib.sha256()

    def resume(self, advance: Callable[[int], None]) -> None:
        """Take up what an earlier pull has left."""
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.digest.update(chunk)
                self.num_bytes += len(chunk)
                advance(len(chunk))

    def begin_anew(self) -> None:
        """Throw away what is there."""
        self.path.unlink()
        self.num_bytes, self.digest = 0, hashlib.sha256()


class _Meter:
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._done_bytes = 0

    def begin(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        self._done_bytes = done_bytes
        self._watcher.begins(phase, done_bytes, total_bytes)

    def advance(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        self._watcher.moves(self._done_bytes)


def _find(source: Source, model_id: str | None) -> tuple[str, AnyCard, bytes]:
    """Return the prefix of a model's keys, its card, and the card's text."""
    prefix = ""
    if source.num_bytes(CARD_FILE) is None:
        ids = source.ids()
        if not ids:
            raise NotFoundError(f"There is no model in {source.name}: no {CARD_FILE} there or one folder below.")
        if model_id is None and len(ids) > 1:
            raise InvalidRequestError(f"{source.name} has several models; name one of {', '.join(ids)}.", param="id")
        folder = ids[0] if model_id is None else model_id
        if folder not in ids:
            raise NotFoundError(f"{source.name} has no model {folder[:100]!r}; it has {', '.join(ids)}.", param="id")
        prefix = f"{folder}/"
    where = f"{source.name.rstrip('/')}/{prefix}{CARD_FILE}"
    num_bytes = source.num_bytes(prefix + CARD_FILE) or 0
    if num_bytes > MAX_CARD_BYTES:
        raise ConfigurationError(f"Model card {where}: has {num_bytes} bytes; {MAX_CARD_BYTES} are allowed.")
    text = b"".join(source.read(prefix + CARD_FILE, 0))
    card = parse_card(text, where)
    if prefix and card.id != prefix.removesuffix("/"):
        raise ConfigurationError(f"Model card {where}: id {card.id!r} differs from its folder's name.")
    if model_id is not None and card.id != model_id:
        raise NotFoundError(f"{source.name} is the model {card.id}, not {model_id[:100]!r}.", param="id")
    return prefix, card, text


@contextlib.contextmanager
def _locked(models_dir: Path, model_id: str, watcher: Watcher) -> Iterator[Path]:
    """Hold a model's staging folder for this process alone; the kernel lets go of it when the process dies."""
    staging = models_dir / STAGING / model_id
    lock = staging / "lock"
    while True:
        make_folder(staging)
        try:
            file = lock.open("ab")
        except FileNotFoundError:  # cleared by another between these two lines
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                watcher.waits(model_id)
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:
                is_current = False
            if is_current:  # else its holder has removed it when it was done
                try:
                    yield staging
                finally:
                    _leave(staging)
                return


def _leave(staging: Path) -> None:
    """Remove a staging folder that holds nothing for the next time, as the holder of its lock."""
    if not any(staging.glob("*.part")):
        (staging / "lock").unlink()
        for folder in (staging, staging.parent):
            with contextlib.suppress(OSError):  # another pull is there already
                folder.rmdir()


def _has_same_card(folder: Path, card: AnyCard, text: bytes, source: Source) -> bool:
    """Tell whether the card is here word for word. Raises: ConflictError: its id stands for another model here."""
    path = folder / CARD_FILE
    if not path.exists():
        return False
    try:
        here = load_card(path)
    except ConfigurationError:
        return False  # of no use: replaced
    if here.sha256 != card.sha256:
        raise ConflictError(
            f"Model {card.id} in {folder} has other weights or runs in another way ({here.sha256[:12]}) than in "
            f"{source.name} ({card.sha256[:12]}). An id stands for one model: give the new one another id, or delete "
            "that folder first."
        )
    return path.read_bytes() == text


def _examine(
    folder: Path, staging: Path, card: AnyCard, watcher: Watcher
) -> tuple[list[ModelFile], dict[str, _Part], dict[Path, Look]]:
    """Return the files that have to be brought, what earlier pulls have left of them, and how the right ones look.

    The parts are named by SHA-256.
    """
    present, missing = [], []
    for file in card.files.values():
        try:
            check_size(folder / file.path, file)
            present.append(file)
        except VitascopeError:
            missing.append(file)
    parts = {file.sha256: staging / f"{file.sha256}.part" for file in card.files.values()}
    sizes = {sha256: path.stat().st_size for sha256, path in parts.items() if path.exists()}
    meter = _Meter(watcher)
    if present or sizes:
        meter.begin("checking", 0, sum(file.num_bytes for file in present) + sum(sizes.values()))
    looks = {}
    for file in present:
        path = folder / file.path
        before = look(path, file)
        try:
            check_file(path, file, meter.advance)
            looks[path] = before
        except VitascopeError:
            missing.append(file)
    resumed = {}
    for file in missing:
        if 0 < sizes.get(file.sha256, 0) <= file.num_bytes and file.sha256 not in resumed:
            resumed[file.sha256] = _Part(parts[file.sha256])
            resumed[file.sha256].resume(meter.advance)
        elif file.sha256 not in resumed:
            parts[file.sha256].unlink(missing_ok=True)
    return missing, resumed, looks


def _check_source(source: Source, prefix: str, files: list[ModelFile]) -> None:
    """Look at the source before the first byte is brought. Raises: NotFoundError; CorruptObjectError."""
    for file in files:
        num_bytes = source.num_bytes(prefix + str(PurePosixPath(file.path)))
        where = f"{source.name.rstrip('/')}/{prefix}{file.path}"
        if num_bytes is None:
            raise NotFoundError(f"Model file {where} is missing.", detail={"path": file.path})
        if num_bytes != file.num_bytes:
            raise corrupt(where, "num_bytes", file.num_bytes, num_bytes)


def _check_space(models_dir: Path, card: AnyCard, files: list[ModelFile], parts: dict[str, _Part]) -> None:
    needed_bytes = sum(file.num_bytes for file in files) - sum(part.num_bytes for part in parts.values())
    free_bytes = shutil.disk_usage(models_dir).free
    if needed_bytes > free_bytes:
        raise UnavailableError(
            f"Model {card.id} needs {_readable_bytes(needed_bytes)} in {models_dir}, which has "
            f"{_readable_bytes(free_bytes)} free.",
            detail={"needed_bytes": needed_bytes, "free_bytes": free_bytes},
        )


def _bring(source: Source, key: str, file: ModelFile, part: _Part, meter: _Meter) -> None:
    """Complete a part. Raises: CorruptObjectError: the source's file is wrong; UnavailableError: the part is kept."""
    was_resumed = part.num_bytes > 0
    with part.path.open("ab") as out:
        while part.num_bytes < file.num_bytes:
            before = part.num_bytes
            try:
                for chunk in source.read(key, part.num_bytes):
                    fitting = chunk[: file.num_bytes - part.num_bytes]
                    out.write(fitting)
                    part.digest.update(fitting)
                    part.num_bytes += len(fitting)
                    meter.advance(len(fitting))
                    if part.num_bytes == file.num_bytes:
                        break
            except UnavailableError:
                if part.num_bytes == before:
                    raise
                continue  # a connection that broke off: go on from here
            if part.num_bytes == before:
                break  # the file has become shorter
        out.flush()
        os.fsync(out.fileno())
    found = part.digest.hexdigest()
    if found == file.sha256:
        return
    meter.advance(-part.num_bytes)
    part.begin_anew()
    if not was_resumed:
        raise corrupt(f"{source.name.rstrip('/')}/{key}", "sha256", file.sha256, found)
    _bring(source, key, file, part, meter)


def _place(part: Path, path: Path) -> None:
    make_folder(path.parent)
    os.replace(part, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"Cannot read {path}: {error.strerror}.") from error


def _readable_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
