"""Clips that are made from pictures and other clips: what is given stays, whatever interrupts the work."""

import hashlib
import io
import os
import threading

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from vitascope_common.errors import InvalidRequestError, UnavailableError
from vitascope_common.executor import Action
from vitascope_common.jobs import Artifact, Reference
from vitascope_common.registry import Capability, Registry
from vitascope_gpu_worker import service
from vitascope_gpu_worker.adapters import ffmpeg
from vitascope_gpu_worker.adapters.references import References
from vitascope_gpu_worker.engines import native
from vitascope_gpu_worker.models import Models
from vitascope_gpu_worker.references import WantedFrames
from vitascope_models.vae import from_uint8
from vitascope_proto.v1 import scheduler_pb2

DONE, FAILED = scheduler_pb2.OUTCOME_DONE, scheduler_pb2.OUTCOME_FAILED
MKV = "video/x-matroska"


def picture(seed, width=16, height=16):
    pixels = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return torch.from_numpy(pixels), file.getvalue()


def moving(num_frames, seed=3):
    return torch.from_numpy(numpy.random.default_rng(seed).integers(0, 256, (num_frames, 16, 16, 3), dtype=numpy.uint8))


def mezzanine(rig, frames_THWC):
    path = rig.folder / "clip.mkv"
    with ffmpeg.Mezzanine(path, 16, 16, 8, ffmpeg.find_ffmpeg()) as writing:
        writing.write(frames_THWC, lambda: None)
        writing.finish(len(frames_THWC), lambda: None)
    return path.read_bytes()


def stored(rig, role, data, media_type="image/png", strength=0.0):
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"work/job/references/{role}-{sha256[:8]}"
    rig.store.put_bytes(key, data, media_type)
    return Reference(role, Artifact(role, "reference", media_type, key, sha256, len(data)), strength)


def references(rig, *roles):
    found = []
    for number, role in enumerate(roles):
        if role in ("first_frame", "last_frame"):
            found.append(stored(rig, role, picture(number)[1]))
        else:
            found.append(stored(rig, role, mezzanine(rig, moving(13)), MKV, 0.6 if role == "change" else 0.0))
    return tuple(found)


def wanted(path, num_frames, *, media_type=MKV, size_px=(16, 16), fps=8):
    return WantedFrames(path, media_type, size_px, fps, num_frames, lambda: None)


def latents_of(rig, task, attempt=1):
    return load_tensors(rig.output(task, attempt, "latents"))["latents"]


def encoded(rig, card, frames_THWC):
    vae = native.load(card, rig.models_dir / "tiny", torch.device("cpu"))._vae
    return vae.encode(from_uint8(frames_THWC[None]))


def made(rig, worker=None, **params):
    task = rig.task(**params)
    (worker or rig.worker()).run(task)
    return task


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_a_clip_begins_with_its_first_frame_exactly(rig, card, solver):
    pixels, data = picture(1)
    plain = made(rig, num_inference_steps=3, solver=solver)
    task = made(rig, num_inference_steps=3, solver=solver, references=(stored(rig, "first_frame", data),))
    found, free = latents_of(rig, task), latents_of(rig, plain)
    assert torch.equal(found[:, :, :1], encoded(rig, card, pixels[None]))
    assert not torch.equal(found[:, :, 1:], free[:, :, 1:])


def test_a_last_frame_draws_the_end_to_it_and_the_first_stays(rig, card):
    first, last = references(rig, "first_frame", "last_frame")
    alone, both = (latents_of(rig, made(rig, references=given)) for given in ((first,), (first, last)))
    assert torch.equal(alone[:, :, 0], both[:, :, 0])
    assert not torch.equal(alone[:, :, -1], both[:, :, -1])


def test_a_clip_goes_on_from_the_end_of_another(rig, card):
    frames = moving(13)
    task = made(rig, references=(stored(rig, "continue", mezzanine(rig, frames), MKV),))
    assert torch.equal(latents_of(rig, task)[:, :, :1], encoded(rig, card, frames[-1:]))


