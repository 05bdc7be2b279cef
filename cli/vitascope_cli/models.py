"""`vitascope models`: what is in the models folder, whether it is what the cards say, and bringing more of it."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from vitascope_cli.data_dir import DataDir
from vitascope_common.errors import ConfigurationError, NotFoundError, VitascopeError
from vitascope_common.registry import AnyCard, ModelCard, Registry
from vitascope_common.registry_files import CheckRecord, FileState, Look, verify
from vitascope_common.registry_pull import Source, open_source, pull

BROKEN = "broken"
"""State of a model whose card cannot be used; the others are FileState's."""
STYLES: Mapping[str, str] = {FileState.VERIFIED: "green", FileState.DAMAGED: "red", BROKEN: "red"}


@dataclass(frozen=True)
class Row:
    """One model of the folder, as it is listed."""

    id: str
    kind: str
    title: str
    capabilities: Sequence[str]
    """What it can make; of a classifier, what it can tell."""
    sizes: Sequence[str]
    seconds: Sequence[str]
    num_bytes: int
    state: str
    problem: str = ""


class Folder:
    """The models folder, and what this data folder remembers of checking it."""

    def __init__(self, models_dir: Path, data_dir: DataDir) -> None:
        self._models_dir = models_dir
        self._registry = Registry(models_dir)
        self._data_dir = data_dir
        self._record = CheckRecord(data_dir.model_checks)

    def rows(self) -> list[Row]:
        """Describe every model, by id; no file is read."""
        return [self._row(name, card) for name, card in self._registry.entries().items()]

    def verify(self, model_id: str | None, console: Console) -> list[VitascopeError]:
        """Read every file of one model or of all; return what is wrong.

        Raises:
            NotFoundError: there is no such model, or none at all.
        """
        entries = self._registry.entries()
        chosen = [card for name, card in entries.items() if model_id in (None, name)]
        if not chosen:
            what = "are no models" if model_id is None else f"is no model {model_id!r}"
            available = ", ".join(entries) or "none"
            raise NotFoundError(f"There {what} in {self._models_dir}; available: {available}.", param="model")
        problems: list[VitascopeError] = []
        with _display(console) as shown:
            for card in chosen:
                if isinstance(card, ConfigurationError):
                    problems.append(card)
                    continue
                folder = self._models_dir / card.id
                shown.begins(f"checking {card.id}", 0, card.num_bytes)
                looks, wrong = verify(card, folder, shown.advances)
                self._remember(card, folder, looks)
                problems += wrong
                if not wrong:
                    text = f"{card.id}: {_files(card)}, every sha256 is right"
                    console.print(text, markup=False, highlight=False, soft_wrap=True)
        return problems

    def pull(self, source: Source, model_id: str | None, console: Console) -> str:
        """Bring a model here; return its id. Raises: as registry_pull.pull."""
        with _display(console) as shown:
            pulled = pull(source, model_id, self._models_dir, shown)
        self._remember(pulled.card, pulled.folder, pulled.looks)
        text = f"{pulled.card.id} is in {pulled.folder}: {_files(pulled.card)}, "
        text += f"{size(pulled.num_bytes)} of it new" if pulled.num_bytes else "nothing to do"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return pulled.card.id

    def _row(self, name: str, card: AnyCard | ConfigurationError) -> Row:
        if isinstance(card, ConfigurationError):
            return Row(name, "", "", (), (), (), 0, BROKEN, card.message)
        state, problem = self._record.state(card, self._models_dir / card.id)
        if isinstance(card, ModelCard):
            can, sizes, seconds = tuple(one.value for one in card.capabilities), card.sizes, card.seconds
        else:
            can, sizes, seconds = tuple(card.classes), (card.preprocessing.size,), ()
        return Row(card.id, card.kind, card.title, can, sizes, seconds, card.num_bytes, state.value, problem)

    def _remember(self, card: AnyCard, folder: Path, looks: Mapping[Path, Look]) -> None:
        with contextlib.suppress(OSError):  # nowhere to remember it: the next list says `unchecked`
            self._data_dir.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._record.replace(card, folder, looks)


def table(rows: Sequence[Row]) -> Table:
    """Return what people read."""
    shown = Table("model", "kind", "capabilities", "sizes", "seconds", "on disk", "state", box=None, pad_edge=False)
    for column in (shown.columns[0], shown.columns[5]):
        column.no_wrap = True
    for row in rows:
        words = (", ".join(values) for values in (row.capabilities, row.sizes, row.seconds))
        state = Text(f"{row.state}: {row.problem}" if row.problem else row.state, style=STYLES.get(row.state, ""))
        shown.add_row(Text(row.id), row.kind, *map(Text, words), size(row.num_bytes) if row.kind else "", state)
    return shown


def as_json(rows: Sequence[Row]) -> str:
    """Return one line for programs."""
    return json.dumps([asdict(row) for row in rows])


def source_of(where: str, environment: Mapping[str, str]) -> Source:
    """Open what a model is pulled from, with the store and the credentials that the environment names."""
    access_key, secret_key = (
        SecretStr(value) if (value := environment.get(f"VITASCOPE_S3_{name}_KEY")) else None
        for name in ("ACCESS", "SECRET")
    )
    try:
        return open_source(where, environment.get("VITASCOPE_OBJECT_STORE_URL"), access_key, secret_key)
    except ConfigurationError as error:
        param = "source" if error.param == "object_store_url" else error.param
        raise ConfigurationError(error.message, param=param) from error


def size(num_bytes: int) -> str:
    """Return a number of bytes for people: `1.3 kB`, `22.4 MB`, `28.1 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


def _files(card: AnyCard) -> str:
    num = len(card.files)
    return f"{num} file{'' if num == 1 else 's'}, {size(card.num_bytes)}"


class _Display:
    """Shows bytes on their way; implements registry_pull.Watcher."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done_bytes = 0

    def waits(self, model_id: str) -> None:
        text = f"Another pull of {model_id} is under way; this one goes on when it has ended."
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begins(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        self._done_bytes = done_bytes

    def moves(self, done_bytes: int) -> None:
        self._done_bytes = done_bytes

    def advances(self, num_bytes: int) -> None:
        self.moves(self._done_bytes + num_bytes)


class _Lines(_Display):
    """For logs and pipes: a line when a phase begins, and one per quarter."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._phase, self._total_bytes, self._quarter = "", 0, 0

    def begins(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        super().begins(phase, done_bytes, total_bytes)
        self._phase, self._total_bytes = phase, total_bytes
        self._quarter = self._quarters(done_bytes)
        self._say(done_bytes)

    def moves(self, done_bytes: int) -> None:
        super().moves(done_bytes)
        if self._quarters(done_bytes) != self._quarter:
            self._quarter = self._quarters(done_bytes)
            self._say(done_bytes)

    def _quarters(self, done_bytes: int) -> int:
        return 4 * done_bytes // max(1, self._total_bytes)

    def _say(self, done_bytes: int) -> None:
        self._console.print(f"  {self._phase}: {size(done_bytes)} of {size(self._total_bytes)}", highlight=False)


class _Bar(_Display):
    """For terminals: a bar with speed and remaining time for each phase."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress.console)
        self._progress = progress
        self._task = progress.add_task("", total=None, visible=False)

    def begins(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        super().begins(phase, done_bytes, total_bytes)
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(phase, total=total_bytes, completed=done_bytes)

    def moves(self, done_bytes: int) -> None:
        super().moves(done_bytes)
        self._progress.update(self._task, completed=done_bytes)


@contextlib.contextmanager
def _display(console: Console) -> Iterator[_Display]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn(32), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        yield _Bar(progress)
