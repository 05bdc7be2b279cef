"""What media files really hold, by decoding them (PyAV); it stands in for ffprobe."""

from collections.abc import Callable
from pathlib import Path

import av

from vitascope_common.errors import CorruptObjectError, InvalidMediaError
from vitascope_common.media_probe import MediaLimits, probe
from vitascope_postproc.service import EncodePlan, MediaFacts

GLANCE_S = 30
WHOLE_S = 600


class MediaInspector:
    """Decodes a file from end to end."""

    def inspect(self, path: Path) -> MediaFacts:
        """Return the facts of a file's first video track. Raises CorruptObjectError: it cannot be decoded."""
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                num_frames, width_px, height_px = 0, 0, 0
                for frame in container.decode(stream):
                    num_frames += 1
                    width_px, height_px = frame.width, frame.height
                duration_s = float((stream.duration or 0) * (stream.time_base or 0))
                return MediaFacts(stream.codec_context.name, width_px, height_px, num_frames, duration_s)
        except (av.FFmpegError, IndexError, OSError) as error:
            raise CorruptObjectError(f"{path.name} cannot be decoded: {error}") from error

    def look_at_source(self, plan: EncodePlan, check: Callable[[], None], *, is_whole: bool) -> MediaFacts:
        """Return the facts of a mezzanine; see `Inspector`."""
        num_pixels, limit_s = plan.width_px * plan.height_px, WHOLE_S if is_whole else GLANCE_S
        limits = MediaLimits(  # with room to say how far it is from what was ordered
            max_bytes=2**20 + 5 * num_pixels * plan.num_frames,
            max_pixels=4 * num_pixels,
            max_duration_s=2 + 2 * plan.num_frames / plan.fps,
            max_frames=16 + 2 * plan.num_frames,
            cpu_s=limit_s,
            wall_s=limit_s,
        )
        try:
            found = probe(plan.source, limits, is_whole=is_whole, check=check)
        except InvalidMediaError as error:
            raise CorruptObjectError(error.message) from error
        return MediaFacts(found.codec, found.width_px, found.height_px, found.num_frames, found.duration_s)
