"""Stop, stale, yield, SIGTERM, and everything that can be away or wrong while a task runs."""

import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import replace

import prometheus_client
import pytest
import torch
from structlog.testing import capture_logs

from vitascope_common import keys
from vitascope_common.errors import UnavailableError
from vitascope_common.events import Event, EventType
from vitascope_common.executor import Action, HeldTask
from vitascope_common.ids import new_job_id
from vitascope_common.jobs import Checkpoint
from vitascope_common.redis_clients import connect
from vitascope_common.testing import free_port, redis_server
from vitascope_gpu_worker import service
from vitascope_gpu_worker.adapters import ffmpeg
from vitascope_gpu_worker.adapters.events import EventPublisher
from vitascope_gpu_worker.adapters.inbox import InboxReader
from vitascope_gpu_worker.consumer import Assignment, Command, Consumer
from vitascope_gpu_worker.device import device_errors
from vitascope_gpu_worker.engine import Snapshot
from vitascope_gpu_worker.errors import DeviceError, EncoderError, InvalidLatentsError, OutOfMemoryError, RankLostError
from vitascope_gpu_worker.states import WorkerState
from vitascope_models.sampling import FlowSampler
from vitascope_proto.v1 import scheduler_pb2

S = WorkerState
LONG = 2000
"""Steps of a task that is not meant to finish by itself."""


class Background:
    """A task that runs in a thread."""

    def __init__(self, worker, task):
        self.held = worker.executor.claim(task.task_id)
        self.thread = threading.Thread(target=worker.work.run, args=(self.held,))
        self.thread.start()

    def join(self):
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.mark.parametrize("action", [Action.STOP, Action.STALE])
def test_stop_and_stale_drop_the_work_and_only_a_stop_is_reported(rig, wait_until, action):
    worker, task = rig.worker(), rig.task(num_inference_steps=LONG)
    running = Background(worker, task)
    wait_until(lambda: running.held.progress.done > 15, "a few steps")
    running.held.action = action
    running.join()
    report = rig.scheduler.report_of(task.task_id, 1)
    if action is Action.STOP:
        assert report.outcome == scheduler_pb2.OUTCOME_CANCELLED
        assert report.used_s > 0
    else:
        assert report is None
    assert worker.machine.state is WorkerState.IDLE
    wait_until(lambda: rig.scheduler.heartbeats[-1].num_free_slots == 1, "the free slot")


def taken_back_after(worker, rig, task, step, action):
    """Run an attempt that is told so while it takes a step; return the steps it took and what it said about them."""
    held = worker.executor.claim(task.task_id)
    engine, taken = worker.models.get("tiny", rig.card.sha256)[1], []
    take = engine.step

    def watched(run):
        take(run)
        taken.append(run.step)
        if run.step == step:
            held.action = action

    engine.step = watched
    try:
        worker.work.run(held)
    finally:
        del engine.step
    worker.events.flush(10)
    return taken, [data["step"] for _, data in rig.events(task) if data["phase"] == "denoising"]


@pytest.mark.parametrize("action", [Action.STOP, Action.STALE])
def test_what_is_taken_away_ends_with_its_step(rig, action):
    worker, task = rig.worker(), rig.task()
    taken, said = taken_back_after(worker, rig, task, 13, action)
    assert taken == [*range(1, 14)]
    assert said == [*range(14)]
    assert (
        not rig.scheduler.tasks[task.task_id].checkpoints or rig.scheduler.tasks[task.task_id].checkpoints[0].done == 10
    )
    assert not [one.key for one in rig.store.list(f"work/{task.job_id}/") if "checkpoint" not in one.key]


