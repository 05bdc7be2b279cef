"""Keep child processes running: start them in stages, restart what dies, stop everything in order and in time.

Children die with this process even when it is killed -9 (`dying_with_parent`), so `Supervisor` must live on a thread
that lives as long as the process: the kernel sends the signal when the thread that forked ends. Each child leads a
session of its own, so that Ctrl-C on the terminal reaches the supervisor alone and the order of stopping is ours.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitascope_cli import logs
from vitascope_common.errors import ConfigurationError
from vitascope_common.process import dying_with_parent

START_TIMEOUT_S = 60.0
MAX_DEATHS_AT_START = 3
MAX_BACKOFF_S = 5.0
CALM_S = 10.0
"""Having been ready this long, a child that dies starts at once again."""
STARTING_POLL_S = 0.05
READY_POLL_S = 1.0
TRIM_EVERY_S = 5.0
CONFIGURATION_STATUS = 2
"""What a service exits with when its settings are wrong: trying again would not help."""

Probe = Callable[[int], Awaitable[int | None]]
"""Ask a child whether it is ready: gets the pid of the started process, returns that of the one that does the work."""


class StartError(ConfigurationError):
    """A child did not become ready; `log_tail` holds its last lines."""

    def __init__(self, message: str, log_tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log_tail = list(log_tail)


@dataclass(frozen=True)
class ChildSpec:
    """One process to keep running; `command` begins with an absolute path.

    Stages are small numbers: all of one are started, or stopped, together.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    probe: Probe
    start_stage: int = 0
    stop_stage: int = 0


