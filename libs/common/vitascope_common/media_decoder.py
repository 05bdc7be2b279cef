"""The child of media_probe.py: decodes the one clip that it is given as standard input, and says what is in it.

Its argument is an order in JSON, its output the answer in JSON. It dies with its parent.
"""

import json
import os
import resource
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from vitascope_common.errors import InvalidMediaError
from vitascope_common.process import die_with_parent

PROGRAM = """
import json, sys
sys.path += json.loads(sys.argv[1])["packages"]
from vitascope_common import media_decoder
media_decoder.main()
"""
"""How an isolated Python becomes the child: its argument is the order."""
ALLOWED = "MP4, MOV, WebM or Matroska with H.264, HEVC, VP8, VP9, AV1 or FFV1"
# What a decoder is called in libavcodec -> what people call the format; none of these reads anything but its packets.
DECODERS: Mapping[str, str] = {
    "h264": "h264",
    "hevc": "hevc",
    "vp8": "vp8",
    "libvpx": "vp8",
    "vp9": "vp9",
    "libvpx-vp9": "vp9",
    "av1": "av1",
    "libdav1d": "av1",
    "ffv1": "ffv1",
}
MATROSKA = b"\x1a\x45\xdf\xa3"
HEAD_BYTES = 64
MAX_TRACKS = 16
NOTHING = "none"
"""The name of a protocol that does not exist: the only one that is allowed."""
TARGET_FD = 3
TURNS: Mapping[int, tuple[tuple[str, str], ...]] = {
    90: (("transpose", "cclock"),),
    180: (("hflip", ""), ("vflip", "")),
    270: (("transpose", "clock"),),
}
"""Filters that set a frame upright, by how far it is turned anticlockwise."""


def main() -> None:
    """Answer on standard output; ends the process without any tidying that a broken library could hang in."""
    order = json.loads(sys.argv[1])
    die_with_parent()
    if os.getppid() != order["parent"]:
        os._exit(1)
    import av
    import av.filter
    import av.subtitles.stream  # which any open imports, and by then nothing can be

    av.logging.set_level(None)  # what the libraries have to say is no answer
    lock(order)
    try:
        answer = examine(av, order)
    except InvalidMediaError as error:
        answer = {"fault": error.message}
    except MemoryError:
        answer = {"fault": f"The clip needs more than {order['memory_bytes']} bytes of memory to decode."}
    except (av.FFmpegError, ArithmeticError, LookupError, ValueError):  # a damaged file makes anything happen
        answer = {"fault": "The clip is damaged: it begins like a clip, but cannot be decoded."}
    os.write(1, json.dumps(answer).encode())
    os._exit(0)


def lock(order: Mapping[str, Any]) -> None:
    """Give up opening anything, and all but a bounded amount of work. Everything needed is loaded by now."""
    last_fd = 2
    if order["target_fd"] is not None:
        last_fd = TARGET_FD
        os.dup2(order["target_fd"], last_fd)
    os.closerange(last_fd + 1, 1024)
    for what, limit in (
        (resource.RLIMIT_NOFILE, last_fd + 1),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, order["memory_bytes"]),
    ):
        limit = at_most(what, limit)
        resource.setrlimit(what, (limit, limit))
    # The softer one comes with a signal of its own, so that nothing else is taken for it.
    hard_s = at_most(resource.RLIMIT_CPU, order["cpu_s"] + 5)
    resource.setrlimit(resource.RLIMIT_CPU, (min(order["cpu_s"], hard_s), hard_s))


