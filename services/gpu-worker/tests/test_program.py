"""How the program starts, or says why it does not."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from vitascope_common.errors import ConfigurationError
from vitascope_common.registry import Registry
from vitascope_common.testing import free_port
from vitascope_gpu_worker import __main__ as program
from vitascope_gpu_worker.models import check_world_size
from vitascope_gpu_worker.settings import GpuWorkerSettings
from vitascope_proto.v1 import scheduler_pb2


def test_a_wrong_variable_is_named(rig, capfd):
    assert rig.process(VITASCOPE_GPU_WORKER_NUM_THREAD="2").wait(30) == 2
    said = capfd.readouterr().err
    assert "VITASCOPE_GPU_WORKER_NUM_THREAD: unknown variable; did you mean VITASCOPE_GPU_WORKER_NUM_THREADS?" in said
    assert "Traceback" not in said


def test_only_the_models_of_its_pool_decide(tmp_path, rig):
    folder = shutil.copytree(rig.models_dir, tmp_path / "m")
    path = folder / "tiny" / "card.yaml"
    described = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(described | {"parallelism": {"tensor_parallel": [1, 2]}}))
    check_world_size(Registry(folder), "default", 1)
    with pytest.raises(ConfigurationError, match=r"3 ranks.*allows \[1, 2\]"):
        check_world_size(Registry(folder), "default", 3)
    check_world_size(Registry(folder), "other", 1)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"WORLD_SIZE": "3", "RANK": "1"}, "3 ranks in pool 'default', but model tiny allows [1, 2]"),
        ({"VITASCOPE_GPU_WORKER_NUM_RANKS": "2"}, "VITASCOPE_GPU_WORKER_NUM_RANKS is 2, but it was started with 1"),
    ],
)
def test_a_wrong_number_of_ranks_is_refused(rig, capfd, env, says):
    assert rig.process(**env).wait(30) == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not rig.scheduler.registered


@pytest.fixture
def page():
    port = free_port()

    def read() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    return port, read


def test_it_says_that_it_is_ready_and_sigterm_saves_the_work(rig, wait_until, page):
    port, read = page
    task = rig.task(num_inference_steps=10_000)
    process = rig.process(VITASCOPE_GPU_WORKER_METRICS_PORT=str(port))
    wait_until(lambda: 'vitascope_ready{service="gpu-worker"} 1.0' in read(), "readiness")
    text = read()
    assert f'vitascope_pid{{service="gpu-worker"}} {float(process.pid)}' in text
    assert 'vitascope_worker_state{state="idle"} 1.0' in text
    rig.hand_over(task)
    wait_until(lambda: rig.scheduler.tasks[task.task_id].checkpoints, "a checkpoint")
    process.terminate()
    assert process.wait(timeout=8) == 0
    assert rig.scheduler.heartbeats[-1].is_draining
    report = rig.scheduler.report_of(task.task_id, 1)
    assert report.outcome == scheduler_pb2.OUTCOME_YIELDED
    assert report.checkpoint.done > 0


def test_a_signal_is_passed_on_to_the_rank_and_is_no_error(rig, wait_until, capfd):
    task = rig.task(num_inference_steps=10_000)
    process = rig.process(torchrun=True)
    rig.hand_over(task)
    wait_until(lambda: rig.scheduler.tasks[task.task_id].checkpoints, "a checkpoint")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_YIELDED
    assert "Traceback" not in capfd.readouterr().err


def test_a_rank_does_not_outlive_its_torchrun(rig, wait_until):
    process = rig.process(torchrun=True)
    wait_until(lambda: rig.scheduler.registered, "registration")
    rank = int(rig.scheduler.registered[0].worker_id.split("-")[-2])
    assert rank != process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    wait_until(lambda: is_gone(rank), "the rank's end")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


LAUNCHER = """
import subprocess, sys
_, _, pid_path, gate = sys.argv
wait_first = "import os, sys; open(sys.argv[1]).close(); os.execv(sys.executable, sys.argv[2:])"
rank = [sys.executable, "-m", "vitascope_gpu_worker"]
if gate:
    rank = [sys.executable, "-c", wait_first, gate, *rank]
