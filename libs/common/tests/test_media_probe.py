"""Clips that ffmpeg made, and files that somebody made to do harm: what passes can be used, the rest is said."""

import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import wave
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from PIL import Image

from vitascope_common import media_decoder
from vitascope_common.errors import DeadlineError, InvalidMediaError, UnavailableError
from vitascope_common.media_probe import MediaLimits, probe, read_clip

LIMITS = MediaLimits(max_bytes=20_000_000, max_pixels=1_000_000, max_duration_s=60, max_frames=1000, wall_s=100)
SIZED = ["-f", "lavfi", "-i", "testsrc2=size=160x96:rate=16", "-frames:v", "24"]
H264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
FFV1 = ["-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1", "-pix_fmt", "bgr0"]
SOUND = ["-f", "lavfi", "-i", "sine=duration=1.5"]


def made(path: Path, *arguments: str) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-nostdin", "-v", "error", *arguments, str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def mp4(folder: Path) -> Path:
    return made(folder / "plain.mp4", *SIZED, *H264, "-movflags", "+faststart")


@pytest.fixture(scope="module")
def mezzanine(folder: Path) -> Path:
    return made(folder / "mezzanine.mkv", *SIZED, *FFV1)


CONTROLS = {
    "mp4 h264": ("c.mp4", [*SIZED, *H264], ("mp4", "h264", False)),
    "mp4 h264 with sound": ("s.mp4", [*SOUND, *SIZED, *H264, "-c:a", "aac"], ("mp4", "h264", True)),
    "mp4 h264 of 10 bits": ("t.mp4", [*SIZED, *H264[:-1], "yuv420p10le"], ("mp4", "h264", False)),
    "mp4 h264 with bidirectional frames": ("b.mp4", [*SIZED, "-c:v", "libx264", "-bf", "3"], ("mp4", "h264", False)),
    "mp4 in fragments": ("f.mp4", [*SIZED, *H264, "-movflags", "frag_keyframe+empty_moov"], ("mp4", "h264", False)),
    "mov h264": ("c.mov", [*SIZED, *H264], ("mov", "h264", False)),
    "mp4 hevc": ("h.mp4", [*SIZED, "-c:v", "libx265", "-x265-params", "log-level=none"], ("mp4", "hevc", False)),
    "mp4 av1": ("a.mp4", [*SIZED, "-c:v", "libsvtav1", "-preset", "12"], ("mp4", "av1", False)),
    "webm vp8": ("8.webm", [*SIZED, "-c:v", "libvpx", "-deadline", "realtime"], ("webm", "vp8", False)),
    "webm vp9": ("9.webm", [*SIZED, "-c:v", "libvpx-vp9", "-deadline", "realtime"], ("webm", "vp9", False)),
    "mkv h264": ("c.mkv", [*SIZED, *H264], ("matroska", "h264", False)),
    "mkv ffv1": ("v.mkv", [*SIZED, *FFV1], ("matroska", "ffv1", False)),
}


@pytest.mark.parametrize(("name", "arguments", "expected"), CONTROLS.values(), ids=CONTROLS)
def test_a_usual_clip_passes_and_its_figures_are_right(folder: Path, name: str, arguments: Any, expected: Any):
    path = made(folder / name, *arguments)
    found = probe(path, LIMITS)
    assert (found.container, found.codec, found.has_audio) == expected
    assert (found.width_px, found.height_px, found.num_frames) == (160, 96, 24)
    assert found.duration_s == pytest.approx(1.5, abs=0.01)
    assert found.fps == pytest.approx(16, abs=0.01)
    assert found.num_bytes == path.stat().st_size
    assert probe(path.read_bytes(), LIMITS) == found
    ends = probe(path, LIMITS, is_whole=False)
    assert (ends.width_px, ends.height_px, ends.duration_s) == (160, 96, pytest.approx(1.5, abs=0.01))


@pytest.mark.parametrize("size", ["16x16", "33x35", "1000x1000"])
def test_any_size_within_the_limit_passes(folder: Path, size: str):
    path = made(folder / "size.mkv", "-f", "lavfi", "-i", f"color=size={size}:rate=8", "-frames:v", "1", *FFV1)
    found = probe(path, LIMITS)
    assert (f"{found.width_px}x{found.height_px}", found.num_frames) == (size, 1)