def frames_of(rig, task, attempt=1):
    path = rig.folder / "made.mkv"
    path.write_bytes(rig.output(task, attempt, "mezzanine"))
    return References(ffmpeg.find_ffmpeg()).clip(wanted(path, 1000))


def test_what_is_extended_comes_first_as_it_is(rig):
    frames = moving(13)
    given = references(rig, "continue")
    alone = frames_of(rig, made(rig, references=given))
    whole = frames_of(rig, made(rig, references=given, num_frames_before=13))
    assert len(alone) == 9
    assert torch.equal(whole, torch.cat([frames, alone[1:]]))  # the first of them shows the last frame again


def test_what_is_repeated_of_a_longer_clip_is_left_out(rig):
    frames = moving(13)
    given = (stored(rig, "continue", mezzanine(rig, frames), MKV),)
    alone = frames_of(rig, made(rig, references=given, num_frames=17))
    whole = frames_of(rig, made(rig, references=given, num_frames=17, num_frames_before=13))
    assert torch.equal(whole, torch.cat([frames, alone[5:]]))


def test_an_extension_survives_a_kill_and_a_store_that_is_away_when_it_is_decoded(rig, interrupted_at, monkeypatch):
    given = references(rig, "continue")
    expected = frames_of(rig, made(rig, references=given, num_frames_before=13))
    task = rig.task(references=given, num_frames_before=13)
    interrupted_at(rig, rig.worker(), task, 15)
    get_file, num_calls = rig.store.get_file, 0

    def sometimes(*arguments):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:  # the first is for the frames that the model is given
            raise UnavailableError("the store is away")
        return get_file(*arguments)

    monkeypatch.setattr(rig.store, "get_file", sometimes)
    rig.worker().run(task)
    monkeypatch.undo()
    assert num_calls == 3
    assert torch.equal(frames_of(rig, task, 2), expected)


def test_a_clip_that_is_shorter_than_it_was_said_to_be_is_not_extended(rig):
    task = made(rig, references=references(rig, "continue"), num_frames_before=14)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.outcome, report.error_code, report.is_retryable) == (FAILED, "invalid_request", False)
    assert "has 13 frames, not 14" in report.error_message


def test_a_change_of_no_strength_is_the_clip_and_a_full_one_is_none_of_it(rig, card):
    frames = moving(13)
    data = mezzanine(rig, frames)
    kept, half, new = (made(rig, references=(stored(rig, "change", data, MKV, one),)) for one in (0.0, 0.5, 1.0))
    clean = encoded(rig, card, frames[:9])
    assert torch.equal(latents_of(rig, kept), clean)
    assert torch.equal(latents_of(rig, new), latents_of(rig, made(rig)))
    assert (latents_of(rig, half) - clean).abs().mean() < (latents_of(rig, new) - clean).abs().mean()


@pytest.mark.parametrize("given", [("first_frame",), ("first_frame", "last_frame"), ("continue",), ("change",)])
def test_a_killed_worker_leaves_no_trace_in_the_clip(rig, given, interrupted_at):
    given = references(rig, *given)
    expected = latents_of(rig, made(rig, references=given))
    task = rig.task(references=given)
    interrupted_at(rig, rig.worker(), task, 15)
    assert [one.done for one in rig.scheduler.tasks[task.task_id].checkpoints] == [10]
    rig.worker().run(task)
    assert torch.equal(latents_of(rig, task, 2), expected)
    assert [data["from_step"] for _, data in rig.events(task) if "from_step" in data] == [0, 10]


def test_a_checkpoint_of_another_picture_is_not_taken(rig, interrupted_at):
    task = rig.task(references=references(rig, "first_frame"))
    interrupted_at(rig, rig.worker(), task, 15)
    rig.scheduler.replace_params(task, references=(stored(rig, "first_frame", picture(9)[1]),))
    rig.worker().run(task)
    assert [data["from_step"] for _, data in rig.events(task) if "from_step" in data] == [0, 0]


