"""A second worker beside the one that `up` runs, started from the same command line and environment."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.conftest import Stack, wait_for
from vitascope_cli.stack import read_ready_pid
from vitascope_common.process import dying_with_parent
from vitascope_common.testing import free_port


class Worker:
    """One more torchrun group of the stack's pool. It is not restarted when it dies."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        folder.mkdir(parents=True)
        launcher = Path(f"/proc/{_parent(stack.pid('gpu-worker'))}")
        command = [one for one in launcher.joinpath("cmdline").read_text().split("\0") if one]
        command = [f"--log-dir={folder / 'torchrun'}" if one.startswith("--log-dir=") else one for one in command]
        environ = dict(one.split("=", 1) for one in launcher.joinpath("environ").read_text().split("\0") if "=" in one)
        self._metrics_port = free_port()
        environ["VITASCOPE_GPU_WORKER_METRICS_PORT"] = str(self._metrics_port)
        environ["VITASCOPE_DATA_DIR"] = str(folder / "data")
        self._log = folder / "worker.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_parent(command), env=environ, stdout=log, stderr=log, start_new_session=True
            )
        self.pid: int = wait_for("the second worker", self._ready_pid)

    def _ready_pid(self) -> int | None:
        assert self._process.poll() is None, self.log
        with contextlib.suppress(httpx.TransportError):
            return read_ready_pid("gpu-worker", self.metrics)
        return None

    @property
    def metrics(self) -> str:
        """What it says on `/metrics`."""
        return httpx.get(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10).text

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Let it drain; kill what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(12)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def second_worker(stack: Stack, folder: Path) -> Iterator[Worker]:
    """Run one more worker during the block."""
    worker = Worker(stack, folder)
    try:
        yield worker
    finally:
        worker.close()


def holder_pid(stack: Stack, video_id: str) -> int:
    """Return the process that holds the generating task; a worker's id names it."""
    return int(str(stack.task(video_id, "generate")["worker_id"]).rsplit("-", 2)[1])


def num_steps(metrics: str) -> int:
    """Return how many denoising steps a worker has taken."""
    return int(sum(float(one) for one in re.findall(r"^vitascope_worker_steps_total{.*} (.*)$", metrics, re.MULTILINE)))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
