"""What media files really hold, by decoding them (PyAV); it stands in for ffprobe."""

from pathlib import Path

import av

from vitascope_common.errors import CorruptObjectError
from vitascope_postproc.service import MediaFacts


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
