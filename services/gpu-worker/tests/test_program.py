"""How the program starts, or says why it does not."""

import os
import shutil
import signal
import urllib.request
from pathlib import Path

import pytest
import yaml

from vitascope_common.errors import ConfigurationError
from vitascope_common.registry import Registry
from vitascope_common.testing import free_port
from vitascope_gpu_worker.models import check_world_size
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
    check_world_size(Registry(folder), "default", 2)
    with pytest.raises(ConfigurationError, match=r"3 ranks.*allows \[1, 2\]"):
        check_world_size(Registry(folder), "default", 3)
    check_world_size(Registry(folder), "other", 3)


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
    report = rig.scheduler.report_of(task.task_id, 1)
    assert report.outcome == scheduler_pb2.OUTCOME_YIELDED
    assert report.checkpoint.done > 0


def test_torchrun_passes_sigterm_on(rig, wait_until):
    task = rig.task(num_inference_steps=10_000)
    process = rig.process(torchrun=True)
    rig.hand_over(task)
    wait_until(lambda: rig.scheduler.tasks[task.task_id].checkpoints, "a checkpoint")
    process.terminate()
    process.wait(timeout=10)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_YIELDED


def test_a_rank_does_not_outlive_its_torchrun(rig, wait_until):
    process = rig.process(torchrun=True)
    wait_until(lambda: rig.scheduler.registered, "registration")
    rank = int(rig.scheduler.registered[0].worker_id.split("-")[-2])
    assert rank != process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(is_gone, "the rank's end")