def test_a_model_that_cannot_do_it_says_what_it_lacks_and_is_not_tried_again(rig, card, monkeypatch):
    for role, capability in (
        ("first_frame", "image_to_video"),
        ("change", "video_to_video"),
        ("sound_of_the_sea", "sound_of_the_sea"),
    ):
        poorer = card.model_copy(update={"capabilities": (Capability.TEXT_TO_VIDEO,)})
        models = Models(Registry(rig.models_dir), torch.device("cpu"))
        models._loaded = (poorer, models.get("tiny", card.sha256)[1])
        monkeypatch.setattr(models._registry, "card", lambda _, poorer=poorer: poorer)
        task = made(rig, rig.worker(models=models), references=(stored(rig, role, picture(1)[1]),))
        report = rig.scheduler.report_of(task.task_id, 1)
        assert (report.outcome, report.error_code, report.is_retryable) == (FAILED, "invalid_request", False)
        assert capability in report.error_message


def test_a_model_that_needs_a_picture_makes_nothing_from_text_alone(rig, card, monkeypatch):
    needy = card.model_copy(update={"capabilities": (Capability.IMAGE_TO_VIDEO,)})
    models = Models(Registry(rig.models_dir), torch.device("cpu"))
    models._loaded = (needy, models.get("tiny", card.sha256)[1])
    monkeypatch.setattr(models._registry, "card", lambda _: needy)
    report = rig.scheduler.report_of(made(rig, rig.worker(models=models)).task_id, 1)
    assert (report.error_code, report.is_retryable) == ("invalid_request", False)
    assert "text_to_video" in report.error_message


@pytest.mark.parametrize(
    "given", [("last_frame",), ("first_frame", "continue"), ("continue", "change"), ("first_frame", "change")]
)
def test_references_that_do_not_go_together_are_refused(rig, given):
    task = made(rig, references=references(rig, *given))
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.outcome, report.error_code, report.is_retryable) == (FAILED, "invalid_request", False)
    assert "do not go together" in report.error_message


def test_a_picture_that_is_not_what_was_accepted_fails_the_attempt(rig):
    [given] = references(rig, "first_frame")
    (rig.folder / "objects" / given.artifact.key).write_bytes(picture(5)[1])
    report = rig.scheduler.report_of(made(rig, references=(given,)).task_id, 1)
    assert (report.outcome, report.error_code, report.is_retryable) == (FAILED, "corrupt_object", True)


@pytest.mark.parametrize(
    ("role", "media_type", "data"),
    [
        ("first_frame", "image/png", b"none"),
        ("continue", MKV, b"none"),
        ("continue", "text/plain", b"#EXTM3U"),
        ("change", "video/mp4", b"none"),
    ],
)
def test_what_cannot_be_decoded_is_not_tried_again(rig, role, media_type, data):
    report = rig.scheduler.report_of(made(rig, references=(stored(rig, role, data, media_type),)).task_id, 1)
    assert (report.outcome, report.error_code, report.is_retryable) == (FAILED, "invalid_request", False)
    assert not list((rig.folder / "data" / "gpu-worker" / "work").iterdir())


def test_a_clip_to_change_that_is_too_short_says_so(rig):
    given = stored(rig, "change", mezzanine(rig, moving(5)), MKV, 0.5)
    report = rig.scheduler.report_of(made(rig, references=(given,)).task_id, 1)
    assert (report.error_code, report.is_retryable) == ("invalid_request", False)
    assert "has 5 frames; the new one needs 9" in report.error_message


@pytest.mark.parametrize("role", ["first_frame", "continue"])
def test_an_object_store_that_is_away_is_waited_for(rig, role, monkeypatch):
    given = references(rig, role)
    expected = latents_of(rig, made(rig, references=given))
    num_failures = 2

    def sometimes(read):
        def call(key, *more):
            nonlocal num_failures
            if key == given[0].artifact.key and num_failures:
                num_failures -= 1
                raise UnavailableError("the store is away")
            return read(key, *more)

        return call

    for name in ("get_bytes", "get_file"):
        monkeypatch.setattr(rig.store, name, sometimes(getattr(rig.store, name)))
    assert torch.equal(latents_of(rig, made(rig, references=given)), expected)
    assert num_failures == 0


