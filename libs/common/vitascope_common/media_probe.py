"""Untrusted clips: what is in them, and their frames as a file of our own. No byte of them is decoded in this process.

A child decodes (media_decoder.py), one per file, with PyAV. imageio-ffmpeg brings no ffprobe, and what ffmpeg prints is
for people; PyAV gives figures, and lets the file be a descriptor instead of a name. So the child needs nothing that it
could open: once the libraries are loaded it gives up opening any file or socket at all, and has so much CPU time and
memory as it is told. A playlist in disguise, a reference to another file or a URL inside then lead nowhere.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from vitascope_common.errors import (
    ConfigurationError,
    DeadlineError,
    InternalError,
    InvalidMediaError,
    UnavailableError,
)
from vitascope_common.media_decoder import ALLOWED, PROGRAM

CLIP_MEDIA_TYPE = "video/x-matroska"
"""Of what `read_clip` writes: FFV1, every frame a key frame, as the gpu-worker writes and reads it."""

POLL_S = 0.05

_log = structlog.stdlib.get_logger("vitascope.media")


@dataclass(frozen=True)
class MediaLimits:
    """How large a file may be, and how much work."""

    max_bytes: int
    max_pixels: int  # of one frame
    max_duration_s: float
    max_frames: int
    cpu_s: int = 20
    wall_s: float = 60.0
    memory_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class MediaInfo:
    """What a clip holds; of its first video track."""

    container: str  # mp4, mov, webm or matroska
    codec: str
    width_px: int
    height_px: int
    num_frames: int
    duration_s: float
    fps: float
    """On average."""
    has_audio: bool
    num_bytes: int


@dataclass(frozen=True)
class Clip:
    """A clip as jobs are made from it: `read_clip` wrote it."""

    source: MediaInfo
    width_px: int
    height_px: int
    fps: int
    num_frames: int


def probe(
    source: Path | bytes, limits: MediaLimits, *, is_whole: bool = True, check: Callable[[], None] = lambda: None
) -> MediaInfo:
    """Decode a clip and return what it holds. Takes 0.1 s and what the decoding takes.

    Not `is_whole`: only the first and the last frame are decoded, and every packet counts as a frame. `check` is called
    while the child is waited for; it may raise to end the waiting, and the child.

    Raises:
        InvalidMediaError: no clip of an allowed kind, damaged, or over a limit.
        DeadlineError, UnavailableError: the machine is too busy; nothing is known about the clip.
    """
    with _opened(source) as file:
        num_bytes = _size(file, limits)
        found = _decode(file, None, limits, {"is_whole": is_whole}, check)
    return _info(found, num_bytes)


def read_clip(
    source: Path | bytes,
    target: Path,
    limits: MediaLimits,
    *,
    width_px: int,
    height_px: int,
    fps: int,
    num_frames: int,
    is_end: bool = False,
) -> Clip:
    """Write the first `num_frames` of a clip to a file, or with `is_end` its last; fewer when it has fewer.

    Upright, covering the size, their middle, at `fps` frames per second, without sound: `CLIP_MEDIA_TYPE`. The clip is
    decoded whole, whatever is taken of it.

    Raises:
        InvalidMediaError: as for `probe`; no file is left then.
        DeadlineError, UnavailableError: the machine is too busy.
    """
    clip = {"width_px": width_px, "height_px": height_px, "fps": fps, "num_frames": num_frames, "is_end": is_end}
    try:
        with _opened(source) as file, target.open("wb") as written:
            num_bytes = _size(file, limits)
            found = _decode(file, written, limits, {"is_whole": True, "clip": clip}, lambda: None)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Clip(_info(found, num_bytes), width_px, height_px, fps, found["num_written"])


def _opened(source: Path | bytes) -> BinaryIO:
    if isinstance(source, Path):
        if not source.is_file():  # a pipe or a device would be read for ever
            raise InvalidMediaError("The clip is no file.")
        return source.open("rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 — the caller closes it
    file.write(source)
    file.seek(0)
    return file


def _size(file: BinaryIO, limits: MediaLimits) -> int:
    num_bytes = os.fstat(file.fileno()).st_size
    if not num_bytes:
        raise InvalidMediaError(f"The clip is empty; it must be {ALLOWED}.")
    if num_bytes > limits.max_bytes:
        raise InvalidMediaError(f"The clip has {num_bytes} bytes; at most {limits.max_bytes} are allowed.")
    return num_bytes


def _decode(
    file: BinaryIO, target: BinaryIO | None, limits: MediaLimits, order: Mapping[str, Any], check: Callable[[], None]
) -> dict[str, Any]:
    """Run the child and return what it says."""
    fds = () if target is None else (target.fileno(),)
    library = importlib.util.find_spec("av")
    if library is None or library.origin is None:
        raise ConfigurationError("Clips cannot be read here: the package av is not installed.")
    order = {
        **order,
        **asdict(limits),
        "parent": os.getpid(),
        "packages": [str(Path(library.origin).parents[1]), str(Path(__file__).parents[1])],
        "target_fd": fds[0] if fds else None,
    }
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, json.dumps(order)]
    deadline_s = time.monotonic() + limits.wall_s
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=file, stdout=pipe, stderr=pipe, pass_fds=fds, env={}) as process:
        try:
            answer, errors = _wait(process, deadline_s, check)
        finally:
            process.kill()  # nothing, if it has ended
    if process.returncode == -signal.SIGXCPU:
        raise InvalidMediaError(f"The clip takes more than {limits.cpu_s} s to decode.")
    if -process.returncode in (signal.SIGKILL, signal.SIGTERM):  # by an operator, or for want of memory
        raise UnavailableError("The reading of the clip was interrupted; try again.")
    if process.returncode < 0:  # a file that breaks the decoder itself
        raise InvalidMediaError("The clip is damaged: it cannot be decoded.")
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError:
        _log.error("media.decoder_failed", error=errors.decode(errors="replace")[-1000:])
        raise InternalError("The clip could not be read.") from None
    if "fault" in found:
        raise InvalidMediaError(found["fault"])
    return found


def _wait(process: "subprocess.Popen[bytes]", deadline_s: float, check: Callable[[], None]) -> tuple[bytes, bytes]:
    while True:
        try:
            return process.communicate(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            check()
            if time.monotonic() >= deadline_s:
                raise DeadlineError("The clip could not be read in time; the machine is too busy.") from None


def _info(found: Mapping[str, Any], num_bytes: int) -> MediaInfo:
    return MediaInfo(
        container=found["container"],
        codec=found["codec"],
        width_px=found["width_px"],
        height_px=found["height_px"],
        num_frames=found["num_frames"],
        duration_s=found["duration_s"],
        fps=float(Fraction(*found["fps"])),
        has_audio=found["has_audio"],
        num_bytes=num_bytes,
    )
