"""What a clip is made from: pictures by Pillow, clips by ffmpeg, as frames of the clip's own size and rate."""

import contextlib
import io
import os
import select
import subprocess
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy
import torch
from PIL import Image
from torch import Tensor

from vitascope_common.errors import InvalidRequestError
from vitascope_gpu_worker.errors import EncoderError
from vitascope_gpu_worker.references import WantedFrames

DEMUXERS = {"video/x-matroska": "matroska", "video/mp4": "mp4"}
"""What our own services write; ffmpeg is not left to guess."""
POLL_S = 0.05


class References:
    """Reads the references of a task."""

    def __init__(self, ffmpeg: str) -> None:
        self._ffmpeg = ffmpeg

    def picture(self, data: bytes, width_px: int, height_px: int) -> Tensor:
        """Return a picture of this size, as it was stored with its job: uint8 (H, W, 3).

        Raises:
            InvalidRequestError: no PNG, or of another size.
        """
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
                size_px = opened.size
                pixels = numpy.array(opened.convert("RGB")) if size_px == (width_px, height_px) else None
        except Exception as error:  # a damaged file makes decoders raise anything
            raise InvalidRequestError("A picture that this clip is made from cannot be decoded.") from error
        if pixels is None:
            raise InvalidRequestError(
                f"A picture that this clip is made from has {size_px[0]} x {size_px[1]} pixels, not the clip's "
                f"{width_px} x {height_px}."
            )
        return torch.from_numpy(pixels)

    def clip(self, wanted: WantedFrames, *, is_end: bool = False) -> Tensor:
        """Return the first frames of a clip, or with `is_end` its last: uint8 (T, H, W, 3).

        Covering the size, their middle; fewer when the clip has fewer. What ends the waiting ends ffmpeg.

        Raises:
            InvalidRequestError: no clip of ours.
            EncoderError: ffmpeg could not be started.
        """
        # A quarter of a frame before one begins: rounded times do not move it out. A shorter clip is read whole.
        begin = ["-sseof", f"-{(wanted.num_frames + 1.25) / wanted.fps:.6f}"] if is_end else []
        end = [] if is_end else ["-frames:v", str(wanted.num_frames)]
        frames = deque(self._frames(wanted, begin, end), maxlen=wanted.num_frames)
        if not frames:
            raise InvalidRequestError("A clip that this clip is made from cannot be decoded.")
        return torch.stack([*frames])

    def beginning(self, wanted: WantedFrames) -> Generator[Tensor]:
        """Yield the first frames of a clip one by one, uint8 (1, H, W, 3), read as `clip` does: it may be a long one.

        Raises:
            InvalidRequestError: no clip of ours, or a shorter one.
            EncoderError: ffmpeg could not be started.
        """
        num_read = 0
        for frame_HWC in self._frames(wanted, [], ["-frames:v", str(wanted.num_frames)]):
            yield frame_HWC[None]
            num_read += 1
        if num_read < wanted.num_frames:
            raise InvalidRequestError(
                f"The clip that this one continues has {num_read} frames, not {wanted.num_frames}."
            )

    def _frames(self, wanted: WantedFrames, begin: Sequence[str], end: Sequence[str]) -> Iterator[Tensor]:
        """Yield frames, uint8 (H, W, 3), between what ffmpeg is told of the beginning and of the end."""
        demuxer = DEMUXERS.get(wanted.media_type)
        if demuxer is None:
            raise InvalidRequestError(f"A clip must be one of {', '.join(DEMUXERS)}, not {wanted.media_type[:60]}.")
        width_px, height_px = wanted.size_px
        cover = f"scale={width_px}:{height_px}:force_original_aspect_ratio=increase:flags=lanczos"
        command = [self._ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file,pipe"]
        command += [*begin, "-f", demuxer, "-i", str(wanted.path), "-an", "-sn", "-dn"]
        command += ["-vf", f"fps={wanted.fps},{cover},crop={width_px}:{height_px},format=rgb24"]
        command += [*end, "-f", "rawvideo", "pipe:1"]
        try:
            for data in _read(command, width_px * height_px * 3, wanted.check):
                pixels = numpy.frombuffer(bytearray(data), dtype=numpy.uint8)
                yield torch.from_numpy(pixels.reshape(height_px, width_px, 3))
        except OSError as error:
            raise EncoderError(f"ffmpeg could not be started: {error.strerror}.") from error


def _read(command: Sequence[str], num_bytes: int, check: Callable[[], None]) -> Iterator[bytes]:
    """Yield the frames, of so many bytes each, that ffmpeg writes; it is killed when anything else happens.

    Raises:
        InvalidRequestError: it failed.
        OSError: it could not be started.
    """
    process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        try:
            pipe, frame, poll = process.stdout.fileno(), bytearray(), select.poll()  # type: ignore[union-attr]
            poll.register(pipe, select.POLLIN)
            while True:
                check()
                if not poll.poll(POLL_S * 1000):
                    continue
                chunk = os.read(pipe, num_bytes - len(frame))
                if not chunk:
                    break
                frame += chunk
                if len(frame) == num_bytes:
                    yield bytes(frame)
                    frame.clear()
            while process.poll() is None:
                check()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
        finally:
            process.kill()  # nothing, if it has ended
    if process.returncode != 0:
        raise InvalidRequestError("A clip that this clip is made from cannot be decoded.")