def test_a_picture_has_the_size_of_the_clip_since_it_was_stored_so(rig):
    pixels, data = picture(1, 24, 8)
    assert torch.equal(References("").picture(data, 24, 8), pixels)
    with pytest.raises(InvalidRequestError, match="24 x 8 pixels, not the clip's 8 x 8"):
        References("").picture(data, 8, 8)
    report = rig.scheduler.report_of(made(rig, references=(stored(rig, "first_frame", data),)).task_id, 1)
    assert (report.outcome, report.error_code, report.is_retryable) == (FAILED, "invalid_request", False)


def test_our_mezzanine_is_read_as_it_was_written_and_only_what_is_needed(rig):
    frames = moving(13)
    path = rig.folder / "read.mkv"
    path.write_bytes(mezzanine(rig, frames))
    reads = References(ffmpeg.find_ffmpeg())
    assert torch.equal(reads.clip(wanted(path, 100)), frames)
    assert torch.equal(reads.clip(wanted(path, 9)), frames[:9])
    for num_frames in range(1, 14):
        found = reads.clip(wanted(path, num_frames), is_end=True)
        assert torch.equal(found, frames[-num_frames:])
    assert torch.equal(reads.clip(wanted(path, 100), is_end=True), frames)
    assert reads.clip(wanted(path, 100, size_px=(24, 8), fps=4)).shape[1:] == (8, 24, 3)
    with pytest.raises(InvalidRequestError):
        reads.clip(wanted(path, 9, media_type="video/mp4"))


def test_of_a_long_clip_to_continue_only_the_end_is_decoded(rig):
    frames = moving(400)
    path = rig.folder / "long.mkv"
    path.write_bytes(mezzanine(rig, frames))
    given = []
    read = os.read

    def counted(pipe, num_bytes):
        data = read(pipe, num_bytes)
        given.append(len(data))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", counted)
        found = References(ffmpeg.find_ffmpeg()).clip(wanted(path, 9), is_end=True)
    assert torch.equal(found, frames[-9:])
    assert sum(given) <= 11 * 16 * 16 * 3


@pytest.mark.parametrize("end", ["stop", "drain"])
def test_a_reference_that_takes_long_is_left_when_the_work_is_wanted_back(rig, end, wait_until, monkeypatch):
    """And ffmpeg with it: here it is one that never writes a frame."""
    program, number = rig.folder / "slow", rig.folder / "number"
    program.write_text(f"#!/bin/sh\necho $$ > {number}.part\nmv {number}.part {number}\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(service, "HUNG_OTHERWISE_S", 0.0)
    worker = rig.worker(ffmpeg=str(program))
    task = rig.task(references=references(rig, "continue"))
    held = worker.executor.claim(task.task_id)
    thread = threading.Thread(target=worker.work.run, args=(held,))
    thread.start()
    wait_until(number.exists, "ffmpeg")
    assert worker.work.hung.what == "reference"  # the watchdog sees it
    if end == "stop":
        held.action = Action.STOP
    else:
        worker.work.drain()
    thread.join(20)
    assert not thread.is_alive()
    expected = scheduler_pb2.OUTCOME_CANCELLED if end == "stop" else scheduler_pb2.OUTCOME_YIELDED
    assert rig.scheduler.report_of(task.task_id, 1).outcome == expected
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)
    assert not list((rig.folder / "data" / "gpu-worker" / "work").iterdir())


def test_a_published_mp4_is_read_too(rig):
    import subprocess

    source, path = rig.folder / "source.mkv", rig.folder / "clip.mp4"
    flat = torch.full((9, 64, 64, 3), 200, dtype=torch.uint8)
    with ffmpeg.Mezzanine(source, 64, 64, 8, ffmpeg.find_ffmpeg()) as writing:
        writing.write(flat, lambda: None)
        writing.finish(9, lambda: None)
    command = [ffmpeg.find_ffmpeg(), "-loglevel", "error", "-i", str(source), "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    subprocess.run([*command, str(path)], check=True)
    found = References(ffmpeg.find_ffmpeg()).clip(wanted(path, 100, media_type="video/mp4"))
    assert found.shape == (9, 16, 16, 3)
    assert (found.int() - 200).abs().max() <= 3
