"""Remix and extension through the whole stack, asked for by the stock client and judged by what the frames show."""

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import openai
import pytest

from tests.conftest import Stack

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Sora API.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:openai"),
]

RED, GREEN = 0, 1
PROMPT = "a small {} circle moving right on a white background"


def frames_of(client: openai.OpenAI, video_id: str, path: Path) -> np.ndarray:
    """Download a video: (T, H, W, 3), 0 to 255."""
    client.videos.download_content(video_id).write_to_file(path)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)])


def columns_of(frames_THWC: np.ndarray, colour: int) -> np.ndarray:
    """Return how much stronger a colour is than the others, by frame and column."""
    others = [one for one in range(3) if one != colour]
    return np.asarray((frames_THWC[..., colour] - frames_THWC[..., others].max(axis=3)).clip(0).sum(axis=1))


def centres_of(frames_THWC: np.ndarray, colour: int) -> np.ndarray:
    """Return where a colour is, by frame, in columns."""
    columns_TW = columns_of(frames_THWC, colour)
    return np.asarray((columns_TW @ np.arange(columns_TW.shape[1])) / columns_TW.sum(axis=1).clip(1))


def test_a_file_of_ones_own_comes_first_in_its_extension(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "own.mp4"
    source = "color=white:size=640x480:rate=25:duration=2[page];color=red:size=120x120:rate=25[dot];"
    source += "[page][dot]overlay=x=100+100*t:y=180:shortest=1"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-filter_complex", source, "-c:v", "libx264", str(path)]
    subprocess.run(command, check=True)
    with openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.api_key) as client:
        longer = client.videos.extend(
            prompt=PROMPT.format("red"),
            seconds="2",  # type: ignore[arg-type]
            video=path,
            extra_body={"seed": 7},
        )
        longer = client.videos.poll(longer.id)
        assert (longer.status, longer.remixed_from_video_id) == ("completed", None)
        frames = frames_of(client, longer.id, tmp_path / "longer.mp4")
    height_px, width_px = frames.shape[1:3]
    assert width_px == height_px  # of the source the middle: 480 x 480
    num_before = len(frames) - 17
    assert num_before > 8
    seen = centres_of(frames[:num_before], RED) * 480 / width_px
    assert np.abs(seen - (160 + 100 * np.arange(num_before) / 8 - 80)).max() < 6, "they are the frames of the file"


def test_a_remix_has_another_colour_and_the_same_motion_and_an_extension_goes_on(stack: Stack, tmp_path: Path) -> None:
    with openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.api_key) as client:
        old = client.videos.create_and_poll(
            prompt=PROMPT.format("red"),
            model="sora-2",  # another name for the default
            seconds="2",  # type: ignore[arg-type]
            extra_body={"seed": 7},
        )
        remix = client.videos.remix(old.id, prompt=PROMPT.format("green"))
        # The client refuses {"id": …} for `video`, which its own types ask for: it goes around that.
        longer = client.videos.extend(
            prompt=PROMPT.format("red"),
            seconds="2",  # type: ignore[arg-type]
            video=openai.omit,  # type: ignore[arg-type]
            extra_body={"video": {"id": old.id}, "seed": 7},
        )
        remix, longer = client.videos.poll(remix.id), client.videos.poll(longer.id)
        assert [one.status for one in (old, remix, longer)] == ["completed"] * 3
        assert (remix.remixed_from_video_id, longer.remixed_from_video_id) == (old.id, old.id)
        assert (old.model, old.seconds, remix.seconds, longer.seconds) == ("vita-mini-6", "2", "2", "3.5")
        client.videos.delete(old.id)  # what was made from it does not need it
        before = frames_of(client, remix.id, tmp_path / "remix.mp4"), frames_of(client, longer.id, tmp_path / "l.mp4")
        with pytest.raises(openai.NotFoundError):
            client.videos.remix(old.id, prompt="x")
    green, red = before
    assert (len(green), len(red)) == (17, 29)
    assert columns_of(green, GREEN).sum() > 20 * columns_of(green, RED).sum()
    moved_green, moved_red = centres_of(green, GREEN), centres_of(red, RED)
    assert np.abs(moved_green - moved_red[:17]).max() < 12, "a remix keeps the motion"
    is_seen = columns_of(red, RED).sum(axis=1) > 5_000  # until it leaves the picture
    steps = np.diff(moved_red[is_seen])
    assert (steps > -1).all(), f"it goes on to the right, and never back: {moved_red.round()}"
    assert moved_red[is_seen][-1] > moved_red[16] + 5, "it stops where the old video ended"