def test_a_yield_costs_no_step(rig):
    worker, task = rig.worker(), rig.task()
    first, _ = taken_back_after(worker, rig, task, 13, Action.YIELD)
    second, _ = taken_back_after(rig.worker(), rig, task, 0, Action.RUN)
    assert [*first, *second] == [*range(1, 25)]


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        (scheduler_pb2.ACTION_STOP, scheduler_pb2.OUTCOME_CANCELLED),
        (scheduler_pb2.ACTION_YIELD, scheduler_pb2.OUTCOME_YIELDED),
        (scheduler_pb2.ACTION_STALE, None),
    ],
)
def test_a_heartbeat_answer_ends_the_work(rig, action, outcome):
    worker, task = rig.worker(), rig.task(num_inference_steps=LONG)
    rig.scheduler.actions[task.task_id] = action
    running = Background(worker, task)
    running.join()
    assert running.held.progress.done < LONG
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report and report.outcome) == outcome


def test_a_yield_reports_its_last_step_and_the_next_attempt_goes_on_from_it(rig, wait_until):
    expected = rig.task()
    rig.worker().run(expected)
    worker, task = rig.worker(), rig.task()
    held = worker.executor.claim(task.task_id)
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    step = engine.step

    def step_and_yield(run):
        step(run)
        if run.step == 13:
            held.action = Action.YIELD

    engine.step = step_and_yield
    worker.work.run(held)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert report.outcome == scheduler_pb2.OUTCOME_YIELDED
    assert report.checkpoint.done == 13
    assert rig.store.exists(report.checkpoint.artifacts[0].key)
    assert worker.states[-4:] == [S.GENERATING, S.CHECKPOINTING, S.GENERATING, S.IDLE]
    rig.worker().run(task)
    assert rig.output(task, 2, "latents") == rig.output(expected, 1, "latents")


def test_a_yield_while_decoding_or_uploading_is_too_late(rig):
    worker, task = rig.worker(), rig.task()
    held = worker.executor.claim(task.task_id)
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    decode = engine.decode

    def wanted_back(run):
        rig.scheduler.actions[task.task_id] = scheduler_pb2.ACTION_YIELD  # and no heartbeat takes it back
        held.action = Action.YIELD
        return decode(run)

    engine.decode = wanted_back
    worker.work.run(held)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_DONE


@pytest.mark.parametrize("is_draining", [True, False])
def test_decoding_can_be_left_between_frames(rig, is_draining):
    worker, task = rig.worker(), rig.task()
    held = worker.executor.claim(task.task_id)
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    decode = engine.decode

    def interrupted(run):
        for index, frames in enumerate(decode(run)):
            if index == 1:
                if is_draining:
                    worker.work.drain()
                else:
                    held.action = Action.STOP
            yield frames

    engine.decode = interrupted
    worker.work.run(held)
    report = rig.scheduler.report_of(task.task_id, 1)
    if is_draining:
        assert (report.outcome, report.checkpoint.done) == (scheduler_pb2.OUTCOME_YIELDED, 24)
    else:
        assert report.outcome == scheduler_pb2.OUTCOME_CANCELLED
    assert not list((rig.folder / "data" / "gpu-worker" / "work").iterdir())


def test_invalid_latents_fail_for_good_and_are_never_a_checkpoint(rig):
    worker, task = rig.worker(), rig.task()
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    step = engine.step

    def broken(run):
        step(run)
        if run.step == 14:
            run.latents_BCTHW = run.latents_BCTHW * float("nan")

    engine.step = broken
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("invalid_latents", False)
    assert [one.done for one in rig.scheduler.tasks[task.task_id].checkpoints] in ([], [10])
    assert worker.machine.state is WorkerState.IDLE


def no_memory(*_):
    torch.empty(2**60)  # more than the CPU's allocator can promise


def device_failed(*_):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


DEVICE_ERRORS = [
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceError),
    (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronous"), DeviceError),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceError),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa )`"), DeviceError),
    (RuntimeError("NCCL Error 1: unhandled cuda error"), DeviceError),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemoryError),
    (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemoryError),
    (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemoryError),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError),
    (MemoryError(), OutOfMemoryError),
    (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0."), RankLostError),
    (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), RankLostError),
    (RuntimeError("The size of tensor a (4) must match the size of tensor b (5)"), RuntimeError),
    (InvalidLatentsError(), InvalidLatentsError),
]


@pytest.mark.parametrize(("error", "expected"), DEVICE_ERRORS)
def test_what_torch_says_of_a_device_is_translated(error, expected):
    with pytest.raises(expected) as caught, device_errors():
        raise error
    assert caught.type is expected