@dataclass
class _Child:
    spec: ChildSpec
    log: Path
    started: asyncio.Future[None]
    process: asyncio.subprocess.Process | None = None
    pid: int | None = None
    ready_at_s: float | None = None
    num_deaths_at_start: int = 0
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """Runs the children of `specs`. `say` gets a line for people; `on_change` is called when a pid changes."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        log_dir: Path,
        *,
        say: Callable[[str], None],
        on_change: Callable[[Mapping[str, int]], None] = lambda pids: None,
        start_timeout_s: float = START_TIMEOUT_S,
        stop_by_s: Sequence[float] = (9.0,),
        inherited_fds: Sequence[int] = (),
    ) -> None:
        """`stop_by_s`: per stop stage, when (seconds from the beginning of `stop`) what is left of it is killed.

        `inherited_fds` stay open in the children: a lock held through one is free only when all of them are gone. What
        the children start is for them to hand on, and to end.
        """
        loop = asyncio.get_running_loop()
        self._children = [_Child(spec, log_dir / f"{spec.name}.log", loop.create_future()) for spec in specs]
        self._say = say
        self._on_change = on_change
        self._start_timeout_s = start_timeout_s
        self._stop_by_s = stop_by_s
        self._inherited_fds = tuple(inherited_fds)
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> dict[str, int]:
        """The process that does the work of each child that was ever ready."""
        return {child.spec.name: child.pid for child in self._children if child.pid is not None}

    async def start(self) -> None:
        """Start every child; return when all are ready.

        Raises:
            StartError: one died three times, refused its settings or was not ready in time. Call `stop` then.
        """
        for stage in sorted({child.spec.start_stage for child in self._children}):
            children = [child for child in self._children if child.spec.start_stage == stage]
            for child in children:
                logs.begin(child.log)
                child.keeper = asyncio.create_task(self._keep(child), name=f"keep-{child.spec.name}")
            started = [child.started for child in children]
            done, late = await asyncio.wait(started, timeout=self._start_timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            for one in done:
                one.result()
            if late:
                child = next(child for child in children if child.started in late)
                raise self._start_error(child, f"was not ready after {self._start_timeout_s:.0f} s")

    async def watch_logs(self) -> None:
        """Keep the log files bounded, as far as the disk lets us; runs until cancelled."""
        while True:
            await asyncio.sleep(TRIM_EVERY_S)
            for child in self._children:
                with contextlib.suppress(OSError):
                    logs.trim(child.log)

    async def stop(self) -> None:
        """Stop every child, stage by stage; what is left of a stage at its time is killed."""
        self._stopping.set()
        began_s = time.monotonic()
        for stage, stop_by_s in enumerate(self._stop_by_s):
            keepers = []
            for child in self._children:
                if child.spec.stop_stage == stage and child.keeper is not None:
                    keepers.append(child.keeper)
                    _signal(child.process, signal.SIGTERM)
            if not keepers:
                continue
            _, late = await asyncio.wait(keepers, timeout=max(0.0, began_s + stop_by_s - time.monotonic()))
            for child in self._children:
                if child.keeper in late:
                    self._say(f"{child.spec.name} did not stop in time and is killed")
                    _kill_group(child.process)
            await asyncio.gather(*keepers, return_exceptions=True)
        for child in self._children:
            if not child.started.done():
                child.started.cancel()
            elif not child.started.cancelled():
                child.started.exception()  # seen: nobody may be waiting any more

    def kill(self) -> None:
        """Kill every child at once; `stop` then returns quickly."""
        for child in self._children:
            _kill_group(child.process)

    async def _keep(self, child: _Child) -> None:
        """Run the child, again and again, until `stop`; or give up when it cannot start at all."""
        num_quick_deaths = 0
        while not self._stopping.is_set():
            what, is_hopeless = await self._run_once(child)
            if self._stopping.is_set():
                return
            if not child.started.done():
                child.num_deaths_at_start += 1
                if is_hopeless or child.num_deaths_at_start == MAX_DEATHS_AT_START:
                    child.started.set_exception(self._start_error(child, what))
                    return
            was_calm = child.ready_at_s is not None and time.monotonic() - child.ready_at_s >= CALM_S
            num_quick_deaths = 1 if was_calm else num_quick_deaths + 1
            delay_s = 0.0 if num_quick_deaths == 1 else min(0.2 * 2 ** (num_quick_deaths - 2), MAX_BACKOFF_S)
            self._say(f"{child.spec.name} {what}; starting it again" + (f" in {delay_s:.1f} s" if delay_s else ""))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run_once(self, child: _Child) -> tuple[str, bool]:
        """Run the child until it ends; say how it ended, and whether trying again is hopeless."""
        child.ready_at_s = None
        program = child.spec.command[0]
        if not os.access(program, os.X_OK):  # the wrapper below would only say so in the log
            return f"could not be run (no such program: {program})", True
        try:
            with logs.open_for_append(child.log) as log:
                child.process = process = await asyncio.create_subprocess_exec(
                    *dying_with_parent(child.spec.command),
                    env=dict(child.spec.environ),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=self._inherited_fds,
                )
        except OSError as error:
            return f"could not be run ({error.strerror}: {error.filename or program})", True
        if self._stopping.is_set():  # `stop` signalled the process before this one
            _signal(process, signal.SIGTERM)
        watcher = asyncio.create_task(self._watch(child, process))
        try:
            status = await process.wait()
        finally:
            watcher.cancel()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind
        return _describe(status), status == CONFIGURATION_STATUS

    async def _watch(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        """Find out when the child is ready, and afterwards which process does its work."""
        started_s = time.monotonic()
        while True:
            pid = await child.spec.probe(process.pid)
            if process.returncode is not None:  # a library that the probe uses may lose the cancel of its end
                return
            if pid is not None and child.ready_at_s is None:
                child.ready_at_s = time.monotonic()
                self._say(f"{child.spec.name} is ready after {child.ready_at_s - started_s:.1f} s (pid {pid})")
            if pid is not None and pid != child.pid:
                child.pid = pid
                self._on_change(self.pids)
            if pid is not None and not child.started.done():
                child.started.set_result(None)
            await asyncio.sleep(STARTING_POLL_S if child.ready_at_s is None else READY_POLL_S)

    def _start_error(self, child: _Child, what: str) -> StartError:
        return StartError(f"{child.spec.name} could not start: it {what}. Its log: {child.log}", logs.tail(child.log))


def _describe(status: int) -> str:
    """Say how a process ended: `ended with status 1`, `was killed by SIGKILL`."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _signal(process: asyncio.subprocess.Process | None, signum: int) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)


def _kill_group(process: asyncio.subprocess.Process | None) -> None:
    """Kill a living process and those it started in its session."""
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