# What is no clip


def zipped() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("clip.mp4", b"x" * 1000)
    return written.getvalue()


def sound() -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16000))
    return written.getvalue()


def picture() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 64)).save(written, "PNG")
    return written.getvalue()


FTYP = struct.pack(">I", 24) + b"ftypisom\0\0\2\0isommp42"
STRANGERS = {
    "text": b"This is no clip at all. " * 10,
    "one byte": b"\0",
    "zip": zipped(),
    "wav": sound(),
    "png": picture(),
    "gif": b"GIF89a" + bytes(100),
    "avi": b"RIFF\x10\0\0\0AVI LIST" + bytes(100),
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n",
    "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}
BROKEN = {
    "the name of a format and nothing more": FTYP,
    "a playlist with the head of an mp4": FTYP + b"\n#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "zeros with the head of an mp4": FTYP + bytes(10_000),
    "an endless atom": FTYP + struct.pack(">I", 1) + b"moov" + struct.pack(">Q", 2**63 - 1) + bytes(100),
    "an atom in an atom in an atom": FTYP + b"".join(struct.pack(">I", 2**20 - n) + b"moov" for n in range(2000)),
    "the head of a matroska": media_decoder.MATROSKA + bytes(1000),
    "an endless element": media_decoder.MATROSKA + b"\x01" + b"\xff" * 7 + bytes(1000),
}


@pytest.mark.parametrize("data", STRANGERS.values(), ids=STRANGERS)
def test_what_is_no_clip_is_told_what_would_be(data: bytes):
    with pytest.raises(InvalidMediaError, match=r"is no video; it must be MP4, MOV, WebM or Matroska with H\.264"):
        probe(data, LIMITS)


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_only_begins_like_a_clip_is_refused(data: bytes):
    with pytest.raises(InvalidMediaError, match=r"damaged|no picture"):
        probe(data, LIMITS)


def test_an_empty_file_is_said():
    with pytest.raises(InvalidMediaError, match="is empty"):
        probe(b"", LIMITS)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidMediaError, match="is no file"):
            probe(path, LIMITS)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("mpeg4.mp4", [*SIZED, "-c:v", "mpeg4"], "is coded in a way"),
        ("mjpeg.mkv", [*SIZED, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p"], "is coded in a way"),
        ("prores.mov", [*SIZED, "-c:v", "prores_ks"], "is coded in a way"),
        ("raw.mkv", [*SIZED, "-c:v", "rawvideo"], "is coded in a way"),
        ("sound.mp4", [*SOUND, "-c:a", "aac"], "has no picture"),
        ("sound.mkv", [*SOUND, "-c:a", "flac"], "has no picture"),
    ],
)
def test_what_is_coded_otherwise_is_refused(folder: Path, name: str, arguments: list[str], why: str):
    with pytest.raises(InvalidMediaError, match=f"{why}.*; it must be MP4"):
        probe(made(folder / name, *arguments), LIMITS)


# What is damaged


def _cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def _cut_in_the_head(data: bytearray) -> None:
    del data[60:]


def _erase(data: bytearray) -> None:
    data[200:] = bytes(len(data) - 200)


@pytest.mark.parametrize("damage", [_cut, _cut_in_the_head, _erase])
def test_a_damaged_mp4_is_refused(mp4: Path, damage: Callable[[bytearray], None]):
    data = bytearray(mp4.read_bytes())
    damage(data)
    with pytest.raises(InvalidMediaError, match=r"damaged|no picture|no frame"):
        probe(bytes(data), LIMITS)


def test_whatever_is_changed_in_a_clip_it_passes_or_is_refused(mp4: Path, mezzanine: Path):
    chance = random.Random(1)
    outcomes = set()
    for number in range(40):
        data = bytearray((mp4, mezzanine)[number % 2].read_bytes())
        for _ in range(chance.choice((1, 10, 100))):
            data[chance.randrange(len(data) if number % 4 < 2 else 1500)] = chance.randrange(256)
        try:
            outcomes.add(type(probe(bytes(data), replace(LIMITS, cpu_s=5))))
        except InvalidMediaError as error:
            outcomes.add(type(error))
    assert InvalidMediaError in outcomes