@pytest.mark.parametrize(
    ("where", "fault", "code"),
    [
        ("step", no_memory, "out_of_memory"),
        ("step", device_failed, "device_failed"),
        ("snapshot", device_failed, "device_failed"),
        ("restore", device_failed, "device_failed"),
        ("copy of a frame", device_failed, "device_failed"),
    ],
)
def test_after_a_fault_of_the_device_nothing_else_is_taken(rig, monkeypatch, where, fault, code):
    """The process is in doubt: it reports, and leaves what it was handed to another."""
    worker, task, other = rig.worker(), rig.task(), rig.task()
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    if where == "restore":
        latents = torch.zeros(1)
        monkeypatch.setattr(FlowSampler, "load_state_dict", fault)
        monkeypatch.setattr(worker.checkpoints, "load", lambda *_: Snapshot(1, latents, {}, latents))
        checkpoint = Checkpoint(1, "step", ())
        rig.scheduler.tasks[task.task_id] = replace(task, checkpoints=(checkpoint,))
    elif where == "snapshot":
        monkeypatch.setattr(FlowSampler, "state_dict", fault)
    elif where == "step":
        engine._dit.forward = fault
    else:
        frames = type("OnTheDevice", (), {"cpu": fault})()
        monkeypatch.setattr(engine._vae, "decode_stream", lambda _: iter([frames]))
    for one in (task, other):
        worker.consumer.assign(Assignment(one.task_id))
    worker.consumer.run()  # returns undrained
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == (code, True)
    assert worker.work.is_broken
    assert rig.scheduler.states[other.task_id] == "ready"


def test_what_does_not_come_back_is_known_as_hung(rig, wait_until, monkeypatch):
    """A model's load, a first step of which no pace is known, a later one; the pace outlasts the clip."""
    worker, first, second = rig.worker(), rig.task(num_inference_steps=2), rig.task(num_inference_steps=2)
    get, waits = worker.models.get, []

    def hang():
        waits.append(wait_until(lambda: worker.work.hung, "the watchdog"))

    def slow_get(*args):
        hang()
        return get(*args)

    monkeypatch.setattr(service, "HUNG_LOADING_S", 0.05)
    monkeypatch.setattr(worker.models, "get", slow_get)
    engine = get("tiny", rig.card.sha256)[1]
    step = engine.step

    def slow_step(run):
        hang()
        step(run)

    monkeypatch.setattr(service, "HUNG_S", 0.3)
    monkeypatch.setattr(service, "HUNG_OTHERWISE_S", 0.6)
    monkeypatch.setattr(service, "HUNG_PACES", 0)
    monkeypatch.setattr(engine, "step", slow_step)
    for task in (first, second):
        worker.run(task)
    assert [(wait.what, wait.step, wait.limit_s) for wait in waits] == [
        ("load", 0, 0.05),
        ("step", 0, 0.6),
        ("step", 1, 0.3),
        ("load", 0, 0.05),
        ("step", 0, 0.3),
        ("step", 1, 0.3),
    ]
    assert worker.work.hung is None


def test_a_fault_of_ours_ends_the_attempt_and_not_the_worker(rig):
    worker, task = rig.worker(), rig.task()
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    prepare = engine.prepare
    engine.prepare = lambda *_: 1 / 0
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("internal", True)
    assert "division" not in report.error_message
    engine.prepare = prepare
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 2).outcome == scheduler_pb2.OUTCOME_DONE


@pytest.mark.parametrize(
    ("params", "code", "is_retryable"),
    [
        ({"num_frames": 10}, "invalid_request", False),
        ({"solver": "magic"}, "invalid_request", False),
        ({"model_sha256": "00" * 32}, "invalid_model", False),
        ({"model": "absent"}, "not_found", True),
    ],
)
def test_what_the_model_cannot_do_is_said(rig, params, code, is_retryable):
    worker, task = rig.worker(), rig.task(**params)
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == (code, is_retryable)
    assert report.error_message


