"""Storage that lies, is full or is away: older copies, patience, a reason; never other bits and never a crash loop."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import (
    assert_done_once,
    assert_drained,
    assert_whole_history,
    checkpoints,
    follow,
    steps_repeated,
)

from tests.conftest import SHORT_LEASES, Stack, wait_for
from vitascope_client import Event
from vitascope_common.process import dying_with_parent
from vitascope_common.testing import free_port


@pytest.mark.parametrize(
    "damage", ["flipped", *(pytest.param(one, marks=pytest.mark.slow) for one in ("torn", "gone"))]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(chaos: Stack, twin: str, damage: str) -> None:
    video_id = make_clip(chaos)
    worker: int | None = chaos.pid("gpu-worker")
    older = 0

    def disturb(event: Event) -> None:
        nonlocal worker, older
        if event.type == "checkpoint" and event.data["step"] >= 30 and worker:
            os.kill(worker, signal.SIGSTOP)  # so that no newer checkpoint comes up meanwhile
            older = damage_newest_checkpoint(chaos, video_id, damage)
            os.kill(worker, signal.SIGKILL)
            worker = None

    seen = follow(chaos, video_id, disturb)
    assert seen[-1].type == "completed", seen[-1].data
    assert older >= 20
    resumed_at = [event.type for event in seen].index("resumed")
    steps = [event.data["step"] for event in seen[resumed_at:] if event.type == "progress" and event.data["step"]]
    assert min(steps) in (older, older + 1)  # the state it shows first is the one it resumed from
    assert all(repeated <= 22 for repeated in steps_repeated(seen))
    assert_done_once(chaos, video_id, twin)
    assert_whole_history(chaos, video_id, seen)
    assert_drained(chaos)


def damage_newest_checkpoint(stack: Stack, video_id: str, damage: str) -> int:
    """Spoil every copy of the newest recorded checkpoint; returns the step of the one before."""
    newest, older = checkpoints(stack, video_id)
    digest = newest["artifacts"][0]["sha256"]
    files = [path for path in stack.data_dir.rglob("*.safetensors") if path.is_file()]
    copies = [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() == digest]
    assert len(copies) == 2, "one on the worker's disk, one in the object store"
    for path in copies:
        data = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
            continue
        if damage == "torn":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 2] ^= 1
        path.write_bytes(data)
    return int(older["done"])


class Away:
    """The folder of objects, away for a while: every access of it fails meanwhile."""

    def __init__(self, stack: Stack) -> None:
        self._folder = stack.data_dir / "objects"
        self._hidden = stack.data_dir / "objects.away"
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def begin(self, seconds: float) -> None:
        self._folder.rename(self._hidden)
        self._folder.write_bytes(b"")  # not a folder: nobody can make it anew
        self._timer = threading.Timer(seconds, self.end)
        self._timer.start()

    def end(self) -> None:
        with self._lock:
            if self._hidden.exists():
                self._folder.unlink()
                self._hidden.rename(self._folder)

    @property
    def has_begun(self) -> bool:
        return self._timer is not None

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer.join()
        self.end()


@pytest.fixture
def objects_away(chaos: Stack) -> Iterator[Away]:
    one = Away(chaos)
    yield one
    one.close()


AWAY = [
    pytest.param("started", 4, id="before the conditioning", marks=pytest.mark.slow),
    pytest.param("checkpoint", 4, id="while denoising", marks=pytest.mark.slow),
    pytest.param("decoding", 4, id="before the upload", marks=pytest.mark.slow),
    pytest.param("postprocessing", 4, id="postprocessing", marks=pytest.mark.slow),
    pytest.param("checkpoint", 60, id="a minute, denoising", marks=[pytest.mark.slow, pytest.mark.timeout(240)]),
    pytest.param("decoding", 60, id="a minute, upload", marks=[pytest.mark.slow, pytest.mark.timeout(240)]),
    pytest.param("postprocessing", 60, id="a minute, finish", marks=[pytest.mark.slow, pytest.mark.timeout(240)]),
]


@pytest.mark.parametrize(("moment", "seconds"), AWAY)
def test_the_object_store_is_away(chaos: Stack, twin: str, objects_away: Away, moment: str, seconds: float) -> None:
    video_id = make_clip(chaos)

    def disturb(event: Event) -> None:
        if event.type == moment and not objects_away.has_begun:
            objects_away.begin(seconds)

    seen = follow(chaos, video_id, disturb)
    assert objects_away.has_begun
    assert seen[-1].type == "completed", seen[-1].data
    assert_done_once(chaos, video_id, twin)
    assert_whole_history(chaos, video_id, seen)
    assert_drained(chaos)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Run moto's S3 with a bucket; yields its pid and the settings that name it."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(dying_with_parent(command), stdout=log, stderr=log)
    try:
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )

        def is_made() -> bool:
            with contextlib.suppress(Exception):
                client.create_bucket(Bucket="vitascope")
                return True
            return False

        wait_for("S3", is_made)
        client.close()
        url = f"s3://vitascope/all?endpoint={endpoint}&region=us-east-1"
        credentials = {"VITASCOPE_S3_ACCESS_KEY": "a", "VITASCOPE_S3_SECRET_KEY": "b"}
        yield process.pid, {"VITASCOPE_OBJECT_STORE_URL": url, **credentials}
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_s3_hangs_for_a_while(tmp_path: Path) -> None:
    with s3_server(tmp_path) as (s3, settings):
        stack = Stack(tmp_path / "data", settings={**SHORT_LEASES, **settings})
        resume = threading.Timer(0, lambda: None)
        try:
            undisturbed = make_clip(stack)
            assert follow(stack, undisturbed)[-1].type == "completed"
            twin = stack.output(undisturbed, "generate", "latents")["sha256"]
            for moment in ("started", "checkpoint", "decoding", "postprocessing"):
                video_id, is_hung = make_clip(stack), False
                for event in stack.client.videos.stream(video_id):
                    if event.type == moment and not is_hung:
                        os.kill(s3, signal.SIGSTOP)
                        is_hung = True
                        resume = threading.Timer(15, os.kill, (s3, signal.SIGCONT))
                        resume.start()
                resume.join()
                assert event.type == "completed", (moment, event.data)
                assert_done_once(stack, video_id, twin)
            assert_drained(stack)
        finally:
            resume.cancel()
            os.kill(s3, signal.SIGCONT)
            stack.close()


@contextlib.contextmanager
def full_disk(scratch: Path) -> Iterator[None]:
    """Put a small and full file system in the place of a worker's folder."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(scratch)]
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        for folder in ("checkpoints", "work"):
            (scratch / "gpu-worker" / folder).mkdir(parents=True)
        with contextlib.suppress(OSError), (scratch / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(scratch)], check=True)