child = subprocess.Popen(rank, start_new_session=True)
open(pid_path, "w").write(f"{child.pid}\\n")
child.wait()
"""


def launch(rig, wait_until, folder, gate, **env):
    path = folder / "pid"
    command = [sys.executable, "-c", LAUNCHER, "torch.distributed.run", str(path), gate]
    launcher = rig.process(command=command, TORCHELASTIC_RUN_ID="none", **env)
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), "the rank")
    return launcher, int(path.read_text())


@pytest.mark.parametrize("moment", ["before its first line", "while torch is imported"])
def test_a_rank_does_not_outlive_a_torchrun_that_dies_while_it_starts(rig, wait_until, tmp_path, moment):
    """A launcher that looks like torchrun is killed at a moment that is held open by a named pipe."""
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    env = {}
    os.mkfifo(gate)
    is_before = moment == "before its first line"
    if not is_before:
        (tmp_path / "slow" / "torch").mkdir(parents=True)
        (tmp_path / "slow" / "torch" / "__init__.py").write_text(
            f"open({str(begun)!r}, 'w').close()\nopen({str(gate)!r}).close()\n"
        )
        env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "slow"), *sys.path])
    launcher, rank = launch(rig, wait_until, tmp_path, str(gate) if is_before else "", **env)
    try:
        if not is_before:
            wait_until(lambda: begun.exists() or is_gone(rank), "the import of torch")
            assert not is_gone(rank)
        launcher.kill()
        launcher.wait()
        if is_before:
            with gate.open("w"):
                pass
        wait_until(lambda: is_gone(rank) or rig.scheduler.registered, "the rank's end")
        assert is_gone(rank)
        assert not rig.scheduler.registered
    finally:
        if not is_gone(rank):
            os.kill(rank, signal.SIGKILL)


def test_a_rank_of_a_living_torchrun_starts(rig, wait_until, tmp_path):
    _, rank = launch(rig, wait_until, tmp_path, "")
    wait_until(lambda: rig.scheduler.registered, "registration")
    assert f"-{rank}-" in rig.scheduler.registered[0].worker_id


def test_while_it_drains_the_scheduler_is_told_at_once(rig, wait_until, monkeypatch):
    worker, task = rig.worker(), rig.task()
    held = worker.executor.claim(task.task_id)
    left = []
    monkeypatch.setattr(program, "GIVE_UP_AFTER_S", 0.5)
    monkeypatch.setattr(program, "EXIT_AFTER_S", 0.6)
    monkeypatch.setattr(program.os, "_exit", left.append)
    assert not any(beat.is_draining for beat in rig.scheduler.heartbeats)
    thread = threading.Thread(target=program._leave_in_time, args=(worker.executor, threading.Event()))
    thread.start()
    beat = wait_until(lambda: next((one for one in rig.scheduler.heartbeats if one.is_draining), None), "the word")
    assert [one.task_id for one in beat.tasks] == [held.task.task_id]
    thread.join(5)
    assert left == [1]


DRAINING = """
import sys, time
from pathlib import Path
from vitascope_gpu_worker import __main__ as program
from vitascope_gpu_worker.engines.native import NativeEngine

program.GIVE_UP_AFTER_S, program.EXIT_AFTER_S = 0.3, 6.0
step, mark = NativeEngine.step, Path(sys.argv[1])

def slow(self, run):
    step(self, run)
    if mark.name == "step":
        mark.touch()
        time.sleep(1.5)  # ends after nobody is waited for any more

NativeEngine.step = slow
sys.exit(program.main())
"""


FAULTY = """
import sys, threading, torch
from vitascope_gpu_worker import __main__ as program, service
from vitascope_models.sampling import FlowSampler

program.HUNG_POLL_S = 0.05
faults = {"no_memory": lambda: torch.empty(2**60), "hang": lambda: threading.Event().wait()}
step = FlowSampler.step

def faulty(self, velocity, latents, index):
    if index == 14:
        service.HUNG_S = 1.0  # from the next step on, which hangs at once
    if index == 15:
        faults[sys.argv[1]]()
    return step(self, velocity, latents, index)

FlowSampler.step = faulty
sys.exit(program.main())
"""


def test_a_worker_that_hangs_or_has_no_memory_left_ends_so_that_it_is_started_again(rig, wait_until):
    """And the next one goes on from the last checkpoint."""
    task = rig.task()
    for attempt, fault in enumerate(("no_memory", "hang"), 1):
        process = rig.process(command=[sys.executable, "-c", FAULTY, fault])
        rig.hand_over(task)
        assert process.wait(30) == 1
        report = rig.scheduler.report_of(task.task_id, attempt)
        assert rig.scheduler.tasks[task.task_id].checkpoints[0].done == 10
        if fault == "hang":  # with its heartbeats its lease ends
            assert report is None
            rig.scheduler.lose(task.task_id)
        else:
            assert (report.error_code, report.is_retryable) == ("out_of_memory", True)
            assert rig.scheduler.heartbeats[-1].is_draining
    rig.worker().run(task)
    assert rig.scheduler.report_of(task.task_id, 3).outcome == scheduler_pb2.OUTCOME_DONE


def test_what_killed_workers_left_in_the_temporary_folder_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = GpuWorkerSettings.model_construct(data_dir=None)
    with ExitStack() as living, ExitStack() as stack:
        used = program._folder(settings, living)
        left, new = (tmp_path / f"{program.TEMPORARY}{name}" for name in ("left", "new"))
        for folder in (left, new):
            (folder / "work").mkdir(parents=True)
            (folder / "work" / "clip.mkv").touch()
        other = tmp_path / "other"
        other.mkdir()
        for folder in (used, left, other):
            os.utime(folder, (0, 0))
        own = program._folder(settings, stack)
        assert set(tmp_path.iterdir()) == {used, new, other, own}
    assert set(tmp_path.iterdir()) == {new, other}


@pytest.mark.parametrize("late", ["step", "scheduler"])
def test_a_drain_that_takes_long_ends_in_order(rig, wait_until, tmp_path, capfd, late):
    """A step that outlasts the patience is still reported; a scheduler that answers no report costs the lease."""
    task = rig.task(num_inference_steps=10_000)
    mark = tmp_path / late
    process = rig.process(command=[sys.executable, "-c", DRAINING, str(mark)])
    rig.hand_over(task)
    if late == "step":
        wait_until(mark.exists, "a step")
    else:
        wait_until(lambda: rig.scheduler.tasks[task.task_id].checkpoints, "a checkpoint")
        rig.scheduler.is_away = True
    process.terminate()
    assert process.wait(timeout=10) == 0
    assert "Traceback" not in "".join(capfd.readouterr())
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report is None) if late == "scheduler" else report.outcome == scheduler_pb2.OUTCOME_YIELDED
