"""The models of an installation, and the verified files that their cards name.

A model is a folder `MODELS_DIR/ID/` with `card.yaml` and the files that the card lists by size and SHA-256. The card
says everything that other services need to know about a model; only gpu-worker and prompt ever open its files.

The folder is looked at on every call, so a model may be added, changed or removed while services run. A card that
cannot be used does not take the others down: lists pass over it with one line in the log, and whoever asks for exactly
that model is told what is wrong.
"""

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import structlog

from vitascope_common.errors import ConfigurationError, NotFoundError
from vitascope_common.registry_cards import (
    CARD_FILE,
    AnyCard,
    Capability,
    Card,
    ClassifierCard,
    ModelCard,
    ModelFile,
    load_card,
    parse_card,
    read_card,
)
from vitascope_common.registry_files import check_file

__all__ = ["AnyCard", "Capability", "Card", "ClassifierCard", "ModelCard", "Registry", "load_card"]

_log = structlog.stdlib.get_logger("vitascope.registry")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_Stamp = tuple[int, int, int]
_Kind = TypeVar("_Kind", bound=Card)


class Registry:
    """The models below one folder. Safe to share between threads; cards are read again when their files change."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        """By model: verifying one takes minutes, in which the others are to be had."""
        self._cards: dict[str, tuple[_Stamp, AnyCard | ConfigurationError]] = {}
        self._logged: Mapping[str, str] = {}
        self._verified: set[tuple[Path, int, int, str]] = set()

    def cards(self) -> tuple[ModelCard, ...]:
        """Return every card of a model that makes clips, by id; passes over those that cannot be used.

        Raises:
            OSError: the storage does not answer.
        """
        return self._usable(ModelCard)

    def classifiers(self) -> tuple[ClassifierCard, ...]:
        """Return every card of a classifier, by id; passes over those that cannot be used. Raises: OSError."""
        return self._usable(ClassifierCard)

    def entries(self) -> Mapping[str, AnyCard | ConfigurationError]:
        """Return every card, or what is wrong with it, by its folder's name; logs nothing. Raises: OSError."""
        try:
            names = sorted(name for name in os.listdir(self._models_dir) if not name.startswith("."))
        except FileNotFoundError:
            names = []
        with self._lock:
            found = {name: self._read(f"{self._models_dir}/{name}/{CARD_FILE}") for name in names}
        return {name: card for name, card in found.items() if card is not None}

    def card(self, model_id: str) -> ModelCard:
        """Return the card of a model that makes clips.

        Raises:
            NotFoundError: there is none; names those there are.
            ConfigurationError: it cannot be used; says why.
            OSError: the storage does not answer.
        """
        return self._one(model_id, ModelCard, "model")

    def classifier(self, model_id: str) -> ClassifierCard:
        """Return a classifier's card. Raises: as `card`."""
        return self._one(model_id, ClassifierCard, "classifier")

    def fetch(self, card: Card) -> Path:
        """Return the folder that holds the card's files, each verified; the hash of an unchanged file is taken once.

        Raises:
            CorruptObjectError: a file differs from the card; names the file, what was expected and what was found.
            NotFoundError: a file is missing.
            OSError: the storage does not answer.
        """
        folder = self._models_dir / card.id
        with self._lock:
            fetching = self._fetching.setdefault(card.id, threading.Lock())
        with fetching:
            for file in card.files.values():
                self._verify(folder / file.path, file)
        return folder

    def _one(self, model_id: str, kind: type[_Kind], what: str) -> _Kind:
        found = None
        if _ID.fullmatch(model_id):
            with self._lock:
                found = self._read(f"{self._models_dir}/{model_id}/{CARD_FILE}")
        if isinstance(found, ConfigurationError):
            raise ConfigurationError(found.message)  # a new one: the one that is kept would gather tracebacks
        if not isinstance(found, kind):
            available = [card.id for card in self._usable(kind)]
            raise NotFoundError(
                f"There is no {what} {model_id[:100]!r}; available: {', '.join(available) or 'none'}.",
                param="model",
                detail={"available": available},
            )
        return found

    def _usable(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        entries = self.entries()
        problems = {name: card.message for name, card in entries.items() if isinstance(card, ConfigurationError)}
        for name, problem in problems.items():
            if self._logged.get(name) != problem:
                _log.error("model.unusable", model=name, problem=problem)
        self._logged = problems
        return tuple(card for card in entries.values() if isinstance(card, kind))

    def _read(self, path: str) -> AnyCard | ConfigurationError | None:
        """Return a card, or what is wrong with it; None: it is not there."""
        try:
            status = os.stat(path)
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            known = self._cards.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            card: AnyCard | ConfigurationError = _parse(Path(path))
        except (FileNotFoundError, NotADirectoryError):
            self._cards.pop(path, None)
            return None
        self._cards[path] = (stamp, card)
        return card

    def _verify(self, path: Path, file: ModelFile) -> None:
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise NotFoundError(f"Model file {path} is missing.", detail={"path": file.path}) from error
        stamp = (path, status.st_mtime_ns, status.st_size, file.sha256)
        if stamp not in self._verified:
            check_file(path, file)
            self._verified.add(stamp)


def _parse(path: Path) -> AnyCard | ConfigurationError:
    """Read a card. Raises: OSError: the storage does not answer, or the card has gone."""
    try:
        card = parse_card(read_card(path), str(path))
    except (PermissionError, IsADirectoryError) as error:
        return ConfigurationError(f"Model card {path}: {error.strerror}.")
    except ConfigurationError as error:
        return error
    if card.id != path.parent.name:
        return ConfigurationError(f"Model card {path}: id {card.id!r} differs from its folder's name.")
    return card
