"""A resumed clip equals an undisturbed one bit for bit; damaged checkpoints cost steps, never the job."""

import hashlib
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from vitascope_common.errors import UnavailableError
from vitascope_common.jobs import Checkpoint
from vitascope_gpu_worker.states import WorkerState
from vitascope_proto.v1 import scheduler_pb2

OUTPUTS = ("latents", "mezzanine")


def undisturbed(rig, **params):
    task = rig.task(**params)
    rig.worker().run(task)
    return {role: rig.output(task, 1, role) for role in OUTPUTS}


@pytest.mark.parametrize("step", [1, 9, 10, 15, 20, 23])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_resumed_equals_undisturbed(rig, step, solver, interrupted_at):
    expected = undisturbed(rig, solver=solver)
    worker, task = rig.worker(), rig.task(solver=solver)
    interrupted_at(rig, worker, task, step)
    recorded = [one.done for one in rig.scheduler.tasks[task.task_id].checkpoints]
    assert recorded == [done for done in (20, 10) if done <= step]
    rig.worker().run(task)
    assert {role: rig.output(task, 2, role) for role in OUTPUTS} == expected
    steps = [data["step"] for kind, data in rig.events(task) if kind == "progress" and data["phase"] == "denoising"]
    assert steps == [*range(step + 1), *range(recorded[0] if recorded else 0, 25)]


