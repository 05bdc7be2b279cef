"""A batch through the whole stack, by the stock client: one video, one refused prompt, one field that is wrong."""

import json

import openai
import pytest

from tests.conftest import PROMPT, Stack, wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_batch_makes_its_videos_and_says_which_it_cannot(stack: Stack) -> None:
    bodies = {
        "circle": {"prompt": PROMPT, "seconds": "1", "seed": 1},
        "refused": {"prompt": "a naked child"},
        "field": {"prompt": PROMPT, "seconds": "99"},
    }
    lines = [{"custom_id": name, "method": "POST", "url": "/v1/videos", "body": body} for name, body in bodies.items()]
    with openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.api_key) as client:
        data = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/videos", completion_window="24h")
        wait_for("the batch", lambda: client.batches.retrieve(batch.id).status == "completed", timeout_s=240)
        batch = client.batches.retrieve(batch.id)
        assert batch.output_file_id
        assert batch.error_file_id
        (good,) = (json.loads(one) for one in client.files.content(batch.output_file_id).text.splitlines())
        failed = [json.loads(one) for one in client.files.content(batch.error_file_id).text.splitlines()]
        codes = {one["custom_id"]: one["response"]["body"]["error"]["code"] for one in failed}
        assert codes == {"refused": "moderation_blocked", "field": "invalid_request"}
        video = good["response"]["body"]
        assert (good["custom_id"], video["status"], video["service_class"]) == ("circle", "completed", "batch")
        assert client.videos.download_content(video["id"]).content[4:8] == b"ftyp"
