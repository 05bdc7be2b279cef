"""Processes that never outlive their parent."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

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
