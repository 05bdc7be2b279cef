"""A file that is there only when it is whole."""

import uuid
from pathlib import Path
from types import TracebackType
from typing import Self


class WholeFile:
    """Written beside its place, and moved there when the block ends well; else nothing is left."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")  # two may write to one target
        self._file = self._part.open("xb")

    def write(self, chunk: bytes) -> None:
        """Add to it."""
        self._file.write(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if error is None:
                self._part.replace(self._target)
        finally:
            self._part.unlink(missing_ok=True)