# What is too much


def test_every_limit_is_said(folder: Path, mp4: Path):
    size = mp4.stat().st_size
    for limits, why in (
        (replace(LIMITS, max_bytes=size - 1), f"has {size} bytes; at most {size - 1} are allowed"),
        (replace(LIMITS, max_pixels=160 * 96 - 1), "has 160 x 96 pixels; at most 15359 in all"),
        (replace(LIMITS, max_duration_s=1.4), "lasts 1.5 s; at most 1.4 s are allowed"),
        (replace(LIMITS, max_frames=23), "has more than 23 frames"),
    ):
        with pytest.raises(InvalidMediaError, match=why):
            probe(mp4, limits)
    exact = replace(LIMITS, max_bytes=size, max_pixels=160 * 96, max_duration_s=1.5, max_frames=24)
    assert probe(mp4, exact).num_frames == 24


def test_a_header_that_promises_a_huge_picture_costs_nothing(folder: Path):
    data = bytearray(made(folder / "wide.mkv", *SIZED, "-s", "320x256", *FFV1).read_bytes())
    for name in (b"\xb0\x82", b"\xba\x82"):
        begin = data.index(name) + 2
        data[begin : begin + 2] = b"\xff\xff"
    with pytest.raises(InvalidMediaError, match="a picture of no size, or of far more than 1000000 pixels"):
        probe(bytes(data), LIMITS)
    with pytest.raises(InvalidMediaError, match=r"memory|damaged"):
        probe(bytes(data), replace(LIMITS, max_pixels=2**40, memory_bytes=500 * 2**20))


def test_a_small_file_that_unfolds_is_stopped_by_its_size(folder: Path):
    path = made(folder / "bomb.mp4", "-f", "lavfi", "-i", "color=size=4000x4000:rate=1", "-frames:v", "2", *H264)
    assert path.stat().st_size < 50_000
    with pytest.raises(InvalidMediaError, match="4000 x 4000 pixels"):
        probe(path, LIMITS)


def test_a_clip_that_does_not_say_how_long_it_is_is_measured(folder: Path):
    path = made(folder / "live.mkv", "-f", "lavfi", "-i", "color=size=16x16:rate=1:duration=100", *H264, "-live", "1")
    with av.open(str(path)) as container:
        assert container.duration is None
    with pytest.raises(InvalidMediaError, match=r"lasts 61\.0 s; at most 60 s"):
        probe(path, LIMITS)


def test_what_takes_too_long_is_ended(folder: Path, mp4: Path):
    path = made(folder / "long.mp4", *SIZED[:4], "-frames:v", "900", *H264)
    large = {"width_px": 1920, "height_px": 1080, "fps": 16, "num_frames": 900}
    with pytest.raises(InvalidMediaError, match="more than 1 s to decode"):
        read_clip(path, folder / "long.mkv", replace(LIMITS, cpu_s=1), **large)
    with pytest.raises(DeadlineError, match="could not be read in time"):
        probe(mp4, replace(LIMITS, wall_s=0.001))


def test_whoever_waits_can_stop_waiting(folder: Path):
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    path = made(folder / "many.mp4", *SIZED[:4], "-frames:v", "900", *H264)
    with pytest.raises(Enough):
        probe(path, LIMITS, check=stop)


def test_a_child_that_somebody_kills_says_nothing_about_the_clip(folder: Path):
    def kill() -> None:
        for child in psutil.Process().children():
            child.kill()

    path = made(folder / "many.mp4", *SIZED[:4], "-frames:v", "900", *H264)
    with pytest.raises(UnavailableError, match="interrupted"):
        probe(path, LIMITS, check=kill)


def test_a_cover_picture_is_not_taken_for_the_clip(folder: Path, mp4: Path):
    (folder / "cover.png").write_bytes(picture())
    inputs = ["-i", str(folder / "cover.png"), "-i", str(mp4)]
    path = made(
        folder / "cover.mp4", *inputs, "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"
    )
    found = probe(path, LIMITS)
    assert (found.codec, found.num_frames) == ("h264", 24)


# What the child cannot do


