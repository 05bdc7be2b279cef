"""Previews: small moving pictures beside the work, which they never disturb."""

import io
import threading
import time

import pytest
import torch
from PIL import Image

from vitascope_common.errors import ConflictError, UnavailableError
from vitascope_common.registry import Capability
from vitascope_gpu_worker import previews as previews_module
from vitascope_gpu_worker.previews import MAX_BYTES, NUM_KEPT, Previews, encode
from vitascope_proto.v1 import scheduler_pb2

DONE = scheduler_pb2.OUTCOME_DONE


def noise(num_frames, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def opened(data):
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "WEBP"
    return picture


@pytest.fixture
def eager(rig):
    """Previews as often as the thread manages to make them."""
    previews = Previews(rig.store, every_s=0.0, max_share=1.0)
    yield previews
    previews.close()


def test_a_preview_is_a_small_animation_of_the_clips_length():
    frames = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 64, 48, 3) * 25
    picture = opened(encode(frames.contiguous(), 4.5))
    assert (picture.size, picture.n_frames) == ((48, 64), 9)
    for number in range(9):
        picture.seek(number)
        picture.load()
        assert picture.info["duration"] == 500
        assert all(abs(level - 25 * number) < 8 for level in picture.convert("RGB").getpixel((20, 30)))


@pytest.mark.parametrize("shape", [(1, 64, 64), (13, 256, 256), (31, 360, 640), (61, 100, 100)])
def test_even_noise_fits_into_64_kb(shape):
    data = encode(noise(*shape), 4.0)
    assert data is not None
    assert len(data) <= MAX_BYTES
    assert max(opened(data).size) <= 256


def test_the_newest_three_of_an_attempt_are_kept(rig, eager):
    task = rig.task()
    eager.begin(task)
    for step in range(1, 6):
        eager.submit(task, step, noise(3, 8, 8, step), 1.0, 0.0)
        assert eager.flush(10)
        assert eager.news(task) == {"step": step, "key": task.work_key(f"preview-{step:06d}.webp")}
        assert eager.news(task) is None
    kept = [one.key for one in rig.store.list("work/")]
    assert kept == [task.work_key(f"preview-{step:06d}.webp") for step in (3, 4, 5)]
    assert len(kept) == NUM_KEPT


@pytest.mark.parametrize(("loop_s", "background_s"), [(0.03, 0.0), (0.0, 0.03), (0.03, 0.03)])
def test_previews_take_no_more_than_their_share_of_the_time(rig, monkeypatch, loop_s, background_s):
    previews, task = Previews(rig.store, every_s=0.0, max_share=0.01), rig.task()
    monkeypatch.setattr(previews_module.time, "thread_time", iter([0.0, background_s]).__next__)
    previews.begin(task)
    assert previews.is_due
    begun_s = time.monotonic()
    previews.submit(task, 1, noise(1, 8, 8), 1.0, loop_s)
    assert previews.flush(10)
    assert 100 * (loop_s + background_s) <= previews._due_s - begun_s < 100 * (loop_s + background_s) + 10
    assert not previews.is_due
    previews.begin(task)
    assert previews.is_due
    previews.close()


def test_progress_names_the_newest_preview_and_it_is_there(rig, eager):
    task = rig.task(num_inference_steps=300)
    rig.worker(previews=eager).run(task)
    told = [data["preview"] for kind, data in rig.events(task) if "preview" in data]
    assert told
    assert all(one["key"] == f"work/{task.job_id}/generate/0/1/preview-{one['step']:06d}.webp" for one in told)
    assert [one["step"] for one in told] == sorted({one["step"] for one in told})
    assert eager.flush(10)
    left = [one.key for one in rig.store.list(f"work/{task.job_id}/generate/0/1/preview-")]
    assert 0 < len(left) <= NUM_KEPT
    picture = opened(rig.store.get_bytes(left[-1]))
    assert (picture.size, getattr(picture, "n_frames", 1)) == ((8, 8), 3)


def test_a_model_that_has_no_previews_makes_none(rig, eager, card, monkeypatch):
    worker, task = rig.worker(previews=eager), rig.task(num_inference_steps=40)
    without = card.model_copy(update={"capabilities": (Capability.TEXT_TO_VIDEO,)})
    monkeypatch.setattr(worker.models._registry, "card", lambda _: without)
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == DONE
    assert list(rig.store.list(f"work/{task.job_id}/generate/0/1/preview-")) == []


def test_previews_change_nothing_of_the_clip(rig, eager):
    plain, watched = rig.task(), rig.task()
    rig.worker().run(plain)
    rig.worker(previews=eager).run(watched)
    assert rig.output(plain, 1, "latents") == rig.output(watched, 1, "latents")


@pytest.mark.parametrize("error", [UnavailableError(), ConflictError(), OSError("odd"), ZeroDivisionError()])
@pytest.mark.parametrize("where", ["put_bytes", "delete", "engine"])
def test_a_preview_that_fails_disturbs_nobody(rig, eager, monkeypatch, where, error):
    def fail(*_):
        raise error

    worker, task = rig.worker(previews=eager), rig.task(num_inference_steps=60)
    if where == "engine":
        worker.models.get("tiny", rig.card.sha256)[1].preview = fail
    else:
        broken = type("Store", (), {"put_bytes": rig.store.put_bytes, "delete": rig.store.delete})()
        setattr(broken, where, fail)
        monkeypatch.setattr(eager, "_store", broken)
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == DONE
    assert eager.flush(10)
    monkeypatch.undo()
    eager.begin(task)
    eager.submit(task, 9999, noise(1, 8, 8), 1.0, 0.0)
    assert eager.flush(10)
    assert eager.news(task) is not None


def test_a_store_that_hangs_holds_up_neither_steps_nor_checkpoints(rig, eager, monkeypatch):
    is_over = threading.Event()
    hanging = type("Store", (), {"put_bytes": lambda *_: is_over.wait(30)})()
    monkeypatch.setattr(eager, "_store", hanging)
    task = rig.task()
    rig.worker(previews=eager).run(task)
    is_over.set()
    assert rig.scheduler.report_of(task.task_id, 1).outcome == DONE
    assert [one.done for one in rig.scheduler.tasks[task.task_id].checkpoints][:1] == [24]


def test_a_preview_of_work_that_is_over_is_not_told(rig, eager):
    before, after = rig.task(), rig.task()
    eager.begin(before)
    eager.submit(before, 1, noise(1, 8, 8), 1.0, 0.0)
    assert eager.flush(10)
    assert eager.news(after) is None
    eager.begin(after)
    eager.submit(before, 2, noise(1, 8, 8), 1.0, 0.0)
    assert eager.flush(10)
    assert eager.news(after) is None
