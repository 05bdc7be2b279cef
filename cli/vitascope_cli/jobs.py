"""What `generate`, `follow` and `demo` do with one job: watch it, then fetch its files."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vitascope_cli.progress import Timeline, display
from vitascope_client import Video, Vitascope


@dataclass(frozen=True)
class Followed:
    """A job that has ended."""

    video: Video
    timeline: Timeline


def follow(client: Vitascope, video_id: str, console: Console) -> Followed:
    """Show a job's progress until it ends."""
    timeline = Timeline()
    with display(console) as shown:
        for event in client.videos.stream(video_id, last_event_id="0-0"):
            timeline.add(event)
            shown.show(timeline)
    return Followed(client.videos.retrieve(video_id), timeline)


def save(client: Vitascope, video_id: str, output: Path, thumbnail: Path | None) -> None:
    """Fetch the video, and the thumbnail if a path is given for it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    client.videos.download(video_id, output)
    if thumbnail is not None:
        thumbnail.parent.mkdir(parents=True, exist_ok=True)
        client.videos.download(video_id, thumbnail, variant="thumbnail")
