"""`vitascope demo` as a stranger runs it: one video in `out/`, and nothing of it stays, also after Ctrl-C."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import psutil
import pytest
from PIL import Image

from tests.conftest import SERVICES, wait_for
from vitascope_common.testing import is_alive

PATIENCE_S = 100.0
DEAD_PROXY = "http://127.0.0.1:9"
"""In the environment of many a stranger; the way to their own machine must not lead through it."""


class Demo:
    """A running `vitascope demo` in an empty folder, with a home and a place for temporary files of its own."""

    def __init__(self, folder: Path) -> None:
        self.cwd, self.home, self.temporary = (folder / name for name in ("work", "home", "tmp"))
        for path in (self.cwd, self.home, self.temporary):
            path.mkdir()
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        self._started: set[psutil.Process] = set()
        self._num_seen = 0
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("VITASCOPE_", "XDG_"))}
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vitascope_cli", "demo"],
                cwd=self.cwd,
                env={**environ, "HOME": str(self.home), "TMPDIR": str(self.temporary), "http_proxy": DEAD_PROXY},
                stdout=stdout,
                stderr=stderr,
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def said(self, text: str) -> bool:
        """Whether it has told us so; whenever it says something new, its processes are noted."""
        said = self.stderr
        if len(said) > self._num_seen:
            self._num_seen = len(said)
            self._started.update(psutil.Process(self.process.pid).children(recursive=True))
        assert self.process.poll() is None or text in said, said
        return text in said

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"vitascope demo did not end:\n{self.stderr[-4000:]}")

    def assert_nothing_is_left(self) -> None:
        # `up`, Redis, and the rank beside its torchrun.
        assert len(self._started) >= len(SERVICES) + 3
        assert [one for one in self._started if one.is_running() and is_alive(one.pid)] == []
        assert list(self.temporary.iterdir()) == []
        assert list(self.home.iterdir()) == []

    def close(self) -> None:
        """Kill it if it still runs; what it started dies with it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    one = Demo(tmp_path)
    yield one
    one.close()


def test_one_video_and_nothing_else_is_left(demo: Demo) -> None:
    wait_for("denoising", lambda: demo.said("denoising"), PATIENCE_S)
    wait_for("the last phase", lambda: demo.said("encoding and signing"), PATIENCE_S)
    assert demo.wait() == 0, demo.stderr
    demo.assert_nothing_is_left()

    (video,) = (demo.cwd / "out").glob("*.mp4")
    (thumbnail,) = (demo.cwd / "out").glob("*.webp")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 33
    with Image.open(thumbnail) as image:
        assert image.format == "WEBP"

    shown = {line.split()[0]: line for line in demo.stdout.splitlines() if line}
    assert str(video.relative_to(demo.cwd)) in shown["video"]
    assert str(thumbnail.relative_to(demo.cwd)) in shown["thumbnail"]
    assert all(f"{phase} " in shown["phases"] for phase in ("queue", "load", "denoise", "decode", "post-process"))
    assert "Trusted" in shown["C2PA"]


@pytest.mark.slow
def test_ctrl_c_in_the_middle_stops_everything(demo: Demo) -> None:
    wait_for("denoising", lambda: demo.said("denoising"), PATIENCE_S)
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 130, demo.stderr
    demo.assert_nothing_is_left()
    assert demo.stdout == ""
    assert list(demo.cwd.iterdir()) == []
