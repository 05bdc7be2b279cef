"""The mezzanine: raw RGB frames through a pipe into ffmpeg, FFV1 in Matroska, lossless."""

import contextlib
import errno
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import imageio_ffmpeg
from torch import Tensor

from vitascope_common.errors import ConfigurationError
from vitascope_gpu_worker.errors import DiskFullError, EncoderError, InvalidFramesError

MEDIA_TYPE = "video/x-matroska"
STALL_S = 30.0
"""How long ffmpeg may take nothing, or not end, before it counts as hung."""
POLL_S = 0.05
FULL = (errno.ENOSPC, errno.EDQUOT)
KILL_S = 5.0
"""How long a killed ffmpeg is waited for; one that hangs in the kernel outlives even that."""


def find_ffmpeg() -> str:
    """Return the path of ffmpeg. Raises: ConfigurationError: there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ConfigurationError("There is no ffmpeg: install the package imageio-ffmpeg, or ffmpeg itself.") from error


class Mezzanine:
    """A lossless video file under construction; holds one frame at a time. Leaving the block early kills ffmpeg.

    with Mezzanine(path, 64, 64, 8, ffmpeg) as mezzanine:
        mezzanine.write(frames_THWC, check)
        mezzanine.finish(num_frames, check)

    `check` is called while ffmpeg is waited for; it may raise to end the waiting.
    """

    def __init__(self, path: Path, width_px: int, height_px: int, fps: int, ffmpeg: str) -> None:
        self._path = path
        self._shape = (height_px, width_px, 3)
        self._num_frames = 0
        command = [ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "error", "-y"]
        command += [
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width_px}x{height_px}",
            "-r",
            str(fps),
            "-i",
            "pipe:0",
        ]
        # Every frame a key frame, a CRC per slice; bgr0 because FFV1 keeps RGB as it is, without a matrix.
        command += ["-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1", "-pix_fmt", "bgr0"]
        command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", "matroska", str(path)]
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — closed in __exit__
        except OSError as error:
            raise _failed_to_begin(error) from error
        try:
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise _failed_to_begin(error) from error
        os.set_blocking(self._stdin, False)  # a pipe that nobody empties must not hold this thread

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End ffmpeg, if `finish` has not."""
        self._kill()
        self._close_stdin()
        self._errors.close()

    def write(self, frames_THWC: Tensor, check: Callable[[], None]) -> None:
        """Append frames, uint8. Raises: InvalidFramesError, EncoderError, DiskFullError."""
        if tuple(frames_THWC.shape[1:]) != self._shape:
            raise InvalidFramesError(
                f"The decoder gave frames of {list(frames_THWC.shape[1:])}, not {list(self._shape)}."
            )
        for frame_HWC in frames_THWC.contiguous().numpy():
            self._send(memoryview(frame_HWC).cast("B"), check)
            self._num_frames += 1

    def finish(self, num_frames: int, check: Callable[[], None]) -> None:
        """Complete the file. Raises: InvalidFramesError: not `num_frames` were written; EncoderError, DiskFullError."""
        if self._num_frames != num_frames:
            raise InvalidFramesError(f"The decoder gave {self._num_frames} frames, not {num_frames}.")
        self._close_stdin()
        deadline_s = time.monotonic() + STALL_S
        while self._process.poll() is None:
            self._wait_on(deadline_s, check)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
        if self._process.returncode != 0:
            raise self._failed()
        if not self._path.is_file() or not self._path.stat().st_size:
            raise EncoderError("ffmpeg ended well and wrote nothing.")

    @property
    def _stdin(self) -> int:
        return self._process.stdin.fileno()  # type: ignore[union-attr]

    def _send(self, data: memoryview, check: Callable[[], None]) -> None:
        poll, deadline_s = select.poll(), time.monotonic() + STALL_S
        poll.register(self._stdin, select.POLLOUT)
        while data:
            if not poll.poll(POLL_S * 1000):
                self._wait_on(deadline_s, check)
                continue
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._failed() from error
            deadline_s = time.monotonic() + STALL_S

    def _wait_on(self, deadline_s: float, check: Callable[[], None]) -> None:
        check()
        if time.monotonic() >= deadline_s:
            self._kill()
            raise EncoderError(f"ffmpeg hung: it did nothing for {STALL_S:.0f} s.")

    def _kill(self) -> int | None:
        """Return ffmpeg's status; it is killed if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)
        return self._process.returncode

    def _failed(self) -> EncoderError | DiskFullError:
        status = self._kill()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        # ffmpeg ends with the low byte of its negative error number; its words may have found no space either.
        if any(status == 256 - number or os.strerror(number) in said for number in FULL):
            return DiskFullError()
        lines = said.splitlines()
        return EncoderError(f"ffmpeg ended with status {status}: {lines[-1][:200] if lines else 'no message'}")

    def _close_stdin(self) -> None:
        with contextlib.suppress(OSError):  # ffmpeg is gone; its status says so
            self._process.stdin.close()  # type: ignore[union-attr]


def _failed_to_begin(error: OSError) -> EncoderError | DiskFullError:
    if error.errno in FULL:
        return DiskFullError()
    return EncoderError(f"ffmpeg could not be started: {error.strerror}.")