@pytest.mark.parametrize("where", ["store and disk", "disk", "store"])
@pytest.mark.parametrize("damage", ["flipped", "torn", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(rig, where, damage, interrupted_at):
    expected = undisturbed(rig)
    worker, task = rig.worker(), rig.task()
    interrupted_at(rig, worker, task, 23)
    newest, older = rig.scheduler.tasks[task.task_id].checkpoints
    [artifact] = newest.artifacts
    local = rig.folder / "data" / "gpu-worker" / "checkpoints" / f"{artifact.sha256}.safetensors"
    stored = rig.folder / "objects" / artifact.key
    for path in [local] * ("disk" in where) + [stored] * ("store" in where):
        hurt(path, damage)
    second = rig.worker()
    second.run(task)
    assert {role: rig.output(task, 2, role) for role in OUTPUTS} == expected
    first = [data["step"] for kind, data in rig.events(task) if data.get("phase") == "denoising"][24]
    assert first == (older.done if where == "store and disk" else newest.done)
    assert [data["from_step"] for _, data in rig.events(task) if "from_step" in data] == [0, first]
    assert WorkerState.RECOVERING in second.states


def test_an_object_store_that_is_away_is_waited_for_before_a_step_is_thrown_away(rig, monkeypatch, interrupted_at):
    task = rig.task()
    interrupted_at(rig, rig.worker(), task, 23)
    newest = rig.scheduler.tasks[task.task_id].checkpoints[0]
    for path in (rig.folder / "data" / "gpu-worker" / "checkpoints").iterdir():
        path.unlink()
    read, num_failures = rig.store.get_bytes, 2

    def sometimes(key):
        nonlocal num_failures
        if key == newest.artifacts[0].key and num_failures:
            num_failures -= 1
            raise UnavailableError("the store is away")
        return read(key)

    monkeypatch.setattr(rig.store, "get_bytes", sometimes)
    rig.worker().run(task)
    assert [data["from_step"] for _, data in rig.events(task) if "from_step" in data] == [0, newest.done]
    assert num_failures == 0


def test_25_torn_and_200_flipped_files_are_all_noticed(rig, monkeypatch, interrupted_at):
    """A real checkpoint as the object store returns it, torn at 25 places or with one of its bits flipped."""
    worker, task = rig.worker(), rig.task()
    interrupted_at(rig, worker, task, 15)
    claimed = rig.scheduler.tasks[task.task_id]
    [checkpoint] = claimed.checkpoints
    whole = rig.store.get_bytes(checkpoint.artifacts[0].key)
    worker.checkpoints.discard_local()
    assert worker.checkpoints.load(claimed, rig.card.sha256).step == 10

    drawn = random.Random(20)
    torn = [whole[: len(whole) * part // 25] for part in range(25)]
    flipped = []
    for position in drawn.sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        flipped.append(bytes(damaged))
    num_noticed = []
    for files in (torn, flipped):
        returned = iter(files)
        monkeypatch.setattr(rig.store, "get_bytes", lambda _, returned=returned: next(returned))
        num_noticed.append(sum(worker.checkpoints.load(claimed, rig.card.sha256) is None for _ in files))
    assert num_noticed == [25, 200]


def hurt(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])


def test_with_no_usable_checkpoint_it_starts_over(rig, interrupted_at):
    expected = undisturbed(rig)
    worker, task = rig.worker(), rig.task()
    interrupted_at(rig, worker, task, 23)
    for checkpoint in rig.scheduler.tasks[task.task_id].checkpoints:
        for folder, name in (("objects", checkpoint.artifacts[0].key), ("data/gpu-worker/checkpoints", "")):
            path = rig.folder / folder / (name or f"{checkpoint.artifacts[0].sha256}.safetensors")
            path.write_bytes(b"not a checkpoint")
    rig.worker().run(task)
    assert {role: rig.output(task, 2, role) for role in OUTPUTS} == expected


def test_a_checkpoint_of_another_job_is_refused(rig, interrupted_at):
    worker, first, task = rig.worker(), rig.task(seed=1), rig.task()
    interrupted_at(rig, worker, first, 15)
    stolen = rig.scheduler.tasks[first.task_id].checkpoints
    rig.scheduler.tasks[task.task_id] = replace(task, checkpoints=stolen)
    rig.worker().run(task)
    assert rig.output(task, 1, "latents") == undisturbed(rig)["latents"]


def test_a_record_that_names_no_file_is_refused(rig):
    task = rig.task()
    rig.scheduler.tasks[task.task_id] = replace(task, checkpoints=(Checkpoint(10, "step", ()),))
    rig.worker().run(task)
    assert rig.output(task, 1, "latents") == undisturbed(rig)["latents"]


def test_after_the_last_step_only_decoding_is_repeated(rig):
    worker, task = rig.worker(ffmpeg="/bin/false"), rig.task()
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 1).error_code == "encoder_failed"
    assert rig.scheduler.tasks[task.task_id].checkpoints[0].done == 24
    rig.worker().run(task)
    assert rig.output(task, 2, "latents") == undisturbed(rig)["latents"]
    steps = [data["step"] for kind, data in rig.events(task) if data.get("phase") == "denoising"]
    assert steps == [*range(25), 24]


def test_local_files_are_kept_to_two(rig, interrupted_at):
    worker, task = rig.worker(checkpoint_steps=2), rig.task()
    interrupted_at(rig, worker, task, 23)
    kept = {path.stem for path in (rig.folder / "data" / "gpu-worker" / "checkpoints").iterdir()}
    assert len(kept) <= 2
    assert rig.scheduler.tasks[task.task_id].checkpoints[0].artifacts[0].sha256 in kept


def test_kill_9_at_any_step(rig, wait_until):
    """The real program, twice; the first is killed while it computes. `SEED=… pytest …` repeats a failure."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={seed}")
    kill_after_step = random.Random(seed).randint(10, 200)
    expected = undisturbed(rig, num_inference_steps=400)
    task = rig.task(num_inference_steps=400)
    first = rig.process()
    worker_id = rig.hand_over(task)
    recorded = lambda: rig.scheduler.tasks[task.task_id].checkpoints  # noqa: E731
    wait_until(lambda: recorded() and recorded()[0].done >= kill_after_step, "checkpoint")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert rig.scheduler.report_of(task.task_id, 1) is None
    assert recorded()[0].done < 400
    rig.scheduler.lose(task.task_id)
    rig.process()
    assert rig.hand_over(task) != worker_id
    report = wait_until(lambda: rig.scheduler.report_of(task.task_id, 2), "report")
    assert report.outcome == scheduler_pb2.OUTCOME_DONE
    found = {role: rig.output(task, 2, role) for role in OUTPUTS}
    assert {role: hashlib.sha256(data).hexdigest() for role, data in found.items()} == {
        role: hashlib.sha256(data).hexdigest() for role, data in expected.items()
    }