@pytest.mark.parametrize("has_target", [False, True])
def test_the_child_can_open_nothing_any_more(tmp_path: Path, has_target: bool):
    (tmp_path / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "target").open("wb") as target:
        program = f"""
import json, os, socket, sys
sys.path.append({str(Path(media_decoder.__file__).parents[1])!r})
from vitascope_common import media_decoder
def tries():
    found = []
    for one in (
        lambda: open({str(tmp_path / "secret")!r}),
        lambda: open({str(tmp_path / "new")!r}, "w"),
        lambda: socket.create_connection({server.getsockname()!r}),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        lambda: os.pipe(),
        lambda: os.dup(0),
    ):
        try:
            found.append(one() is None)
        except OSError as error:
            found.append(error.errno)
    return found
inherited = os.open({str(tmp_path / "secret")!r}, os.O_RDONLY)
before = tries()
target = {target.fileno() if has_target else None}
media_decoder.lock({{"target_fd": target, "cpu_s": 5, "memory_bytes": 2**31}})
after = tries()
try:
    os.read(inherited, 1) if inherited != 3 else os.fstat(4)
except OSError as error:
    after.append(error.errno)
print(json.dumps([before, after]))
"""
        done = subprocess.run(
            [sys.executable, "-c", program], pass_fds=[target.fileno()], capture_output=True, check=True, timeout=60
        )
        before, after = json.loads(done.stdout)
    assert before == [False] * 6
    assert after == [24] * 6 + [9]  # EMFILE; what was open before is closed


def test_an_mp4_whose_frames_lie_elsewhere_reads_nothing_from_there(folder: Path, tmp_path: Path):
    """A data reference of QuickTime: the file says that its frames are in another one, beside it."""
    data = made(folder / "dref.mov", *SIZED, *H264).read_bytes()
    moov = data[data.index(b"moov") - 4 :]
    (tmp_path / "whole.mov").write_bytes(data)
    name = b"whole.mov"
    record = struct.pack(">4sHH", b"\0" * 4, 150, 2) + bytes(2) + bytes(28) + bytes(12) + bytes([len(name)])
    record += name.ljust(63, b"\0") + bytes(16) + bytes([0, 1, 0, 1]) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + b"\0" + struct.pack(">h", -1)
    entry = struct.pack(">I4sI", len(record) + 12, b"alis", 0) + record
    begin = moov.index(b"dref") - 4
    (length,) = struct.unpack(">I", moov[begin : begin + 4])
    dref = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    longer = bytearray(moov[:begin] + dref + moov[begin + length :])
    for atom in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):  # each holds the next
        at = longer.index(atom) - 4
        longer[at : at + 4] = struct.pack(">I", struct.unpack(">I", longer[at : at + 4])[0] + len(dref) - length)
    path = tmp_path / "elsewhere.mov"
    path.write_bytes(FTYP.replace(b"isom", b"qt  ") + bytes(longer))
    control = subprocess.run(  # ffmpeg itself, told to, finds the frames by this reference
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-enable_drefs", "1", "-i", str(path), "-f", "framecrc", "-"],
        capture_output=True,
        timeout=60,
    )
    assert control.stdout.count(b"\n0,") == 24
    with pytest.raises(InvalidMediaError, match=r"damaged|no frame"):
        probe(path, LIMITS)


# Clips that jobs are made from


def frames_of(path: Path) -> Any:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_clip_of_ours_is_kept_as_it_is(mezzanine: Path, tmp_path: Path):
    wanted = {"width_px": 160, "height_px": 96, "fps": 16}
    source = frames_of(mezzanine)
    clip = read_clip(mezzanine, tmp_path / "all.mkv", LIMITS, num_frames=100, **wanted)
    assert (clip.num_frames, clip.source.num_frames, clip.fps) == (24, 24, 16)
    assert np.array_equal(frames_of(tmp_path / "all.mkv"), source)
    assert read_clip(mezzanine, tmp_path / "begin.mkv", LIMITS, num_frames=9, **wanted).num_frames == 9
    assert np.array_equal(frames_of(tmp_path / "begin.mkv"), source[:9])
    assert read_clip(mezzanine, tmp_path / "end.mkv", LIMITS, num_frames=9, is_end=True, **wanted).num_frames == 9
    assert np.array_equal(frames_of(tmp_path / "end.mkv"), source[-9:])
    found = probe(tmp_path / "end.mkv", LIMITS)
    assert (found.num_frames, found.fps, found.duration_s) == (9, 16.0, pytest.approx(9 / 16, abs=0.002))