@pytest.mark.slow
def test_the_disk_is_full_while_denoising(chaos: Stack, twin: str) -> None:
    """The worker goes on with the checkpoints in the object store, and resumes from one of them when it is killed."""
    with contextlib.ExitStack() as disk:
        video_id, is_full, is_killed = make_clip(chaos), False, False

        def disturb(event: Event) -> None:
            nonlocal is_full, is_killed
            if event.type == "started" and not is_full:
                disk.enter_context(full_disk(chaos.data_dir / "services" / "gpu-worker"))
                is_full = True
            elif event.type == "checkpoint" and event.data["step"] == 20 and not is_killed:
                chaos.kill("gpu-worker")
                is_killed = True
            elif event.type == "checkpoint" and event.data["step"] == 30:
                disk.close()

        seen = follow(chaos, video_id, disturb)
    assert is_full
    assert is_killed
    assert seen[-1].type == "completed", seen[-1].data
    assert [event.data["from_step"] for event in seen if event.type == "resumed"] == [20]
    assert_done_once(chaos, video_id, twin)
    assert_whole_history(chaos, video_id, seen)
    assert_drained(chaos)


@pytest.mark.slow
def test_a_disk_that_stays_full_fails_the_job_with_a_reason(chaos: Stack, twin: str) -> None:
    before = chaos.pid("gpu-worker")
    with contextlib.ExitStack() as disk:
        video_id, is_full = make_clip(chaos), False

        def disturb(event: Event) -> None:
            nonlocal is_full
            if event.type == "started" and not is_full:
                disk.enter_context(full_disk(chaos.data_dir / "services" / "gpu-worker"))
                is_full = True

        seen = follow(chaos, video_id, disturb)
    assert seen[-1].type == "failed"
    assert "disk" in seen[-1].data["message"].lower() or "space" in seen[-1].data["message"].lower(), seen[-1].data
    assert chaos.task(video_id, "generate")["attempt"] <= 3
    assert chaos.pid("gpu-worker") == before, "the worker lives"
    assert_whole_history(chaos, video_id, seen)
    after = make_clip(chaos)
    follow(chaos, after)
    assert_done_once(chaos, after, twin)
    assert_drained(chaos)