def test_a_corrupt_model_file_is_not_served(rig, tmp_path):
    rig.models_dir = shutil.copytree(rig.models_dir, tmp_path / "damaged")
    path = rig.models_dir / "tiny" / "dit.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    worker, task = rig.worker(), rig.task()
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("corrupt_object", True)
    assert "dit.safetensors" in report.error_message
    assert worker.models.warm == ()
    assert worker.states[-2:] == [WorkerState.LOADING, WorkerState.IDLE]


def test_corrupt_conditioning_is_not_used(rig):
    worker, task = rig.worker(), rig.task()
    first = rig.task()
    worker.run(first)
    [info] = rig.store.list("conditioning/")
    data = rig.store.get_bytes(info.key)
    (rig.folder / "objects" / info.key).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    rig.prompts._store = type("Skips", (), {"put_bytes": lambda *_: None})()  # as a service that finds it cached
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("corrupt_object", True)


def test_the_prompt_service_is_waited_for(rig, wait_until):
    worker, task = rig.worker(), rig.task()
    rig.prompts.is_away = True
    running = Background(worker, task)
    wait_until(lambda: rig.prompts.num_calls >= 2, "a second call")
    assert rig.scheduler.heartbeats
    rig.prompts.is_away = False
    running.join()
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_DONE


def test_the_wait_is_bounded(rig, monkeypatch):
    monkeypatch.setattr(service, "WAIT_S", 0.2)
    worker, task = rig.worker(), rig.task()
    rig.prompts.is_away = True
    begun_s = time.monotonic()
    worker.run(task)
    took_s = time.monotonic() - begun_s
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("unavailable", True)
    assert report.used_s < took_s - 0.25  # it paused for 0.1 and 0.2 s, which nobody pays


@pytest.mark.parametrize("action", [Action.STOP, Action.YIELD])
def test_the_wait_ends_with_a_stop_or_a_yield(rig, wait_until, action):
    worker, task = rig.worker(), rig.task()
    rig.prompts.is_away = True
    running = Background(worker, task)
    wait_until(lambda: rig.prompts.num_calls, "a call")
    rig.scheduler.actions[task.task_id] = {
        Action.STOP: scheduler_pb2.ACTION_STOP,
        Action.YIELD: scheduler_pb2.ACTION_YIELD,
    }[action]
    running.join()
    outcome = scheduler_pb2.OUTCOME_CANCELLED if action is Action.STOP else scheduler_pb2.OUTCOME_YIELDED
    assert rig.scheduler.report_of(task.task_id, 1).outcome == outcome


class Flaky:
    """An object store that is away for its first writes (or reads: "get") of the kind that `is_hit` names."""

    def __init__(self, store, num_failures, is_hit, what="put"):
        self._store = store
        self._left = num_failures
        self._is_hit = is_hit
        self._what = what

    def __getattr__(self, name):
        method = getattr(self._store, name)

        def call(key, *args):
            if name.startswith(self._what) and self._left and self._is_hit(key):
                self._left -= 1
                raise UnavailableError("the store is away")
            return method(key, *args)

        return call


@pytest.mark.parametrize("what", ["checkpoint", "mezzanine", "latents"])
def test_storage_that_is_away_for_a_while_costs_nothing(rig, what):
    worker, task = rig.worker(store=Flaky(rig.store, 2, lambda key: what in key)), rig.task()
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_DONE


def test_checkpoints_that_cannot_be_uploaded_never_hold_up_the_work(rig):
    worker, task = rig.worker(store=Flaky(rig.store, 10**9, lambda key: "checkpoint" in key)), rig.task()
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_DONE
    assert rig.scheduler.tasks[task.task_id].checkpoints == ()


def test_a_disk_without_space_for_the_mezzanine_is_said(rig):
    worker, task = rig.worker(), rig.task()
    (rig.folder / "data" / "gpu-worker" / "work" / f"{task.task_id}.1.mkv").symlink_to("/dev/full")
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("disk_full", True)
    assert not worker.work.is_broken
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 2).outcome == scheduler_pb2.OUTCOME_DONE


