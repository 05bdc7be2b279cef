"""One pass of ffmpeg: the mezzanine in, an H.264 MP4, a WebP of its middle and a JPEG of frames in rows out."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import ffmpeg
import imageio_ffmpeg

from vitascope_common.errors import CorruptMezzanineError, DeadlineError, InternalError
from vitascope_common.process import dying_with_parent
from vitascope_postproc.service import EncodePlan

CRF = 16
"""Visually lossless for clips as small as ours; a mezzanine has no grain that would make it expensive."""
KEYFRAME_S = 2
THUMBNAIL_MAX_PX = 640
SPRITE_COLUMNS, SPRITE_ROWS, SPRITE_MAX_PX = 4, 4, 160
"""The grid, and how wide each frame in it is at most. It is smaller for a video of fewer frames: every cell is full."""
INPUT_FAULTS = ("[ffv1", "[matroska")
"""How the lines begin that ffmpeg writes about a damaged mezzanine (FFV1 in Matroska)."""
POLL_S = 0.05
STALLED_S = 120.0
"""An encoder that writes no frame for so long is killed; another attempt may do better."""


class FfmpegEncoder:
    """Runs the bundled ffmpeg as a child that dies with us."""

    def __init__(self, executable: str | None = None) -> None:
        self._executable = executable or imageio_ffmpeg.get_ffmpeg_exe()

    def encode(self, plan: EncodePlan, on_frame: Callable[[int], None]) -> None:
        """Write both files of a plan. `on_frame` hears the frames written so far; what it raises ends the encoder.

        Raises: InternalError: ffmpeg failed; CorruptMezzanineError: what it read is damaged; DeadlineError: it stalled.
        """
        progress, errors = plan.video.with_suffix(".progress"), plan.video.with_suffix(".errors")
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                dying_with_parent(self._command(plan, progress)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            try:
                _follow(process, progress, on_frame)
            finally:
                process.kill()
                process.wait()
        lines = errors.read_text(errors="replace").strip().splitlines()
        if process.returncode != 0:
            raise InternalError(f"The encoder failed: {lines[-1][:300] if lines else process.returncode}")
        # A slice whose checksum is wrong is concealed, said, and otherwise no error to ffmpeg.
        faults = [line for line in lines if line.startswith(INPUT_FAULTS)]
        if faults:
            raise CorruptMezzanineError(f"The generated video was read with errors: {faults[0][:300]}")

    def _command(self, plan: EncodePlan, progress: Path) -> list[str]:
        # Matroska rounds times to milliseconds: frames are numbered anew, so that the rate is constant and exact.
        only = {"f": "matroska", "protocol_whitelist": "file", "codec_whitelist": "ffv1"}
        frames = ffmpeg.input(str(plan.source), **only)["v:0"]
        frames = frames.filter("settb", f"1/{plan.fps}").filter("setpts", "N")
        right_px, bottom_px = plan.width_px % 2, plan.height_px % 2
        if right_px or bottom_px:  # yuv420p has even sides; the last row and column are repeated
            frames = frames.filter("pad", plan.width_px + right_px, plan.height_px + bottom_px, 0, 0)
            frames = frames.filter("fillborders", right=right_px, bottom=bottom_px, mode="smear")
        each = frames.filter_multi_output("split", 3)
        video = each[0].filter(
            "scale", out_color_matrix="bt709", out_range="tv", flags="bicubic+accurate_rnd+full_chroma_int"
        )
        video = video.filter("format", "yuv420p").filter(
            "setparams", range="tv", color_primaries="bt709", color_trc="bt709", colorspace="bt709"
        )
        picture = each[1].filter("select", f"eq(n,{plan.num_frames // 2})")
        picture = picture.filter("scale", f"min({THUMBNAIL_MAX_PX},iw)", -1).filter("format", "bgra")
        num_columns = min(SPRITE_COLUMNS, plan.num_frames)
        num_rows = min(SPRITE_ROWS, plan.num_frames // num_columns)
        num_sprites = num_columns * num_rows
        evenly = f"lt(mod(n*{num_sprites},{plan.num_frames}),{num_sprites})"  # the first, and every so many-th
        sprites = each[2].filter("select", evenly).filter("scale", f"min({SPRITE_MAX_PX},iw)", -2)
        sprites = sprites.filter("tile", f"{num_columns}x{num_rows}")
        outputs = ffmpeg.merge_outputs(
            video.output(
                str(plan.video),
                format="mp4",
                vcodec="libx264",
                preset="medium",
                crf=CRF,
                g=plan.fps * KEYFRAME_S,
                r=plan.fps,
                fps_mode="cfr",
                movflags="+faststart",
                map_metadata=-1,
            ),
            picture.output(
                str(plan.thumbnail),
                **{"format": "webp", "c:v": "libwebp", "quality": 85, "frames:v": 1},
                map_metadata=-1,
            ),
            sprites.output(
                str(plan.spritesheet),
                **{"format": "mjpeg", "c:v": "mjpeg", "q:v": 4, "pix_fmt": "yuvj420p", "frames:v": 1},
                map_metadata=-1,
            ),
        ).global_args("-v", "error", "-xerror", "-nostdin", "-nostats", "-progress", str(progress), "-y")
        command: list[str] = ffmpeg.compile(outputs, cmd=self._executable)
        return command


def _follow(process: "subprocess.Popen[bytes]", progress: Path, on_frame: Callable[[int], None]) -> None:
    num_frames, moved_at = 0, time.monotonic()
    while True:
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            found = _frames_written(progress)
            if found > num_frames:
                num_frames, moved_at = found, time.monotonic()
            elif time.monotonic() - moved_at > STALLED_S:
                raise DeadlineError(f"The encoder wrote no frame for {STALLED_S:.0f} s.") from None
            on_frame(num_frames)
        else:
            return


def _frames_written(progress: Path) -> int:
    """Read the newest `frame=N` line; a half-written one counts as none."""
    try:
        lines = progress.read_text(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return 0
    frames = [line.removeprefix("frame=").strip() for line in lines if line.startswith("frame=")]
    return int(frames[-1]) if frames and frames[-1].isdecimal() else 0
