"""The supervisor over real processes: ready, restarted, stopped in time and in order, never orphaned."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vitascope_cli import logs, ports, supervisor
from vitascope_cli.stack import service_probe
from vitascope_cli.supervisor import ChildSpec, StartError, Supervisor
from vitascope_common.testing import is_alive

CHILD = Path(__file__).with_name("child.py")


def spec(
    name: str, mode: str = "good", *, port: int | None = None, start: int = 0, stop: int = 0, marker: str = ""
) -> ChildSpec:
    port = port or ports.choose([name], {})[name]
    command = (sys.executable, str(CHILD), name, str(port), mode, marker)
    return ChildSpec(name, command, dict(os.environ), service_probe(name, "127.0.0.1", port), start, stop)


async def wait_for(what: str, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        await asyncio.sleep(0.02)


def command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes())
    return lines


class Running:
    def __init__(self, specs: list[ChildSpec], log_dir: Path, stop_by_s: tuple[float, ...], timeout_s: float) -> None:
        self.said: list[str] = []
        self.changes: list[dict[str, int]] = []
        self.supervisor = Supervisor(
            specs,
            log_dir,
            say=self.said.append,
            on_change=self._changed,
            start_timeout_s=timeout_s,
            stop_by_s=stop_by_s,
        )

    def _changed(self, pids: Mapping[str, int]) -> None:
        self.changes.append(dict(pids))


@asynccontextmanager
async def running(
    specs: list[ChildSpec], log_dir: Path, stop_by_s: tuple[float, ...] = (5.0, 5.0), timeout_s: float = 20.0
) -> AsyncIterator[Running]:
    one = Running(specs, log_dir, stop_by_s, timeout_s)
    try:
        yield one
    finally:
        await one.supervisor.stop()


async def test_start_returns_when_every_child_is_ready(tmp_path: Path) -> None:
    async with running([spec("redis"), spec("gateway", start=1)], tmp_path) as one:
        await one.supervisor.start()
        pids = one.supervisor.pids
        assert set(pids) == {"redis", "gateway"}
        assert all(is_alive(pid) for pid in pids.values())
        assert [line.split()[0] for line in one.said] == ["redis", "gateway"]
    assert not any(is_alive(pid) for pid in pids.values())


async def test_a_killed_child_comes_back_at_once_on_its_old_address(tmp_path: Path) -> None:
    port = ports.choose(["delivery"], {})["delivery"]
    async with running([spec("delivery", port=port)], tmp_path) as one:
        await one.supervisor.start()
        for _ in range(2):
            before = one.supervisor.pids["delivery"]
            os.kill(before, signal.SIGKILL)
            await wait_for("a new process", lambda before=before: one.supervisor.pids["delivery"] != before)
            assert await service_probe("delivery", "127.0.0.1", port)(0) == one.supervisor.pids["delivery"]
        assert one.changes[-1] == one.supervisor.pids
        assert "delivery was killed by SIGKILL; starting it again" in one.said
        assert "delivery was killed by SIGKILL; starting it again in 0.2 s" in one.said


async def test_a_probe_that_loses_its_cancel_names_no_dead_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "READY_POLL_S", 0.02)
    num_calls, is_killed = 0, False

    async def probe(pid: int) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1 and not is_killed:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return pid

    child = ChildSpec("redis", (sys.executable, "-c", "import time; time.sleep(60)"), dict(os.environ), probe)
    async with running([child], tmp_path) as one:
        await one.supervisor.start()
        await wait_for("the probe to hang", lambda: num_calls > 1)
        before, is_killed = one.supervisor.pids["redis"], True
        os.kill(before, signal.SIGKILL)
        await wait_for("a new process", lambda: one.supervisor.pids["redis"] != before)
        num_calls = 2
        await wait_for("more answers", lambda: num_calls > 20)
        assert [pids["redis"] for pids in one.changes] == [before, one.supervisor.pids["redis"]]


async def test_a_refusal_to_start_is_told_with_the_log_and_without_trying_again(tmp_path: Path) -> None:
    async with running([spec("prompt"), spec("gateway", "refuses")], tmp_path) as one:
        with pytest.raises(StartError) as error:
            await one.supervisor.start()
        assert "gateway could not start: it ended with status 2" in error.value.message
        assert str(tmp_path / "gateway.log") in error.value.message
        assert error.value.log_tail == ["hello from gateway", "VITASCOPE_THING is not set"]


async def test_three_deaths_at_start_are_enough(tmp_path: Path) -> None:
    async with running([spec("gateway", "dies")], tmp_path) as one:
        with pytest.raises(StartError) as error:
            await one.supervisor.start()
        assert error.value.log_tail == ["hello from gateway"] * 3


async def test_a_child_that_never_gets_ready_is_named(tmp_path: Path) -> None:
    async with running([spec("prompt"), spec("gateway", "silent")], tmp_path, timeout_s=1.0) as one:
        with pytest.raises(StartError, match="gateway could not start: it was not ready after 1 s"):
            await one.supervisor.start()


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = ChildSpec("gateway", (str(tmp_path / "nothing"),), {}, service_probe("gateway", "127.0.0.1", 1))
    async with running([missing], tmp_path) as one:
        with pytest.raises(StartError, match="could not be run"):
            await one.supervisor.start()


async def test_stop_goes_stage_by_stage_and_kills_what_is_late(tmp_path: Path) -> None:
    specs = [spec("redis", stop=2), spec("gateway", stop=0), spec("postproc", "stubborn", stop=1)]
    async with running(specs, tmp_path, stop_by_s=(3.0, 0.5, 5.0)) as one:
        await one.supervisor.start()
        pids = one.supervisor.pids
        began = time.monotonic()
        await one.supervisor.stop()
        assert time.monotonic() - began < 3.0
        assert not any(is_alive(pid) for pid in pids.values())
    assert "postproc did not stop in time and is killed" in one.said
    stopped = {name: float((tmp_path / f"{name}.log").read_text().split()[-1]) for name in ("gateway", "redis")}
    assert stopped["gateway"] + 0.4 < stopped["redis"], "redis waited for postproc, which waited for gateway"


async def test_stop_during_the_start_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(
        [spec("gateway", "silent", marker=str(tmp_path)), spec("prompt", "dies", marker=str(tmp_path))], tmp_path
    ) as one:
        starting = asyncio.create_task(one.supervisor.start())
        await wait_for("a process", lambda: (tmp_path / "gateway.log").exists())
        await one.supervisor.stop()
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, StartError):
            await starting
        assert not any(str(tmp_path).encode() in line for line in command_lines())


async def test_logs_of_the_run_before_are_kept(tmp_path: Path) -> None:
    (tmp_path / "gateway.log").write_text("yesterday\n")
    async with running([spec("gateway")], tmp_path) as one:
        await one.supervisor.start()
    assert (tmp_path / "gateway.log.1").read_text() == "yesterday\n"
    assert (tmp_path / "gateway.log").read_text().startswith("hello from gateway\n")


async def test_a_log_that_cannot_be_trimmed_does_not_end_the_trimming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitascope_cli.supervisor.TRIM_EVERY_S", 0.01)
    async with running([spec("gateway"), spec("prompt")], tmp_path) as one:
        await one.supervisor.start()
        (tmp_path / "gateway.log.1").mkdir()  # as good as a full disk: the copy fails
        for name in ("gateway", "prompt"):
            with (tmp_path / f"{name}.log").open("ab") as log:
                log.write(bytes(logs.MAX_LOG_BYTES + 1))
        watching = asyncio.create_task(one.supervisor.watch_logs())
        await wait_for("the other log to be trimmed", lambda: not (tmp_path / "prompt.log").stat().st_size)
        (tmp_path / "gateway.log.1").rmdir()
        await wait_for("the log to be trimmed after all", lambda: not (tmp_path / "gateway.log").stat().st_size)
        watching.cancel()


@pytest.fixture
def process(tmp_path: Path) -> "subprocess.Popen[str]":
    chosen = ports.choose(["gateway", "postproc"], {})
    arguments = [f"gateway:{chosen['gateway']}:good", f"postproc:{chosen['postproc']}:stubborn"]
    command = [sys.executable, str(Path(__file__).with_name("supervise.py")), str(tmp_path), "0.5", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one:
        yield one
        one.kill()


def read_pids(process: "subprocess.Popen[str]") -> list[int]:
    assert process.stdout
    line = next(line for line in process.stdout if line.startswith("{"))
    return list(json.loads(line).values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux'")
async def test_children_die_with_a_supervisor_that_is_killed(process: "subprocess.Popen[str]") -> None:
    pids = read_pids(process)
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    await wait_for("the children to die", lambda: not any(is_alive(pid) for pid in pids))


async def test_sigterm_ends_it_in_time_with_a_stubborn_child(process: "subprocess.Popen[str]") -> None:
    pids = read_pids(process)
    began = time.monotonic()
    process.terminate()
    assert process.wait(10) == 0
    assert time.monotonic() - began < 3.0
    assert not any(is_alive(pid) for pid in pids)
