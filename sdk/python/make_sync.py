"""Make vitascope_client/_sync from vitascope_client/_async: `make sdk`. tests/test_generated.py compares."""

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).parent / "vitascope_client"
SOURCE, TARGET = PACKAGE / "_async", PACKAGE / "_sync"
NAMES = {
    "_async": "_sync",
    "AsyncAdmin": "Admin",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "AsyncEventStream": "EventStream",
    "AsyncHttp": "Http",
    "AsyncVideos": "Videos",
    "AsyncVitascope": "Vitascope",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "anext": "next",
    "aread": "read",
    "async_run": "run",
    "async_sleep": "sleep",
}
"""What unasync does not know by itself."""


def generated() -> dict[str, str]:
    """Return file names and what belongs into them."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "_async", Path(folder) / "_sync"
        source.mkdir()
        for path in SOURCE.glob("*.py"):
            (source / path.name).write_bytes(path.read_bytes())
        rule = unasync.Rule("/_async/", "/_sync/", NAMES)
        unasync.unasync_files([str(path) for path in source.glob("*.py")], [rule])
        return {path.name: _finished(path) for path in sorted(made.glob("*.py"))}


def _finished(path: Path) -> str:
    header = f"# Made from ../_async/{path.name} by `make sdk`. Edit that one.\n\n"
    text = header + path.read_text(encoding="utf-8")
    ours = 'lint.isort.known-first-party=["vitascope_client"]'  # files that are not there yet as well
    for command in (["check", "--fix-only", "--config", ours], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", str(TARGET / path.name), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for old in TARGET.glob("*.py"):
        old.unlink()
    for filename, text in generated().items():
        (TARGET / filename).write_text(text, encoding="utf-8")
