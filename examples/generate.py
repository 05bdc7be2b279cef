# .venv/bin/python examples/generate.py "a green star spinning on a black background"

"""Make one video and save it, with the progress on the way.

Needs a running stack: `.venv/bin/vitascope up`. Its address and key come from VITASCOPE_BASE_URL and VITASCOPE_API_KEY;
the key of a local stack is in ~/.local/share/vitascope/api_key.
"""

import os
import sys
from pathlib import Path

from vitascope_client import Progress, Vitascope

prompt = sys.argv[1] if len(sys.argv) > 1 else "a red ball bouncing on a blue background"
base_url = os.environ.get("VITASCOPE_BASE_URL", "http://127.0.0.1:8000")
key_file = Path.home() / ".local/share/vitascope/api_key"
api_key = os.environ.get("VITASCOPE_API_KEY") or key_file.read_text().strip()


def show(now: Progress) -> None:
    """Print where the video stands."""
    place = f", {now.position} before it" if now.position is not None else ""
    left = f", {now.eta_s:.0f} s left" if now.eta_s is not None else ""
    print(f"{now.phase} {now.step}/{now.steps}{place}{left}")


with Vitascope(base_url=base_url, api_key=api_key) as client:
    video = client.videos.wait(client.videos.create(prompt=prompt).id, on_progress=show)
    if video.error is not None:
        sys.exit(video.error.message)
    print("saved", client.videos.download(video.id, "video.mp4"))
