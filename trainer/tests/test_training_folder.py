"""A folder of real videos as training data."""

from __future__ import annotations

import json
import subprocess
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from vitascope_common.errors import ConfigurationError
from vitascope_trainer import folder as folder_module
from vitascope_trainer.folder import FolderSource, open_folder, scan
from vitascope_trainer.seeds import seeded
from vitascope_trainer.sources import Bucket

BUCKET = Bucket(9, 32, 48)


def make_video(path: Path, source: str = "testsrc=size=80x60:rate=10", seconds: float = 2.0) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source]
    subprocess.run([*command, "-t", str(seconds), "-pix_fmt", "yuv420p", str(path)], check=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos, one too damaged to decode, one without a caption."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "bars.mp4")
    (folder / "bars.txt").write_text("coloured bars\n\nbars and a counter\n", encoding="utf-8")
    make_video(folder / "blue.mkv", "color=c=blue:size=64x64:rate=25", 3.0)
    make_video(folder / "silent.mp4", seconds=1.0)
    (folder / "broken.mp4").write_bytes((folder / "bars.mp4").read_bytes()[:700])
    lines = [{"file": "blue.mkv", "caption": "a blue field"}, {"file": "broken.mp4", "caption": "nothing"}]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def _source(folder: Path) -> FolderSource:
    return open_folder(folder, fps=8, held_out_share=0.0, seed=1, memo=None)[0]


def test_readable_videos_are_found_and_the_others_reported(videos: Path) -> None:
    found = scan(videos)
    assert [video.name for video in found.videos] == ["bars.mp4", "blue.mkv"]
    assert found.videos[0].captions == ("coloured bars", "bars and a counter")
    assert found.videos[0].duration_s == pytest.approx(1.9)
    assert set(found.skipped) == {"broken.mp4", "silent.mp4"}
    assert "decoded" in found.skipped["broken.mp4"]
    assert "caption" in found.skipped["silent.mp4"]


def test_captions_of_files_that_are_not_there_or_no_videos_are_reported(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.mp4").touch()
    (tmp_path / "c.mpg").touch()
    lines = [{"file": name, "caption": "bars"} for name in ("a.mp4", "sub/b.mp4", "c.mpg")]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    skipped = scan(tmp_path).skipped
    assert set(skipped) == {"a.mp4", "sub/b.mp4", "c.mpg"}
    assert ".mp4" in skipped["c.mpg"]


def test_clips_have_the_buckets_size_and_are_the_same_each_time(videos: Path) -> None:
    source = _source(videos)
    clips = [source.clip(index, BUCKET).frames_THWC for index in range(4)]
    assert all(clip.shape == (9, 32, 48, 3) for clip in clips)
    assert np.array_equal(clips[0], _source(videos).clip(0, BUCKET).frames_THWC)
    assert not np.array_equal(clips[0], clips[2]), "the second use of a video takes another part of it"
    assert clips[1].mean(axis=(0, 1, 2)).argmax() == 2, "blue stays blue"
    assert source.clip(0, BUCKET).mask_THW is None


def test_frames_are_taken_at_the_wanted_rate(videos: Path) -> None:
    source = FolderSource(videos, scan(videos).videos[:1], 5, seed=1)
    frames = source.clip(0, Bucket(5, 32, 48)).frames_THWC
    assert all(not np.array_equal(one, other) for one, other in pairwise(frames))
    slow = FolderSource(videos, scan(videos).videos[:1], 20, seed=1).clip(0, Bucket(9, 32, 48)).frames_THWC
    repeats = sum(np.array_equal(one, other) for one, other in pairwise(slow))
    assert repeats >= 3, "a video of 10 frames per second shows each twice at 20"


def test_a_late_clip_is_decoded_from_the_keyframe_before_it(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=size=80x60:rate=10"]
    subprocess.run([*command, "-t", "8", "-g", "10", "-pix_fmt", "yuv420p", str(path)], check=True)
    every = {time_s: frame.to_ndarray() for time_s, frame in folder_module._frames(path)}
    for begin_s in (0.0, 0.95, 3.0, 5.55, 7.9):
        late = list(folder_module._frames(path, begin_s))
        assert begin_s - 1.1 < late[0][0] <= begin_s
        assert late[-1][0] == max(every)
        assert all(np.array_equal(frame.to_ndarray(), every[time_s]) for time_s, frame in late)


def test_captions_are_drawn_from_all_there_are(videos: Path) -> None:
    source = _source(videos)
    said = {source.said(0, BUCKET, seeded("captions", number)).text for number in range(20)}
    assert said == {"coloured bars", "bars and a counter"}
    assert source.said(0, BUCKET, None).text == "coloured bars"
    assert source.said(0, BUCKET, None).attributes == {}


def test_unchanged_videos_are_decoded_once(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(videos, tmp_path / "videos.json")
    monkeypatch.setattr(folder_module, "_examined", lambda path: pytest.fail(f"{path} was decoded again"))
    assert scan(videos, tmp_path / "videos.json") == first


def test_held_out_videos_are_not_trained_on(tmp_path: Path) -> None:
    make_video(tmp_path / "v00.mp4", seconds=1.5)
    for number in range(1, 12):
        (tmp_path / f"v{number:02}.mp4").write_bytes((tmp_path / "v00.mp4").read_bytes())
    for number in range(12):
        (tmp_path / f"v{number:02}.txt").write_text(f"video {number}", encoding="utf-8")
    train, held_out, _ = open_folder(tmp_path, 8, 0.4, seed=1, memo=None)
    assert held_out is not None
    kept, away = ({video.name for video in each.videos} for each in (train, held_out))
    assert kept
    assert away
    assert not kept & away
    assert len(kept | away) == 12


def test_errors_name_the_file(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="no video to train on"):
        open_folder(tmp_path, 8, 0.0, 1, None)
    with pytest.raises(ConfigurationError, match=r"no video is long enough for 81 frames.*2\.9"):
        _source(videos).clip(0, Bucket(81, 32, 32))
    for line in ('{"file": "a.mp4"}', '{"file": "a.mp4", "caption": null}', '{"file": "a.mp4", "caption": " "}'):
        (tmp_path / "captions.jsonl").write_text(f"{line}\n", encoding="utf-8")
        with pytest.raises(ConfigurationError, match=r"captions\.jsonl, line 1"):
            scan(tmp_path)
    gone = _source(videos)
    with pytest.raises(ConfigurationError, match=r"bars\.mp4"):
        FolderSource(tmp_path, gone.videos, 8, 1).clip(0, BUCKET)
