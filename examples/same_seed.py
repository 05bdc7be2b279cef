# .venv/bin/python examples/same_seed.py

"""Ask twice with one seed: the pictures are the same, bit for bit, whatever happened to the workers in between.

Needs a running stack, and VITASCOPE_BASE_URL and VITASCOPE_API_KEY as in generate.py.
"""

import hashlib

from vitascope_client import Vitascope

with Vitascope() as client:
    prompt = "a yellow triangle moving up on a black background"
    pair = [client.videos.create(prompt=prompt, seed=42) for _ in range(2)]
    for video in pair:
        done = client.videos.wait(video.id)
        thumbnail = client.videos.download(video.id, variant="thumbnail")
        print(done.id, done.status, hashlib.sha256(thumbnail).hexdigest()[:16])
