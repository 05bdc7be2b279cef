"""A video that is really made is really told of: the stack, a receiver beside it, and the stock client's own check."""

import openai
import pytest

from tests.conftest import PROMPT, Stack, wait_for
from vitascope_common.testing import webhook_receiver

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_finished_video_is_told_to_endpoint_and_request_also_after_the_sender_was_killed(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.api_key)
    with client, webhook_receiver() as receiver:
        endpoint = client.webhooks.create(name="ci", url=receiver.url("/endpoint"), event_types=["video.completed"])
        secrets = {"/endpoint": endpoint.signing_secret}
        secrets["/request"] = stack.get("/v1/webhooks/default/secret").json()["signing_secret"]
        hook = {"webhook_url": receiver.url("/request"), "num_inference_steps": "4"}
        video = client.videos.create(prompt=PROMPT, extra_body=hook)
        before = stack.kill("webhooks")
        wait_for("the sender to be back", lambda: stack.pid("webhooks") != before)
        for path, secret in secrets.items():
            (received,) = wait_for(f"the event at {path}", lambda path=path: receiver.received(path))
            event = client.webhooks.unwrap(received.body, dict(received.headers), secret=secret)
            assert (event.type, event.data.id) == ("video.completed", video.id)
        assert client.videos.retrieve(video.id).status == "completed"
        log = f"/v1/webhook_deliveries?video_id={video.id}&status=delivered"
        wait_for("the log of both", lambda: len(stack.get(log).json()["data"]) == 2)
        client.webhooks.delete(endpoint.id)