@pytest.fixture
def full_disk(tmp_path):
    """A file system of its own that has no byte left, where the worker keeps its files."""
    folder = tmp_path / "data" / "gpu-worker"
    folder.mkdir(parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        (folder / "checkpoints").mkdir()
        (folder / "work").mkdir()
        with pytest.raises(OSError, match="No space left"):
            (folder / "other").write_bytes(bytes(100_000))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_checkpoints_are_still_uploaded_and_nothing_is_lost(rig, full_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(full_disk))
    task = rig.task()
    with capture_logs() as said:
        rig.worker().run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("disk_full", True)
    assert {one["error"] for one in said if one["event"] == "checkpoint.not_cached"} == {"No space left on device"}
    assert rig.scheduler.tasks[task.task_id].checkpoints[0].done == 24
    (full_disk / "other").unlink()
    taken, _ = taken_back_after(rig.worker(), rig, task, 0, Action.RUN)
    assert taken == []  # all of its steps are in the object store
    assert rig.scheduler.report_of(task.task_id, 2).outcome == scheduler_pb2.OUTCOME_DONE


def test_without_a_folder_for_checkpoints_the_work_goes_on(rig):
    folder = rig.folder / "data" / "gpu-worker"
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("in the way")
    task = rig.task()
    taken_back_after(rig.worker(), rig, task, 13, Action.YIELD)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.outcome, report.checkpoint.done) == (scheduler_pb2.OUTCOME_YIELDED, 13)


@pytest.mark.parametrize("ffmpeg", ["/bin/false", "/bin/true", "/nonexistent/ffmpeg"])
def test_an_ffmpeg_that_fails_is_a_retryable_error(rig, ffmpeg):
    worker, task = rig.worker(ffmpeg=ffmpeg), rig.task()
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("encoder_failed", True)


@pytest.mark.parametrize("writes", [":", 'for file; do :; done; : > "$file"'], ids=["no file", "an empty file"])
def test_an_ffmpeg_that_takes_every_frame_and_writes_nothing_is_a_retryable_error(rig, tmp_path, writes):
    path = tmp_path / "ffmpeg"
    path.write_text(f"#!/bin/sh\ncat > /dev/null\n{writes}\n")
    path.chmod(0o755)
    worker, task = rig.worker(ffmpeg=str(path)), rig.task()
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("encoder_failed", True)
    assert "wrote nothing" in report.error_message


@pytest.fixture
def hung_ffmpeg(tmp_path):
    path = tmp_path / "ffmpeg"
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    return str(path)


def test_an_ffmpeg_that_never_ends_is_a_retryable_error(rig, monkeypatch, hung_ffmpeg):
    monkeypatch.setattr(ffmpeg, "STALL_S", 0.2)
    worker, task = rig.worker(ffmpeg=hung_ffmpeg), rig.task()
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("encoder_failed", True)
    assert "hung" in report.error_message


def test_an_ffmpeg_that_takes_no_more_frames_is_killed(tmp_path, monkeypatch, hung_ffmpeg):
    monkeypatch.setattr(ffmpeg, "STALL_S", 0.2)
    frames_THWC = torch.zeros(2, 512, 512, 3, dtype=torch.uint8)  # more than a pipe holds
    with ffmpeg.Mezzanine(tmp_path / "m.mkv", 512, 512, 8, hung_ffmpeg) as mezzanine:
        with pytest.raises(EncoderError, match="hung"):
            mezzanine.write(frames_THWC, lambda: None)
        assert mezzanine._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("outcome", [scheduler_pb2.OUTCOME_CANCELLED, scheduler_pb2.OUTCOME_YIELDED])
def test_a_stop_and_a_sigterm_are_obeyed_while_ffmpeg_hangs(rig, wait_until, tmp_path, outcome):
    path, has_all = tmp_path / "ffmpeg", tmp_path / "all"
    path.write_text(f"#!/bin/sh\ncat > /dev/null\ntouch {has_all}\nexec sleep 1000\n")
    path.chmod(0o755)
    worker, task = rig.worker(ffmpeg=str(path)), rig.task()
    running = Background(worker, task)
    wait_until(has_all.exists, "the last frame")
    if outcome == scheduler_pb2.OUTCOME_CANCELLED:
        running.held.action = Action.STOP
    else:
        worker.work.drain()
    running.join()
    assert rig.scheduler.report_of(task.task_id, 1).outcome == outcome