def at_most(what: int, limit: int) -> int:
    """Return a limit that may be set: one that holds already can only be lowered."""
    hard = resource.getrlimit(what)[1]
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def examine(av: Any, order: Mapping[str, Any]) -> dict[str, Any]:
    """Open, decode, and write a clip if one is wanted; returns the answer. Raises InvalidMediaError."""
    file = os.fdopen(0, "rb")
    container_name, demuxer = kind_of(file.read(HEAD_BYTES))
    file.seek(0)
    guards = {
        "protocol_whitelist": NOTHING,
        "format_whitelist": demuxer,
        "codec_whitelist": ",".join(DECODERS),
        "max_streams": str(MAX_TRACKS),
    }
    # Decoders count their padding too; what they get past this is judged exactly, and fits into the memory allowed.
    track_guards = {"max_pixels": str(4 * order["max_pixels"] + 2**16), "threads": "1"}
    with av.open(
        file,
        format=demuxer,
        container_options=guards,
        stream_options=[track_guards] * MAX_TRACKS,
        metadata_errors="replace",
        io_open=refuse,
    ) as container:
        stream = container.streams.best("video")  # no cover picture, if there is anything else
        if stream is None:
            raise InvalidMediaError(f"The clip has no picture; it must be {ALLOWED}.")
        context = stream.codec_context
        codec = DECODERS.get(context.name if context is not None else "")
        if codec is None:
            raise InvalidMediaError(f"The clip is coded in a way that is not read here; it must be {ALLOWED}.")
        check_size(context.width, context.height, order)
        if container.duration is not None:
            check_duration(container.duration / av.time_base, order)
        context.options = track_guards
        context.thread_count = 1
        run = Run(order)
        if order.get("clip"):
            run.num_written = write_clip(av, stream, run.frames(container, stream), order["clip"])
        elif order["is_whole"]:
            deque(run.frames(container, stream), maxlen=0)
        else:
            run.ends(container, stream)
        return {
            "container": container_name,
            "codec": codec,
            "has_audio": bool(container.streams.audio),
            **run.found(stream),
        }


def kind_of(head: bytes) -> tuple[str, str]:
    """Return what a file that begins so is, and its demuxer: nothing is left to guessing. Raises InvalidMediaError."""
    if head[4:8] == b"ftyp":
        return ("mov" if head[8:12] == b"qt  " else "mp4"), "mov"
    if head.startswith(MATROSKA):
        return ("webm" if b"webm" in head else "matroska"), "matroska"
    raise InvalidMediaError(f"The clip is no video; it must be {ALLOWED}.")


def refuse(url: str, *_: Any) -> Any:
    """Open nothing that a clip refers to."""
    raise InvalidMediaError("The clip refers to another file, which is not allowed.")


def check_size(width_px: int, height_px: int, order: Mapping[str, Any]) -> None:
    """Raise InvalidMediaError when a frame is too large, or nothing."""
    if width_px < 1 or height_px < 1:
        raise InvalidMediaError(f"The clip has a picture of no size, or of far more than {order['max_pixels']} pixels.")
    if width_px * height_px > order["max_pixels"]:
        raise InvalidMediaError(
            f"The clip has {width_px} x {height_px} pixels; at most {order['max_pixels']} in all are allowed."
        )


def check_duration(duration_s: float, order: Mapping[str, Any]) -> None:
    """Raise InvalidMediaError when a clip lasts too long."""
    if duration_s > order["max_duration_s"]:
        raise InvalidMediaError(
            f"The clip lasts {duration_s:.1f} s; at most {order['max_duration_s']:g} s are allowed."
        )


