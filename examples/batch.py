# .venv/bin/python examples/batch.py "a red ball bouncing on white" "a blue ring orbiting on black"

"""Make several videos that nobody waits for, as one batch, with the stock client (`pip install openai`); save them.

Needs a running stack, and its address and key as in generate.py. Run it again with the id that it prints, and it goes
on with that batch: .venv/bin/python examples/batch.py batch_…
"""

import json
import os
import sys
import time
from pathlib import Path

import openai

POLL_S = 2.0
PROMPTS = ("a red ball bouncing on a white background", "a green star spinning on a black background")


def request(number: int, prompt: str) -> str:
    """Return one line of the file: what `POST /v1/videos` takes, under a name of its own."""
    return json.dumps(
        {"custom_id": f"video-{number}", "method": "POST", "url": "/v1/videos", "body": {"prompt": prompt}}
    )


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict]:
    """Read an output or error file; a batch has none where nothing would be in it."""
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


base_url = os.environ.get("VITASCOPE_BASE_URL", "http://127.0.0.1:8000")
key_file = Path.home() / ".local/share/vitascope/api_key"
api_key = os.environ.get("VITASCOPE_API_KEY") or key_file.read_text().strip()
said = sys.argv[1:] or list(PROMPTS)

with openai.OpenAI(base_url=f"{base_url}/v1", api_key=api_key) as client:
    if said[0].startswith("batch_"):
        batch = client.batches.retrieve(said[0])
    else:
        requests = "\n".join(request(number, prompt) for number, prompt in enumerate(said, 1))
        file = client.files.create(file=("requests.jsonl", requests.encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/videos", completion_window="24h")
    print(batch.id)
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(POLL_S)  # a large batch may take the night: ask once a minute, or come back with its id
        batch = client.batches.retrieve(batch.id)
    for problem in (batch.errors and batch.errors.data) or []:
        print(f"line {problem.line}: {problem.message}")
    for line in lines_of(client, batch.error_file_id):
        print(f"{line['custom_id']}: {(line['error'] or line['response']['body']['error'])['message']}")
    for line in lines_of(client, batch.output_file_id):
        path = f"{line['custom_id']}.mp4"
        client.videos.download_content(line["response"]["body"]["id"]).write_to_file(path)
        print(f"saved {path}")
    if batch.status != "completed" or batch.error_file_id:
        sys.exit(f"The batch is {batch.status}.")
