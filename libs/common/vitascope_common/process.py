"""Processes that never outlive their parent."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Ask the kernel to send `signum` to this process when its parent dies, even by kill -9. Linux only; else nothing.

    Fit for `preexec_fn`, and for a process that was started by something that is not ours (torchrun).
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:  # it died between the two lines
        os.kill(os.getpid(), signum)


def is_adopted(*launchers: str) -> bool:
    """Tell whether the present parent is none of these programs or modules: the real one died before we could look.

    For a process whose launcher does not pass its own process id on. The parent's id alone says nothing: in a container
    the launcher itself may be process 1, and elsewhere orphans go to a sub-reaper. Call it after `die_with_parent`, so
    that no moment lies between the two. Where the parent's command line cannot be read, the answer is no.
    """
    try:
        arguments = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return not any(os.path.basename(os.fsdecode(one)) in launchers for one in arguments)


_EXEC = """
import ctypes, os, signal, sys
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """Wrap a command (absolute path first) so that it dies with the thread that starts it; its process id is its own.

    For programs that many-threaded processes start: unlike a `preexec_fn` it needs no fork of the whole process, which
    libraries with threads of their own (gRPC) do not survive well. Costs about 15 ms.
    """
    return [sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), *command]
