"""One task through the whole of postproc, in process: real ffmpeg, real C2PA, a folder as object store."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import pytest
from PIL import Image

from vitascope_common import keys, redis_clients
from vitascope_common.errors import UnavailableError
from vitascope_common.jobs import GenerateParams
from vitascope_common.objectstore import ObjectInfo
from vitascope_common.objectstore_folder import FolderStore
from vitascope_common.testing import free_port
from vitascope_postproc import service as service_module
from vitascope_postproc.adapters.events import StageEvents
from vitascope_postproc.adapters.ffmpeg import FfmpegEncoder
from vitascope_postproc.adapters.media import MediaInspector
from vitascope_postproc.adapters.provenance import GENERATION_LABEL, SOURCE_TYPE, C2paSigner
from vitascope_postproc.scratch import Scratch
from vitascope_postproc.service import Postproc, Statement
from vitascope_proto.v1 import scheduler_pb2


def frames_of(data: bytes) -> list[Any]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_mezzanine_becomes_signed_video_thumbnail_and_manifest(postproc, scheduler, store, make_task, redis_url):
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)

    (report,) = scheduler.reports
    assert (report.outcome, report.attempt) == (scheduler_pb2.OUTCOME_DONE, 1)
    assert report.meters["postprocess_s"] > 0
    assert [(one.role, one.media_type) for one in report.outputs] == [
        ("manifest", "application/json"),
        ("video", "video/mp4"),
        ("thumbnail", "image/webp"),
        ("spritesheet", "image/jpeg"),
    ]
    manifest_file = report.outputs[0]
    assert manifest_file.key == f"videos/{task.job_id}/1/manifest.json"
    manifest_bytes = store.get_bytes(manifest_file.key)
    assert hashlib.sha256(manifest_bytes).hexdigest() == manifest_file.sha256
    manifest = json.loads(manifest_bytes)
    assert manifest["schema"] == "vitascope.manifest/1"
    assert (manifest["job_id"], manifest["model"]) == (task.job_id, "tiny")
    assert (manifest["width_px"], manifest["height_px"], manifest["num_frames"], manifest["fps"]) == (64, 48, 16, 8)
    assert manifest["duration_s"] == 2.0
    assert manifest["provenance"] == {"format": "c2pa", "validation_state": "Trusted"}
    assert manifest["files"].keys() == {"video", "thumbnail", "spritesheet"}
    for name, file in manifest["files"].items():
        data = store.get_bytes(file["key"])
        assert file["key"].startswith(f"videos/{task.job_id}/1/")
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file["sha256"], file["num_bytes"])
        assert store.stat(file["key"]).media_type == file["media_type"], name

    redis = redis_clients.connect(redis_url)
    said = [json.loads(fields["data"])["stage"] for _, fields in redis.xrange(keys.events(task.job_id))]
    redis.close()
    assert said == ["encode", "sign", "upload"]
    assert report.used_s > 0


def test_the_mp4_plays_everywhere(postproc, scheduler, store, make_task):
    task = make_task(fps=24, num_frames=25)
    scheduler.offer(task)
    postproc.run(task.task_id)
    data = store.get_bytes(f"videos/{task.job_id}/1/video.mp4")
    assert data.index(b"moov") < data.index(b"mdat")  # faststart survives the signature
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)
        assert (int(context.colorspace), int(context.color_primaries), int(context.color_trc)) == (1, 1, 1)  # bt709
        times = [frame.pts * stream.time_base * 24 for frame in container.decode(stream)]
    assert times == list(range(25))  # constant and exact, though Matroska rounds to milliseconds


@pytest.mark.parametrize("colour", ["red", "lime", "blue", "white", "gray"])
def test_colours_survive(postproc, scheduler, store, make_task, colour):
    task = make_task(num_frames=4, what=f"color=c={colour}")
    scheduler.offer(task)
    postproc.run(task.task_id)
    expected = frames_of(store.get_bytes(task.inputs[1].key))[0].mean(axis=(0, 1))
    video = frames_of(store.get_bytes(f"videos/{task.job_id}/1/video.mp4"))
    picture = np.asarray(Image.open(io.BytesIO(store.get_bytes(f"videos/{task.job_id}/1/thumbnail.webp"))))
    for shown in (video[0], picture[..., :3]):
        assert np.abs(shown.mean(axis=(0, 1)) - expected).max() < 8, shown.mean(axis=(0, 1))


def test_the_thumbnail_is_the_middle_frame(postproc, scheduler, store, make_task):
    task = make_task(96, 64, num_frames=9)
    scheduler.offer(task)
    postproc.run(task.task_id)
    frames = frames_of(store.get_bytes(task.inputs[1].key))
    picture = Image.open(io.BytesIO(store.get_bytes(f"videos/{task.job_id}/1/thumbnail.webp")))
    assert (picture.format, picture.size) == ("WEBP", (96, 64))
    seen = np.asarray(picture.convert("RGB")).astype(int)
    distances = [np.abs(seen - frame).mean() for frame in frames]
    assert int(np.argmin(distances)) == 4


def test_a_wide_video_gets_a_smaller_thumbnail(postproc, scheduler, store, make_task):
    task = make_task(1280, 720, num_frames=2)
    scheduler.offer(task)
    postproc.run(task.task_id)
    picture = Image.open(io.BytesIO(store.get_bytes(f"videos/{task.job_id}/1/thumbnail.webp")))
    assert picture.size == (640, 360)


@pytest.mark.parametrize(
    ("num_frames", "shown", "grid"),
    [
        (1, [0], (1, 1)),
        (3, [0, 1, 2], (3, 1)),
        (9, [0, 2, 3, 4, 5, 6, 7, 8], (4, 2)),
        (16, list(range(16)), (4, 4)),
        (33, [0, *range(3, 33, 2)], (4, 4)),
    ],
)
def test_the_spritesheet_is_frames_of_the_whole_and_has_no_empty_cell(
    postproc, scheduler, store, make_task, num_frames, shown, grid
):
    task = make_task(96, 64, num_frames=num_frames)
    scheduler.offer(task)
    postproc.run(task.task_id)
    frames = frames_of(store.get_bytes(task.inputs[1].key))
    sheet = Image.open(io.BytesIO(store.get_bytes(f"videos/{task.job_id}/1/spritesheet.jpg")))
    assert (sheet.format, sheet.size) == ("JPEG", (grid[0] * 96, grid[1] * 64))
    assert len(shown) == grid[0] * grid[1]
    for place, number in enumerate(shown):
        left, top = place % grid[0] * 96, place // grid[0] * 64
        tile = np.asarray(sheet.crop((left, top, left + 96, top + 64))).astype(int)
        distances = [np.abs(tile - frame).mean() for frame in frames]
        assert int(np.argmin(distances)) == number
        assert min(distances) < 12


def test_a_wide_video_has_smaller_sprites(postproc, scheduler, store, make_task):
    task = make_task(1280, 720, num_frames=2)
    scheduler.offer(task)
    postproc.run(task.task_id)
    sheet = Image.open(io.BytesIO(store.get_bytes(f"videos/{task.job_id}/1/spritesheet.jpg")))
    assert sheet.size == (2 * 160, 90)


@pytest.mark.parametrize(("size", "expected"), [((65, 48), (66, 48)), ((64, 47), (64, 48)), ((33, 35), (34, 36))])
def test_odd_sides_are_padded_with_the_edge(postproc, scheduler, store, make_task, size, expected):
    task = make_task(*size, num_frames=3, what="color=c=white")
    scheduler.offer(task)
    postproc.run(task.task_id)
    manifest = json.loads(store.get_bytes(f"videos/{task.job_id}/1/manifest.json"))
    assert (manifest["width_px"], manifest["height_px"]) == expected
    frame = frames_of(store.get_bytes(f"videos/{task.job_id}/1/video.mp4"))[1]
    assert frame.shape[:2] == expected[::-1]
    assert frame.min() > 235  # no black border


def test_one_frame_is_a_video(postproc, scheduler, store, make_task):
    task = make_task(num_frames=1)
    scheduler.offer(task)
    postproc.run(task.task_id)
    assert scheduler.reports[0].outcome == scheduler_pb2.OUTCOME_DONE


def test_the_signature_says_how_the_video_was_made(postproc, scheduler, store, make_task, signer, tmp_path):
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    path = tmp_path / "read.mp4"
    store.get_file(f"videos/{task.job_id}/1/video.mp4", path)
    assert signer.validation_state(path) == "Trusted"
    with c2pa.Context() as context, c2pa.Reader(path, context=context) as reader:
        assert reader.get_validation_state() == "Valid"  # whoever does not know our root
        manifest = reader.get_active_manifest()
    assertions = {one["label"]: one["data"] for one in manifest["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
    assert action["softwareAgent"] == {"name": "Vitascope", "version": "1.2.3"}
    assert assertions[GENERATION_LABEL] == {"job_id": task.job_id, "model": "tiny", "prompt_sha256": "ab" * 32}
    assert manifest["claim_generator_info"][0]["name"] == "Vitascope"


def test_one_flipped_byte_makes_the_signature_invalid(postproc, scheduler, store, make_task, signer, tmp_path):
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    data = bytearray(store.get_bytes(f"videos/{task.job_id}/1/video.mp4"))
    data[-100] ^= 1
    path = tmp_path / "flipped.mp4"
    path.write_bytes(data)
    assert signer.validation_state(path) == "Invalid"


def test_an_unsigned_video_is_never_published(executor, scheduler, store, make_task, signer, scratch, redis_url):
    class Unsigned(C2paSigner):
        def __init__(self) -> None:
            pass

        def sign(self, source: Path, target: Path, statement: Statement) -> None:
            target.write_bytes(source.read_bytes())

        def validation_state(self, path: Path) -> str:
            return signer.validation_state(path)

    redis = redis_clients.connect(redis_url)
    postproc = Postproc(executor, store, FfmpegEncoder(), MediaInspector(), Unsigned(), StageEvents(redis), scratch)
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    redis.close()
    (report,) = scheduler.reports
    assert report.outcome == scheduler_pb2.OUTCOME_FAILED
    assert "unsigned" in report.error_message
    assert not list(store.list(f"videos/{task.job_id}/"))


def test_bytes_that_changed_in_storage_fail_the_attempt_and_may_be_tried_again(postproc, scheduler, store, make_task):
    task = make_task()
    mezzanine = replace(task.inputs[1], sha256="0" * 64)
    scheduler.offer(replace(task, inputs=(mezzanine,)))
    postproc.run(task.task_id)
    (report,) = scheduler.reports
    assert (report.outcome, report.error_code) == (scheduler_pb2.OUTCOME_FAILED, "corrupt_object")
    assert report.is_retryable


def _cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def _garble(data: bytearray) -> None:
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)


def _erase(data: bytearray) -> None:
    data[:] = b"not a video"


@pytest.mark.parametrize("damage", [_cut, _garble, _erase, bytearray.clear])
def test_a_mezzanine_that_was_made_damaged_fails_for_good(postproc, scheduler, store, make_task, damage):
    task = make_task(damage=damage)
    scheduler.offer(task)
    postproc.run(task.task_id)
    (report,) = scheduler.reports
    assert (report.outcome, report.error_code) == (scheduler_pb2.OUTCOME_FAILED, "corrupt_mezzanine")
    assert not report.is_retryable
    assert report.error_message
    assert not list(store.list(f"videos/{task.job_id}/"))


@pytest.mark.parametrize("params", [{"num_frames": 17}, {"num_frames": 15}, {"width_px": 66}])
def test_a_mezzanine_that_is_not_what_was_ordered_fails_for_good(postproc, scheduler, make_task, params):
    task = make_task()
    scheduler.offer(replace(task, params=replace(task.params, **params)))
    postproc.run(task.task_id)
    assert (scheduler.reports[0].error_code, scheduler.reports[0].is_retryable) == ("corrupt_mezzanine", False)


def test_a_mezzanine_is_looked_at_before_an_encoder_sees_it(executor, scheduler, make_task, store, signer, scratch):
    class Unused(FfmpegEncoder):
        def encode(self, plan, on_frame):
            raise AssertionError("the encoder was started")

    def disguise(data: bytearray) -> None:
        data[:] = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"

    redis = redis_clients.connect(f"redis://127.0.0.1:{free_port()}/0")
    postproc = Postproc(executor, store, Unused(), MediaInspector(), signer, StageEvents(redis), scratch)
    task = make_task(damage=disguise)
    scheduler.offer(task)
    postproc.run(task.task_id)
    redis.close()
    (report,) = scheduler.reports
    assert (report.error_code, report.is_retryable) == ("corrupt_mezzanine", False)
    assert "is no video" in report.error_message


def test_a_task_that_makes_no_sense_fails_for_good(postproc, scheduler, make_task):
    task = make_task()
    params = GenerateParams("m", "", "", "", 64, 48, 16, 8, 1, 1.0, 1.0, "euler", 0, "2")
    for bad in (
        replace(task, inputs=()),
        replace(task, params=params),
        replace(task, params=replace(task.params, fps=0)),
    ):
        scheduler.tasks.clear()
        scheduler.offer(bad)
        postproc.run(task.task_id)
        assert scheduler.reports[-1].error_code == "invalid_request"
        assert not scheduler.reports[-1].is_retryable


def test_a_missing_mezzanine_is_reported(postproc, scheduler, store, make_task):
    task = make_task()
    store.delete(task.inputs[1].key)
    scheduler.offer(task)
    postproc.run(task.task_id)
    assert scheduler.reports[0].error_code == "object_not_found"


class FlakyStore(FolderStore):
    """Away for the first `num_failures` calls."""

    num_failures = 0

    def get_file(self, key: str, path: Path, sha256: str | None = None) -> None:
        self._fail()
        super().get_file(key, path, sha256)

    def put_file(self, key: str, path: Path, media_type: str) -> ObjectInfo:
        self._fail()
        return super().put_file(key, path, media_type)

    def _fail(self) -> None:
        if self.num_failures:
            self.num_failures -= 1
            raise UnavailableError("The object store is away.")


@pytest.mark.parametrize(("num_failures", "is_done"), [(2, True), (100, False)])
def test_an_object_store_that_is_away_is_waited_for(
    executor, scheduler, make_task, signer, scratch, redis_url, tmp_path, monkeypatch, num_failures, is_done
):
    monkeypatch.setattr(service_module, "BACKOFF_S", (0.01, 0.02, 0.02))
    store = FlakyStore(tmp_path / "objects")
    store.num_failures = num_failures
    redis = redis_clients.connect(redis_url)
    postproc = Postproc(executor, store, FfmpegEncoder(), MediaInspector(), signer, StageEvents(redis), scratch)
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    redis.close()
    (report,) = scheduler.reports
    assert (report.outcome == scheduler_pb2.OUTCOME_DONE) == is_done
    assert is_done or (report.error_code, report.is_retryable) == ("unavailable", True)


def test_redis_away_costs_nothing_but_events(executor, scheduler, store, make_task, signer, scratch):
    redis = redis_clients.connect(f"redis://127.0.0.1:{free_port()}/0")
    postproc = Postproc(executor, store, FfmpegEncoder(), MediaInspector(), signer, StageEvents(redis), scratch)
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    redis.close()
    assert scheduler.reports[0].outcome == scheduler_pb2.OUTCOME_DONE


def test_a_broken_encoder_is_not_the_mezzanines_fault(
    executor, scheduler, store, make_task, signer, scratch, redis_url
):
    redis = redis_clients.connect(redis_url)
    encoder = FfmpegEncoder("/bin/false")
    postproc = Postproc(executor, store, encoder, MediaInspector(), signer, StageEvents(redis), scratch)
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    redis.close()
    assert (scheduler.reports[0].error_code, scheduler.reports[0].is_retryable) == ("internal", True)


def test_the_same_task_twice_is_a_refused_claim(postproc, scheduler, store, make_task):
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    postproc.run(task.task_id)
    postproc.run("no such task")
    assert [granted for _, granted in scheduler.claims] == [True, False, False]
    assert len(scheduler.reports) == 1
    assert {info.key.split("/")[2] for info in store.list(f"videos/{task.job_id}/")} == {"1"}


@pytest.mark.parametrize(
    ("action", "outcomes"),
    [(scheduler_pb2.ACTION_STOP, [scheduler_pb2.OUTCOME_CANCELLED]), (scheduler_pb2.ACTION_STALE, [])],
)
def test_work_that_nobody_wants_is_dropped(postproc, executor, scheduler, store, make_task, tmp_path, action, outcomes):
    executor._heartbeat_s = 0.02
    task = make_task(640, 360, num_frames=150, fps=25)
    scheduler.action = action
    scheduler.offer(task)
    executor.poke()
    postproc.run(task.task_id)
    assert [report.outcome for report in scheduler.reports] == outcomes
    assert not list(store.list(f"videos/{task.job_id}/"))
    assert not list((tmp_path / "scratch").iterdir())
    assert not executor._held


def test_a_drain_gives_the_task_back(postproc, scheduler, store, make_task):
    task = make_task()
    scheduler.offer(task)
    postproc.drain(0)
    postproc.run(task.task_id)
    assert not scheduler.claims  # nothing new is begun


def test_a_drain_in_the_middle_yields(executor, scheduler, store, make_task, signer, scratch, redis_url):
    class Draining(StageEvents):
        def say(self, task: Any, stage: str) -> None:
            postproc.drain(0)

    redis = redis_clients.connect(redis_url)
    postproc = Postproc(executor, store, FfmpegEncoder(), MediaInspector(), signer, Draining(redis), scratch)
    task = make_task()
    scheduler.offer(task)
    postproc.run(task.task_id)
    redis.close()
    assert [report.outcome for report in scheduler.reports] == [scheduler_pb2.OUTCOME_YIELDED]
    assert not list(store.list(f"videos/{task.job_id}/"))


def test_a_scheduler_that_is_away_is_waited_for(postproc, scheduler, make_task, monkeypatch):
    monkeypatch.setattr(service_module, "BACKOFF_S", (0.05, 0.05))
    task = make_task()
    scheduler.offer(task)
    scheduler.is_away = True
    postproc.run(task.task_id)  # gives up, claims nothing, raises nothing
    assert not scheduler.claims
    scheduler.is_away = False
    postproc.run(task.task_id)
    assert scheduler.reports[0].outcome == scheduler_pb2.OUTCOME_DONE


def test_heartbeats_tell_the_progress(postproc, executor, scheduler, make_task):
    executor._heartbeat_s = 0.02
    task = make_task(640, 360, num_frames=100, fps=25)
    scheduler.offer(task)
    executor.poke()
    postproc.run(task.task_id)
    seen = [one.progress for beat in scheduler.heartbeats for one in beat.tasks]
    assert seen
    assert {(one.phase, one.unit, one.total) for one in seen} <= {("postprocessing", "frame", 100), ("", "step", 0)}


def test_nothing_stays_in_the_scratch_space(postproc, scheduler, make_task, tmp_path):
    for damage in (None, _cut):
        task = make_task(damage=damage)
        scheduler.offer(task)
        postproc.run(task.task_id)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_sweep_spares_what_is_in_use(scratch: Scratch, tmp_path: Path):
    dead = tmp_path / "scratch" / "work-dead"
    dead.mkdir()
    (dead / "video.mp4").write_bytes(b"half")
    with scratch.folder() as folder:
        assert Scratch(tmp_path / "scratch").sweep() == 1
        assert folder.is_dir()
    assert not dead.exists()