def test_frames_of_the_wrong_number_or_size_are_refused(rig):
    worker, task, other = rig.worker(), rig.task(), rig.task()
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    decode = engine.decode
    engine.decode = lambda run: list(decode(run))[:-1]
    worker.run(task)
    engine.decode = lambda run: [frames[:, :8] for frames in decode(run)]
    worker.run(other)
    for one, text in ((task, "5 frames, not 9"), (other, r"[8, 16, 3], not [16, 16, 3]")):
        report = rig.scheduler.report_of(one.task_id, 1)
        assert (report.error_code, report.is_retryable) == ("invalid_frames", False)
        assert text in report.error_message


def test_without_redis_the_work_goes_on(rig):
    worker, task = rig.worker(redis_url=f"redis://127.0.0.1:{free_port()}/0"), rig.task()
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_DONE


def test_without_the_scheduler_the_work_goes_on_and_is_reported_when_it_is_back(rig, wait_until):
    worker, task = rig.worker(), rig.task()
    held = worker.executor.claim(task.task_id)
    rig.scheduler.is_away = True
    thread = threading.Thread(target=worker.work.run, args=(held,))
    thread.start()
    wait_until(lambda: worker.machine.state is WorkerState.COMPLETE, "the end of the work")
    rig.scheduler.is_away = False
    thread.join(10)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_DONE


def test_events_resume_with_the_newest_when_redis_is_back(tmp_path, wait_until):
    port = free_port()
    client = connect(f"redis://127.0.0.1:{port}/0")
    publisher = EventPublisher(client)
    job = new_job_id()
    for step in range(20):
        publisher.publish(Event(job, EventType.PROGRESS, {"step": step}))
    publisher.flush(5)
    with redis_server(tmp_path) as url:
        publisher._redis = connect(url)
        publisher.publish(Event(job, EventType.PROGRESS, {"step": 20}))
        entries = wait_until(lambda: publisher._redis.xrange(keys.events(job)), "an event")
        wait_until(
            lambda: '{"step":20}' in [f["data"] for _, f in publisher._redis.xrange(keys.events(job))], "the newest"
        )
        assert len(entries) <= 2
        publisher.close()
        publisher._redis.close()
    client.close()


@pytest.fixture
def inbox(redis_url):
    heard = []
    client = connect(redis_url, is_blocking=True)
    reader = InboxReader(client, "default", f"w-{new_job_id()}", heard.append, heard.append)
    yield reader, heard, client
    reader.stop()
    client.xadd(reader._key, {"data": "{}"})
    reader._thread.join(5)
    client.close()


def test_the_inbox_is_read_from_its_first_entry_and_survives_nonsense(inbox, wait_until):
    reader, heard, client = inbox
    for data in (
        '{"command": "assign", "tasks": [{"task_id": "a", "traceparent": "tp"}, {"task_id": "b"}]}',
        "not json",
        '{"command": "assign"}',
        '["assign"]',
        '{"command": "yield", "task_id": "a", "attempt": 2}',
    ):
        client.xadd(reader._key, {"data": data})
    client.xadd(reader._key, {"else": "x"})
    reader.start()
    wait_until(lambda: len(heard) == 3, "three commands")
    assert heard == [Assignment("a", "tp"), Assignment("b", ""), Command("yield", "a", 2)]
    client.xadd(reader._key, {"data": '{"command": "stop", "task_id": "a", "attempt": 2}'})
    wait_until(lambda: heard[3:] == [Command("stop", "a", 2)], "the stop")


