# .venv/bin/python examples/generate.py "a green star spinning on a black background"

"""Make one video and save it, with the progress on the way.

Needs a running stack: `.venv/bin/vitascope up`. Its address and key come from VITASCOPE_BASE_URL and VITASCOPE_API_KEY;
the key of a local stack is in ~/.local/share/vitascope/api_key.
"""

import os
import sys
from pathlib import Path

from vitascope_client import Vitascope

prompt = sys.argv[1] if len(sys.argv) > 1 else "a red ball bouncing on a blue background"
base_url = os.environ.get("VITASCOPE_BASE_URL", "http://127.0.0.1:8000")
key_file = Path.home() / ".local/share/vitascope/api_key"
api_key = os.environ.get("VITASCOPE_API_KEY") or key_file.read_text().strip()

with Vitascope(base_url=base_url, api_key=api_key) as client:
    video = client.videos.create(prompt=prompt)
    for event in client.videos.stream(video.id):
        step, steps, position = (event.data.get(name) for name in ("step", "steps", "position"))
        print(event.type, f"{step}/{steps}" if steps else "" if position is None else f"{position} before it")
    print("saved", client.videos.download(video.id, "video.mp4"))