def test_a_clip_of_another_size_and_rate_is_covered_by_its_middle(folder: Path, tmp_path: Path):
    halves = "color=red:size=64x64:rate=30:duration=1[l];color=blue:size=64x64:rate=30:duration=1[r];[l][r]hstack"
    path = made(folder / "halves.mp4", "-filter_complex", halves, *H264)
    clip = read_clip(path, tmp_path / "x.mkv", LIMITS, width_px=32, height_px=32, fps=8, num_frames=100)
    assert (clip.num_frames, clip.source.width_px, clip.source.height_px) == (8, 128, 64)
    frames = frames_of(tmp_path / "x.mkv").astype(int)
    assert frames.shape == (8, 32, 32, 3)
    assert (frames[:, :, :12, 0] - frames[:, :, :12, 2]).min() > 150
    assert (frames[:, :, 20:, 2] - frames[:, :, 20:, 0]).min() > 150


@pytest.mark.parametrize(("matrix", "bits", "pixels"), [("bt709", "tv", "yuv420p"), ("bt709", "pc", "yuvj420p")])
def test_colours_stay_whatever_they_are_coded_in(folder: Path, tmp_path: Path, matrix: str, bits: str, pixels: str):
    halves = "color=lime:size=128x64:rate=8:duration=1,drawbox=w=64:h=64:color=red:t=fill"
    coded = (
        f"scale=out_color_matrix={matrix}:out_range={bits},format={pixels},setparams=range={bits}:colorspace={matrix}"
    )
    path = made(folder / "colours.mp4", "-f", "lavfi", "-i", halves, "-vf", coded, "-c:v", "libx264", "-crf", "5")
    read_clip(path, tmp_path / "x.mkv", LIMITS, width_px=128, height_px=64, fps=8, num_frames=1)
    frame = frames_of(tmp_path / "x.mkv")[0].astype(int)
    assert np.abs(frame[32, 32] - (255, 0, 0)).max() < 8
    assert np.abs(frame[32, 96] - (0, 255, 0)).max() < 8


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_clip_of_a_phone_is_set_upright(folder: Path, tmp_path: Path, turn: int):
    corner = "color=black:size=64x32:rate=8:duration=1,drawbox=x=0:y=0:w=16:h=16:color=white:t=fill"
    path = made(folder / "straight.mp4", "-f", "lavfi", "-i", corner, *H264)
    turned = made(folder / "turned.mp4", "-display_rotation", str(turn), "-i", str(path), "-c", "copy")
    found = probe(turned, LIMITS)
    size_px = (64, 32) if turn in (0, 180) else (32, 64)
    assert (found.width_px, found.height_px) == size_px
    read_clip(turned, tmp_path / "x.mkv", LIMITS, width_px=size_px[0], height_px=size_px[1], fps=8, num_frames=8)
    frame = frames_of(tmp_path / "x.mkv")[0].mean(axis=2)
    by_ffmpeg = made(tmp_path / "y.mkv", "-i", str(turned), *FFV1)  # which turns by itself
    assert np.abs(frame - frames_of(by_ffmpeg)[0].mean(axis=2)).max() < 8
    assert frame.max() > 200


def test_a_clip_that_is_refused_leaves_no_file(tmp_path: Path):
    with pytest.raises(InvalidMediaError, match="is no video"):
        read_clip(b"text", tmp_path / "x.mkv", LIMITS, width_px=32, height_px=32, fps=8, num_frames=9)
    assert not (tmp_path / "x.mkv").exists()


def test_a_leap_in_time_does_not_become_frames_without_end(folder: Path, tmp_path: Path):
    leap = "setpts='if(gte(N,4),PTS+1e6/TB,PTS)'"
    path = made(folder / "leap.mkv", *SIZED[:4], "-frames:v", "8", "-vf", leap, "-fps_mode", "vfr", *FFV1)
    with pytest.raises(InvalidMediaError, match="lasts 1000"):
        read_clip(path, tmp_path / "x.mkv", LIMITS, width_px=32, height_px=32, fps=8, num_frames=9)
