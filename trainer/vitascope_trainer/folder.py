"""A folder of video files with captions beside them, as a source of clips.

A caption lies in a text file of the video's name (`waves.mp4`, `waves.txt`: one caption per line, any of which may be
used), or in `captions.jsonl` as lines of `{"file": "waves.mp4", "caption": "..."}`.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from vitascope_common.errors import ConfigurationError
from vitascope_common.files import atomic_write
from vitascope_trainer.seeds import seeded
from vitascope_trainer.sources import Bucket, Bytes, Clip, Said

SUFFIXES = frozenset((".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".gif"))
_CAPTIONS = "captions.jsonl"


@dataclass(frozen=True)
class Video:
    """A readable file with at least one caption."""

    name: str
    sha256: str
    duration_s: float
    """From the first frame to the last."""
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """What a folder holds: the videos in the order of their names, and why the others were passed over."""

    videos: tuple[Video, ...]
    skipped: Mapping[str, str]


def scan(folder: Path, memo: Path | None = None) -> Scan:
    """Decode every video of a folder once; `memo` keeps what was found, so that unchanged files are not decoded again.

    Raises:
        ConfigurationError: there is no such folder, or `captions.jsonl` has a line that is not as described above.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"data.folder: there is no folder {folder}.", param="data.folder")
    listed = _listed_captions(folder / _CAPTIONS)
    known = _read_memo(memo)
    fresh: dict[str, dict[str, Any]] = {}
    videos, skipped = [], {}
    for name in sorted(listed):
        if not (folder / name).is_file() or Path(name).name != name:
            skipped[name] = f"{_CAPTIONS} names it, and it is no file of the folder itself"
        elif Path(name).suffix.lower() not in SUFFIXES:
            skipped[name] = f"its name ends in none of {', '.join(sorted(SUFFIXES))}"
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        captions = (*listed.get(path.name, ()), *_captions_beside(path))
        if not captions:
            skipped[path.name] = f"it has no caption: neither {path.stem}.txt nor a line of {_CAPTIONS}"
            continue
        status = path.stat()
        stamp = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        found = known.get(path.name)
        if found is None or found["stamp"] != stamp:
            found = {"stamp": stamp} | _examined(path)
        fresh[path.name] = found
        if found["problem"]:
            skipped[path.name] = found["problem"]
        else:
            videos.append(Video(path.name, found["sha256"], found["duration_s"], captions))
    if memo is not None and fresh != known:
        atomic_write(memo, json.dumps(fresh).encode())
    return Scan(tuple(videos), skipped)


def _examined(path: Path) -> dict[str, Any]:
    try:
        last = 0.0
        for time_s, _ in _frames(path):
            last = time_s
        return {"sha256": _sha256(path), "duration_s": last, "problem": ""}
    except (av.FFmpegError, OSError, ValueError) as error:
        return {"sha256": "", "duration_s": 0.0, "problem": f"it cannot be decoded: {error}"}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_memo(memo: Path | None) -> dict[str, dict[str, Any]]:
    if memo is None or not memo.exists():
        return {}
    known: dict[str, dict[str, Any]] = json.loads(memo.read_text(encoding="utf-8"))
    return known


def _captions_beside(path: Path) -> tuple[str, ...]:
    beside = path.with_suffix(".txt")
    if not beside.exists():
        return ()
    try:
        lines = beside.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{beside}: not UTF-8 text.") from error
    return tuple(line.strip() for line in lines if line.strip())


def _listed_captions(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if not path.exists():
        return found
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file, caption = entry["file"], entry["caption"]
            if not (isinstance(file, str) and isinstance(caption, str) and caption.strip()):
                raise ValueError("not strings")
            found.setdefault(file, []).append(caption.strip())
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f'{path}, line {number}: need {{"file": ..., "caption": ...}}.') from error
    return found