class Run:
    """One pass over the frames, and what it has seen."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._size_px: tuple[int, int] | None = None
        self._turn = 0
        self._begin_s: Fraction | None = None
        self._end_s = Fraction(0)
        self.num_frames = 0
        self.num_written = 0

    def frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield every frame, checked."""
        for packet in container.demux(stream):
            for frame in packet.decode():
                self._count()
                self._see(frame, stream.time_base)
                yield frame
        self._check_any()

    def ends(self, container: Any, stream: Any) -> None:
        """Decode the first frame and the last, and count the packets between."""
        context, tail, is_begun = stream.codec_context, deque[Any](), False
        for packet in container.demux(stream):
            if not packet.size:  # PyAV's sign that all is read
                continue
            self._count()
            if packet.is_keyframe:
                tail.clear()
            tail.append(packet)
            if not is_begun:
                for frame in context.decode(packet):
                    self._see(frame, stream.time_base)
                    is_begun = True
        context.flush_buffers()
        for one in (*tail, None):
            for frame in context.decode(one):
                self._see(frame, stream.time_base)
        self._check_any()

    def found(self, stream: Any) -> dict[str, Any]:
        """Return the figures."""
        width_px, height_px = self._size_px or (0, 0)
        if self._turn in (90, 270):
            width_px, height_px = height_px, width_px
        rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        shown_s = self._end_s - (self._begin_s or 0)
        if not rate and shown_s:
            rate = Fraction(self.num_frames - 1) / shown_s
        return {
            "width_px": width_px,
            "height_px": height_px,
            "num_frames": self.num_frames,
            "num_written": self.num_written,
            "duration_s": float(shown_s + (1 / rate if rate else 0)),
            "fps": [rate.numerator, rate.denominator],
        }

    def _count(self) -> None:
        self.num_frames += 1
        if self.num_frames > self._order["max_frames"]:
            raise InvalidMediaError(f"The clip has more than {self._order['max_frames']} frames, which is not allowed.")

    def _see(self, frame: Any, time_base: Fraction) -> None:
        size_px = (frame.width, frame.height)
        check_size(*size_px, self._order)
        if self._size_px is None:
            self._size_px, self._turn = size_px, round(frame.rotation) % 360
        elif size_px != self._size_px:
            raise InvalidMediaError("The clip changes its size half-way, which is not supported.")
        if frame.is_corrupt or frame.pts is None:
            raise InvalidMediaError("The clip is damaged: one of its frames cannot be decoded.")
        time_s = frame.pts * time_base
        if self._begin_s is None:
            self._begin_s = self._end_s = time_s
        self._end_s = max(self._end_s, time_s)
        check_duration(float(self._end_s - min(self._begin_s, time_s)), self._order)

    def _check_any(self) -> None:
        if self._size_px is None:
            raise InvalidMediaError("The clip has no frame that can be decoded.")


def write_clip(av: Any, stream: Any, frames: Iterator[Any], clip: Mapping[str, Any]) -> int:
    """Write the wanted frames to the target, FFV1 in Matroska; returns how many there were. Reads all frames."""
    fps, num_frames, num_written = clip["fps"], clip["num_frames"], 0
    with os.fdopen(TARGET_FD, "wb") as target, av.open(target, "w", format="matroska", io_open=refuse) as written:
        track = written.add_stream("ffv1", rate=fps, options={"level": "3", "g": "1", "slicecrc": "1"})
        track.width, track.height, track.pix_fmt = clip["width_px"], clip["height_px"], "bgr0"
        track.thread_count = 1
        kept = deque[Any](maxlen=num_frames)  # of the end: every frame is a key frame, so any can be first
        for frame in fitted(av, stream, frames, clip):
            if clip["is_end"]:
                kept.extend(track.encode(frame))  # FFV1 holds nothing back
            elif num_written < num_frames:
                num_written = mux(written, track.encode(frame), num_written, fps)
        return mux(written, kept, num_written, fps)


def mux(written: Any, packets: Iterable[Any], number: int, fps: int) -> int:
    """Write frames, of which the first gets this number; returns the number of the next."""
    for packet in packets:
        packet.pts = packet.dts = number
        packet.time_base = Fraction(1, fps)
        written.mux(packet)
        number += 1
    return number


def fitted(av: Any, stream: Any, frames: Iterator[Any], clip: Mapping[str, Any]) -> Iterator[Any]:
    """Yield frames upright, covering the wanted size, their middle, at the wanted rate."""
    graph: Any = None
    for frame in frames:
        if graph is None:
            graph = graph_for(av, stream, round(frame.rotation) % 360, clip)
        graph.push(frame)
        yield from pulled(av, graph)
    if graph is not None:
        graph.push(None)
        yield from pulled(av, graph)


def graph_for(av: Any, stream: Any, turn: int, clip: Mapping[str, Any]) -> Any:
    """Return the filters, ready for the first frame."""
    width_px, height_px = clip["width_px"], clip["height_px"]
    graph = av.filter.Graph()
    steps = [
        ("fps", str(clip["fps"])),
        *TURNS.get(turn, ()),
        ("scale", f"{width_px}:{height_px}:force_original_aspect_ratio=increase:flags=lanczos"),
        ("crop", f"{width_px}:{height_px}"),
        ("format", "bgr0"),
        ("buffersink", ""),
    ]
    last = graph.add_buffer(template=stream)
    for name, options in steps:
        one = graph.add(name, options) if options else graph.add(name)
        last.link_to(one)
        last = one
    graph.configure()
    return graph


def pulled(av: Any, graph: Any) -> Iterator[Any]:
    """Yield what the filters have ready."""
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
