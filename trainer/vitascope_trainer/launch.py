"""Start several processes that train together, as torchrun does, see them through, and keep other runs out meanwhile.

Two one-thread processes use two contended cores better than one process with two threads, which stalls whenever either
core is taken away.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from vitascope_common.errors import ConflictError, UnavailableError
from vitascope_common.files import make_folder
from vitascope_common.process import dying_with_parent

LAUNCHED = "VITASCOPE_TRAIN_LAUNCHED"
"""In the environment of processes whose launcher holds the run's folder."""
_GRACE_S = 60.0
"""How long a process may take to stop after another has failed."""


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a run's folder while the block runs; the kernel lets go of it with the process.

    Raises:
        ConflictError: another process holds it.
        UnavailableError: the folder cannot be written to.
    """
    try:
        make_folder(folder)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be written to: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"Another run writes to {folder}: wait for its end, or use another folder.") from error
        yield


def launch(command: Sequence[str], num_processes: int, environment: Mapping[str, str]) -> int:
    """Run a command in several processes and return the first status that is not 0, or 0.

    Ctrl-C and SIGTERM are handed on to all; when one fails, the others are stopped, and all die with this process.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    shared[LAUNCHED] = "1"
    wrapped = dying_with_parent([sys.executable, "-m", "vitascope_trainer", *command])
    children = [
        subprocess.Popen(wrapped, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True)
        for rank in range(num_processes)
    ]

    handed_on: list[int] = []

    def hand_on(signum: int, _: FrameType | None) -> None:
        handed_on.append(signum)
        for child in children:
            child.send_signal(signum)

    before = {signum: signal.signal(signum, hand_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _first_failure(children, lambda: bool(handed_on))
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _first_failure(children: Sequence[subprocess.Popen[bytes]], is_stopping: Callable[[], bool]) -> int:
    """Wait for all; once one has failed, the others, who would wait for it, are ended."""
    failed = 0
    running = list(children)
    while running and not failed:
        for child in list(running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = child.wait(timeout=0.1)
                running.remove(child)
                failed = failed or status
    if not is_stopping():  # what was handed on already is not said twice: a second signal means at once
        for child in running:
            child.terminate()
    for child in running:
        try:
            child.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return failed if failed >= 0 else 128 - failed