def _frames(path: Path, begin_s: float = 0.0) -> Iterator[tuple[float, Any]]:
    """Yield the frames of a file's first video stream with their times, in seconds since the first one.

    Those before the last keyframe that lies at `begin_s` or earlier may be left out.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        first = next(container.decode(video=0), None)
        if first is None:
            raise ValueError("it has no frames")
        begin = _time(first)
        try:
            container.seek(round((begin + begin_s) * av.time_base))
            found = next(container.decode(video=0), None)
            has_sought = found is not None and _time(found) - begin <= begin_s
        except av.FFmpegError:
            has_sought = False
    with av.open(str(path)) as container:
        if has_sought and begin_s > 0:
            container.seek(round((begin + begin_s) * av.time_base))
        for frame in container.decode(video=0):
            yield _time(frame) - begin, frame


def _time(frame: Any) -> float:
    if frame.time is None:
        raise ValueError("its frames have no times")
    return float(frame.time)


@dataclass(frozen=True)
class FolderSource:
    """Cuts clips out of the videos of a folder; the n-th use of a video takes another part of it."""

    folder: Path
    videos: tuple[Video, ...]
    fps: int
    seed: int
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def clip(self, index: int, bucket: Bucket) -> Clip:
        """Cut a clip, scaled to cover the bucket's size and cropped in the middle.

        Raises:
            ConfigurationError: no video is long enough, or one cannot be read any more; names it.
        """
        video, round_ = self._video(index, bucket)
        needed_s = self.seconds(bucket.num_frames)
        begin_s = seeded("window", self.seed, round_, video.name, bucket).uniform(0.0, video.duration_s - needed_s)
        path = self.folder / video.name
        try:
            frames = _cut(path, begin_s, self.fps, bucket)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ConfigurationError(f"{path} could be read before and cannot be now: {error}") from error
        return Clip(frames)

    def said(self, index: int, bucket: Bucket, rng: random.Random | None) -> Said:
        """Give one of the video's captions, without `rng` the first."""
        video, _ = self._video(index, bucket)
        return Said(video.captions[0] if rng is None else rng.choice(video.captions))

    def fingerprint(self, bucket: Bucket) -> str:
        """Hash the files' content and what decides how they are cut."""
        files = [(video.name, video.sha256) for video in self.videos]
        return hashlib.sha256(json.dumps([files, self.fps, self.seed, str(bucket)]).encode()).hexdigest()

    @property
    def content_sha256(self) -> str:
        """Hash the files' content, and their captions."""
        return hashlib.sha256(
            json.dumps([(each.name, each.sha256, each.captions) for each in self.videos]).encode()
        ).hexdigest()

    @property
    def longest_s(self) -> float:
        """Give the duration of the longest video."""
        return max((video.duration_s for video in self.videos), default=0.0)

    def seconds(self, num_frames: int) -> float:
        """Give the time from the first to the last of so many frames."""
        return (num_frames - 1) / self.fps

    def fitting(self, num_frames: int) -> list[Video]:
        """Give the videos that are long enough for clips of so many frames.

        Raises:
            ConfigurationError: there is none.
        """
        needed_s = self.seconds(num_frames)
        found = [video for video in self.videos if video.duration_s >= needed_s]
        if not found:
            raise ConfigurationError(
                f"{self.folder}: no video is long enough for {num_frames} frames at {self.fps} fps "
                f"({needed_s:.2f} s); the longest of {len(self.videos)} has {self.longest_s:.2f} s. Shorter clips are "
                "a matter of vae.lengths and dit.buckets; a higher data.fps takes less time for as many frames."
            )
        return found

    def _video(self, index: int, bucket: Bucket) -> tuple[Video, int]:
        """Give the video of a clip and how many of that video's clips come before."""
        fitting = self.fitting(bucket.num_frames)
        round_, place = divmod(index, len(fitting))
        return fitting[place], round_


def _cut(path: Path, begin_s: float, fps: int, bucket: Bucket) -> Bytes:
    """Take the frames shown at `begin_s` and every 1/fps from there."""
    wanted_s = begin_s + np.arange(bucket.num_frames) / fps + 1e-6
    pictures: list[Bytes] = []
    shown = None
    for time_s, frame in _frames(path, begin_s):
        while shown is not None and len(pictures) < bucket.num_frames and wanted_s[len(pictures)] < time_s:
            pictures.append(_fitted(shown, bucket))
        if len(pictures) == bucket.num_frames:
            return np.stack(pictures)
        shown = frame
    while len(pictures) < bucket.num_frames:  # rounding: the last one or two lie at the very end
        pictures.append(_fitted(shown, bucket))
    return np.stack(pictures)


def _fitted(frame: Any, bucket: Bucket) -> Bytes:
    """Scale a frame until it covers the bucket's size, and crop it in the middle."""
    factor = max(bucket.width / frame.width, bucket.height / frame.height)
    width, height = (
        max(side, round(factor * old))
        for side, old in zip((bucket.width, bucket.height), (frame.width, frame.height), strict=True)
    )
    picture: Bytes = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    top, left = (height - bucket.height) // 2, (width - bucket.width) // 2
    return picture[top : top + bucket.height, left : left + bucket.width]


def open_folder(
    folder: Path, fps: int, held_out_share: float, seed: int, memo: Path | None
) -> tuple[FolderSource, FolderSource | None, Scan]:
    """Open a folder: what is trained on, what is held out (None if nothing), and the scan, for its report.

    Which videos are held out depends on their names alone.

    Raises:
        ConfigurationError: there is nothing to train on.
    """
    found = scan(folder, memo)
    kept: list[Video] = []
    held_out: list[Video] = []
    for video in found.videos:
        is_held_out = zlib.crc32(video.name.encode()) % 10_000 < 10_000 * held_out_share
        (held_out if is_held_out else kept).append(video)
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(found.skipped.items())[:3])
        raise ConfigurationError(
            f"data.folder: {folder} has no video to train on; {len(found.skipped)} files skipped, "
            f"{len(held_out)} held out. {reasons}".rstrip(),
            param="data.folder",
        )
    train = FolderSource(folder, tuple(kept), fps, seed)
    return train, FolderSource(folder, tuple(held_out), fps, seed) if held_out else None, found