def test_the_inbox_is_read_again_after_redis_was_wiped(tmp_path, wait_until):
    heard = []
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with redis_server(tmp_path / "1") as url:
        reader = InboxReader(connect(url, is_blocking=True), "default", "w", heard.append, heard.append)
        reader._redis.xadd(
            reader._key, {"data": '{"command": "stop", "task_id": "a", "attempt": 1}'}, id="99999999999999-1"
        )
        reader.start()
        wait_until(lambda: heard, "the first command")
    first = reader._redis
    with redis_server(tmp_path / "2") as url:
        client = connect(url, is_blocking=True)
        client.xadd(reader._key, {"data": '{"command": "stop", "task_id": "b", "attempt": 1}'}, id="5-1")
        reader._redis = client
        wait_until(lambda: len(heard) == 2, "the command of the new server")
        reader.stop()
        client.xadd(reader._key, {"data": "{}"})
        reader._thread.join(5)
        client.close()
        first.close()


def test_assigned_tasks_are_taken_in_turn_and_a_refused_claim_is_nothing(rig, wait_until):
    worker = rig.worker()
    first, second = rig.task(), rig.task()
    thread = threading.Thread(target=worker.consumer.run)
    thread.start()
    for task_id in (first.task_id, "unknown.generate.0", first.task_id, second.task_id):
        worker.consumer.assign(Assignment(task_id))
    for task in (first, second):
        wait_until(lambda task=task: rig.scheduler.report_of(task.task_id, 1), "report")
    assert len(rig.scheduler.reports) == 2
    worker.consumer.drain()
    thread.join(5)
    assert not thread.is_alive()


def test_a_yield_can_be_called_off_and_a_stop_cannot(rig):
    task = rig.task()

    class Claims:
        def claim(self, task_id):
            return held

    class Work:
        is_broken = False

        def run(self, held):
            for name in ("yield", "run", "stop", "run"):
                consumer.command(Command(name, task.task_id, 1))
                seen.append(held.action)
            consumer.drain()

        def drain(self):
            pass

    held, seen = HeldTask(replace(task, attempt=1)), []
    consumer = Consumer(Claims(), Work())
    consumer.assign(Assignment(task.task_id))
    consumer.run()
    assert seen == [Action.YIELD, Action.RUN, Action.STOP, Action.STOP]


@pytest.mark.parametrize(("attempt", "is_stopped"), [(1, True), (2, False)])
def test_a_command_reaches_the_attempt_that_it_names(rig, wait_until, attempt, is_stopped):
    worker, task = rig.worker(), rig.task(num_inference_steps=300)
    thread = threading.Thread(target=worker.consumer.run)
    thread.start()
    worker.consumer.assign(Assignment(task.task_id))
    wait_until(lambda: WorkerState.GENERATING in worker.states, "steps")
    worker.consumer.command(Command("stop", task.task_id, attempt))
    worker.consumer.command(Command("dance", task.task_id, attempt))
    wait_until(lambda: worker.machine.state is WorkerState.IDLE, "the end")
    outcome = scheduler_pb2.OUTCOME_CANCELLED if is_stopped else scheduler_pb2.OUTCOME_DONE
    assert rig.scheduler.report_of(task.task_id, 1).outcome == outcome
    worker.consumer.drain()
    thread.join(5)


def test_a_scheduler_that_is_away_at_the_claim_costs_a_few_tries(rig, wait_until):
    task, tries = rig.task(), []

    class Claims:
        def claim(self, task_id):
            tries.append(task_id)
            raise UnavailableError("away")

    consumer = Consumer(Claims(), rig.worker().work)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    consumer.assign(Assignment(task.task_id))
    wait_until(lambda: len(tries) == 2, "a second try")
    consumer.drain()
    thread.join(5)
    assert not thread.is_alive()


def test_metrics_tell_of_steps_and_resumes(rig):
    read = prometheus_client.REGISTRY.get_sample_value
    before = read("vitascope_worker_steps_total", {"model": "tiny"}) or 0
    rig.worker().run(rig.task())
    assert read("vitascope_worker_steps_total", {"model": "tiny"}) - before == 24
    assert read("vitascope_worker_step_seconds_count", {"model": "tiny"}) >= 24
    assert read("vitascope_worker_checkpoint_blocking_seconds_count") > 0
    assert read("vitascope_worker_decode_seconds_count", {"model": "tiny"}) > 0
