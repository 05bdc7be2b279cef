"""The mezzanine: raw RGB frames through a pipe into ffmpeg, FFV1 in Matroska, lossless."""

import contextlib
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import imageio_ffmpeg
from torch import Tensor

from vitascope_common.errors import ConfigurationError
from vitascope_gpu_worker.errors import EncoderError, InvalidFramesError

MEDIA_TYPE = "video/x-matroska"
END_TIMEOUT_S = 120.0


def find_ffmpeg() -> str:
    """Return the path of ffmpeg. Raises: ConfigurationError: there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ConfigurationError("There is no ffmpeg: install the package imageio-ffmpeg, or ffmpeg itself.") from error


class Mezzanine:
    """A lossless video file under construction; holds one frame at a time. Leaving the block early kills ffmpeg.

    with Mezzanine(path, 64, 64, 8, ffmpeg) as mezzanine:
        mezzanine.write(frames_THWC)
        mezzanine.finish(num_frames)
    """

    def __init__(self, path: Path, width_px: int, height_px: int, fps: int, ffmpeg: str) -> None:
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
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — closed in __exit__
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise EncoderError(f"ffmpeg could not be started: {error.strerror}.") from error

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End ffmpeg, if `finish` has not."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._close_stdin()
        self._errors.close()

    def write(self, frames_THWC: Tensor) -> None:
        """Append frames, uint8. Raises: InvalidFramesError, EncoderError."""
        if tuple(frames_THWC.shape[1:]) != self._shape:
            raise InvalidFramesError(
                f"The decoder gave frames of {list(frames_THWC.shape[1:])}, not {list(self._shape)}."
            )
        for frame_HWC in frames_THWC.contiguous().numpy():
            try:
                self._process.stdin.write(frame_HWC.data)  # type: ignore[union-attr]
            except OSError as error:
                raise self._failed() from error
            self._num_frames += 1

    def finish(self, num_frames: int) -> None:
        """Complete the file. Raises: InvalidFramesError: not `num_frames` were written; EncoderError."""
        if self._num_frames != num_frames:
            raise InvalidFramesError(f"The decoder gave {self._num_frames} frames, not {num_frames}.")
        self._close_stdin()
        try:
            status = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise EncoderError(f"ffmpeg did not end within {END_TIMEOUT_S:.0f} s.") from error
        if status != 0:
            raise self._failed()

    def _failed(self) -> EncoderError:
        if self._process.poll() is None:
            self._process.kill()
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return EncoderError(f"ffmpeg ended with status {status}: {lines[-1][:200] if lines else 'no message'}")

    def _close_stdin(self) -> None:
        with contextlib.suppress(OSError):  # ffmpeg is gone; its status says so
            self._process.stdin.close()  # type: ignore[union-attr]
