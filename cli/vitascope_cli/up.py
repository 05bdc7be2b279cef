"""`vitascope up`: prepare a data folder, run the embedded stack on it, stop it in order."""

import asyncio
import contextlib
import errno
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from vitascope_cli.data_dir import DataDir, ensure_api_key, migrate_database
from vitascope_cli.stack import (
    REDIS,
    STOP_BY_S,
    Stack,
    current_environment,
    given_servers,
    ignored_variables,
    open_stack,
    read_num_ranks,
)
from vitascope_cli.supervisor import StartError, Supervisor
from vitascope_common.errors import ConfigurationError
from vitascope_common.settings import PROCESSES

NUM_THREADS_VARIABLE = "VITASCOPE_GPU_WORKER_NUM_THREADS"
MAX_STARTS = 3
"""Between the choice of a port and the service that listens on it, another program may take it."""
EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def up(data_dir: DataDir, host: str, port: int, models_dir: Path) -> int:
    """Run the stack until SIGTERM or SIGINT; return the exit status.

    Raises:
        ConfigurationError: it cannot be started with these arguments on this folder.
    """
    environ = current_environment()
    for name in ignored_variables(environ):
        say(f"{name} is ignored: the embedded stack brings its own")
    os.umask(0o077)  # for the children too: what they write is the owner's alone
    data_dir.prepare()
    with data_dir.locked() as lock:
        data_dir.remove_state()
        num_threads, num_ranks = _num_threads(environ), read_num_ranks(environ)

        def choose() -> Stack:
            return open_stack(data_dir, host, port, models_dir, num_threads, given_servers(environ), num_ranks)

        stack = choose()
        migrate_database(stack.database_url)
        api_key = ensure_api_key(data_dir, stack.database_url)
        for num_left in reversed(range(MAX_STARTS)):
            try:
                status = asyncio.run(_run(stack, api_key, environ, lock))
                break
            except StartError as error:
                taken = stack.taken_ports() if num_left else []
                if not taken:
                    return _give_up(error)
                say(f"another program took port {taken[0]} meanwhile; starting again on other ports")
                stack = choose()
    gc.freeze()  # the process ends here: what is left is not collected once more, in the time that a stop has
    return status


def say(line: str) -> None:
    """Tell the person at the terminal, if that is still there; stdout is for the one line of JSON."""
    try:
        sys.stderr.write(f"vitascope: {line}\n")
        sys.stderr.flush()
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            # What is left in the buffer would fail again when the process ends, and make a failure of a good end.
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stderr.fileno())


def _num_threads(environ: Mapping[str, str]) -> int | None:
    """Return the thread count of each rank that was asked for, None to take the one on record."""
    text = environ.get(NUM_THREADS_VARIABLE, "")
    if text and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigurationError(f"{NUM_THREADS_VARIABLE} must be a number of threads, 1 or more; it is {text!r}.")
    return int(text) if text else None


def _give_up(error: StartError) -> int:
    for line in error.log_tail:
        sys.stderr.write(f"  | {line}\n")
    say(f"error [{error.code}]: {error.message}")
    return EXIT_FAILED


async def _run(stack: Stack, api_key: str, environ: Mapping[str, str], lock: int) -> int:
    """Run until a signal; return the exit status. Raises: StartError: it did not come up; nothing runs any more."""
    is_up = False

    def describe(pids: Mapping[str, int]) -> dict[str, object]:
        return {
            "base_url": stack.base_url,
            "grpc": stack.grpc_address,
            "api_key": api_key,
            "data_dir": str(stack.data_dir.path),
            "pids": {service: pids[service] for service in PROCESSES},
        }

    def write_state(pids: Mapping[str, int]) -> None:
        if is_up:
            more = {"redis_pid": pids.get(REDIS), "redis_url": stack.redis_url, "pid": os.getpid()}
            more["models_dir"] = str(stack.models_dir.absolute())
            try:
                stack.data_dir.write_state({**describe(pids), **more})
            except OSError as error:
                say(f"{stack.data_dir.state_file} cannot be written: {error.strerror}")

    supervisor = Supervisor(
        stack.specs(environ),
        stack.data_dir.logs,
        say=say,
        on_change=write_state,
        stop_by_s=STOP_BY_S,
        inherited_fds=(lock,),
    )
    asked_to_stop = asyncio.Event()
    was_killed = _on_signals(asked_to_stop, supervisor)
    trimming = asyncio.create_task(supervisor.watch_logs())
    try:
        if await _start(supervisor, asked_to_stop):
            is_up = True
            write_state(supervisor.pids)
            say(f"up: {stack.base_url}, gRPC on {stack.grpc_address} (data in {stack.data_dir.path}; Ctrl-C stops it)")
            sys.stdout.write(json.dumps(describe(supervisor.pids)) + "\n")
            sys.stdout.flush()
            await asked_to_stop.wait()
        say("stopping")
        status = EXIT_STOPPED
    except StartError as error:
        if not asked_to_stop.is_set():
            raise
        status = _give_up(error)
    finally:
        is_up = False
        trimming.cancel()
        stack.data_dir.remove_state()
        await supervisor.stop()
    return EXIT_INTERRUPTED if was_killed() else status


async def _start(supervisor: Supervisor, asked_to_stop: asyncio.Event) -> bool:
    """Start everything; False when a signal came first."""
    starting = asyncio.create_task(supervisor.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if starting.done():
        starting.result()
        return True
    starting.cancel()
    return False


def _on_signals(asked_to_stop: asyncio.Event, supervisor: Supervisor) -> Callable[[], bool]:
    """The first signal stops in order; a second Ctrl-C kills at once. Returns whether that happened.

    SIGHUP stays ignored where it was (nohup): the stack goes on when its terminal closes.
    """
    killed = False

    def handle(signum: int) -> None:
        nonlocal killed
        if asked_to_stop.is_set() and signum == signal.SIGINT:
            killed = True
            supervisor.kill()
        asked_to_stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
            continue
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(signum, handle, signum)
    return lambda: killed
