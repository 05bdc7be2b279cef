"""`vitascope up` as a process: the line it prints, the file it keeps, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vitascope_cli.stack import default_models_dir
from vitascope_common.settings import PROCESSES
from vitascope_common.testing import is_alive

Process = subprocess.Popen


@contextmanager
def starting(
    data_dir: Path, *arguments: str, launcher: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Iterator["Process[str]"]:
    command = [*launcher, sys.executable, str(Path(__file__).with_name("up_small.py")), str(data_dir), *arguments]
    pipe, more = subprocess.PIPE, {**os.environ, **(environ or {})}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=more) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: "Process[str]") -> dict[str, Any]:
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    return dict(json.loads(line))


def wait_for(what: str, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def test_one_line_one_file_and_an_orderly_end(tmp_path: Path) -> None:
    with starting(tmp_path / "data", "good") as process:
        up = first_line(process)
        assert list(up) == ["base_url", "grpc", "api_key", "data_dir", "pids"]
        assert list(up["pids"]) == list(PROCESSES)
        assert (tmp_path / "data" / "api_key").read_text().strip() == up["api_key"]
        state_file = tmp_path / "data" / "stack.json"
        state = json.loads(state_file.read_text())
        assert state_file.stat().st_mode & 0o777 == 0o600
        assert {name: state[name] for name in up} == up
        assert (state["pid"], state["models_dir"]) == (process.pid, str(default_models_dir()))

        before = up["pids"]["postproc"]
        os.kill(before, signal.SIGKILL)
        wait_for("the new pid", lambda: json.loads(state_file.read_text())["pids"]["postproc"] != before)
        pids = json.loads(state_file.read_text())["pids"].values()

        began = time.monotonic()
        process.terminate()
        out, err = process.communicate(timeout=15)
        assert (process.returncode, out) == (0, "")
        assert time.monotonic() - began < 10
        assert "postproc was killed by SIGKILL; starting it again" in err
        assert not state_file.exists()
        assert not any(is_alive(pid) for pid in [*pids, state["redis_pid"]])


def test_a_service_that_cannot_start_ends_it_with_its_log(tmp_path: Path) -> None:
    with starting(tmp_path / "data", "refuses", "scheduler") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "  | VITASCOPE_THING is not set" in err
    assert "error [configuration]: scheduler could not start: it ended with status 2." in err
    assert not (tmp_path / "data" / "stack.json").exists()


def test_a_port_that_is_taken_while_it_starts_is_chosen_anew(tmp_path: Path) -> None:
    robber = tmp_path / "robber"
    try:
        with starting(tmp_path / "data", "robbed", "scheduler", environ={"ROBBER": str(robber)}) as process:
            up = first_line(process)
            process.terminate()
            _, err = process.communicate(timeout=15)
        assert process.returncode == 0
        port = robber.read_text().split()[1]
        assert f"another program took port {port} meanwhile; starting again on other ports" in err
        assert list(up["pids"]) == list(PROCESSES)
        assert is_alive(int(robber.read_text().split()[0]))  # who has the port keeps it
    finally:
        if robber.exists():
            os.kill(int(robber.read_text().split()[0]), signal.SIGKILL)


def test_a_misspelt_variable_stops_the_start(tmp_path: Path) -> None:
    with starting(tmp_path / "data", "good", environ={"VITASCOPE_LOG_LEVLE": "debug"}) as process:
        out, err = process.communicate(timeout=15)
    assert (process.returncode, out) == (1, "")
    assert "VITASCOPE_LOG_LEVLE: unknown variable; did you mean VITASCOPE_LOG_LEVEL?" in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("launcher", [(), ("nohup",)], ids=["plain", "nohup"])
def test_the_end_of_the_terminal_is_the_end_unless_nohup_says_otherwise(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    buffered = {"PYTHONUNBUFFERED": ""}
    with starting(tmp_path / "data", "good", launcher=launcher, environ=buffered) as process:
        pids = first_line(process)["pids"].values()
        process.send_signal(signal.SIGHUP)
        if launcher:
            assert process.stderr
            process.stderr.close()  # what it has to say now reaches nobody
            state_file = tmp_path / "data" / "stack.json"
            before = json.loads(state_file.read_text())["pids"]["prompt"]
            os.kill(before, signal.SIGKILL)
            wait_for("the new pid", lambda: json.loads(state_file.read_text())["pids"]["prompt"] != before)
            process.terminate()
        assert process.wait(15) == 0
        assert not any(is_alive(pid) for pid in pids)


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path) -> None:
    with starting(tmp_path / "data", "stubborn") as process:
        pids = first_line(process)["pids"].values()
        process.send_signal(signal.SIGINT)
        assert process.stderr
        while "stopping" not in process.stderr.readline():
            assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert process.returncode == 130
        assert time.monotonic() - began < 3
        assert not any(is_alive(pid) for pid in pids)


def test_ctrl_c_while_it_starts_stops_it(tmp_path: Path) -> None:
    with starting(tmp_path / "data", "silent", "prompt") as process:
        assert process.stderr
        while "gateway is ready" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=15)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert "exception was never retrieved" not in err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux'")
def test_after_kill_nine_the_next_one_takes_over_at_once(tmp_path: Path) -> None:
    with starting(tmp_path / "data", "stubborn") as process:
        first = first_line(process)
        process.kill()
        with starting(tmp_path / "data", "good") as again:
            second = first_line(again)
            assert not any(is_alive(pid) for pid in first["pids"].values())
            assert second["api_key"] == first["api_key"]
            assert (second["base_url"], second["grpc"]) == (first["base_url"], first["grpc"])

            with starting(tmp_path / "data", "good") as third:
                out, err = third.communicate(timeout=15)
            assert (third.returncode, out) == (1, "")
            assert "Another `vitascope up` is running" in err
            assert json.loads((tmp_path / "data" / "stack.json").read_text())["pids"] == second["pids"]
