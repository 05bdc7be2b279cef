"""The unmodified `openai` client manages endpoints and verifies what is sent: gateway and sender as processes."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import wait_for
from vitascope_common.testing import Received, Receiver, webhook_receiver
from vitascope_gateway.testing import Surroundings, surroundings
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.testing import WebhooksProcess

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BOTH = ["video.completed", "video.failed"]


@dataclass
class Platform:
    client: openai.OpenAI
    other: openai.OpenAI
    around: Surroundings
    receiver: Receiver
    sender: WebhooksProcess

    def cancel(self, video_id: str) -> None:
        """Do what the scheduler does when it is asked to."""
        self.around.in_database(lambda database: JobManager(database).cancel(video_id, "acme"))

    def create(self, **fields: Any) -> str:
        return str(self.client.videos.create(prompt="a circle", extra_body=fields).id)

    def deliveries(self, **query: str) -> list[dict[str, Any]]:
        found = self.client.get("/webhook_deliveries", cast_to=httpx.Response, options={"params": query})
        return list(found.json()["data"])


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    with (
        webhook_receiver() as receiver,
        surroundings(folder, url_allowed_networks="127.0.0.1/32") as around,
        closing(WebhooksProcess(around.database_url, folder, retry_ms=20)) as sender,
        around.gateway(),
        openai.OpenAI(base_url=f"{around.base_url}/v1", api_key=around.key, max_retries=0) as client,
        client.with_options(api_key=around.add_tenant("other")) as other,
    ):
        sender.start()
        yield Platform(client, other, around, receiver, sender)


def unwrap(client: openai.OpenAI, received: Received, secret: str) -> Any:
    return client.webhooks.unwrap(received.body, dict(received.headers), secret=secret)


def test_an_endpoint_from_its_creation_to_its_end(platform: Platform) -> None:
    client = platform.client
    made = client.webhooks.create(name="CI", url=platform.receiver.url("/life"), event_types=["video.completed"])
    assert (made.object, made.name, made.event_types) == ("webhook_endpoint", "CI", ["video.completed"])
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret.count("_") == 1, "there are verifiers that split it there"
    assert made.signing_secret_hint
    assert made.signing_secret not in made.signing_secret_hint

    shown = client.webhooks.retrieve(made.id)
    assert (shown.id, shown.url, shown.created_at, shown.updated_at) == (
        *(made.id, made.url, made.created_at),
        made.updated_at,
    )
    assert not hasattr(shown, "signing_secret")
    renamed = client.webhooks.update(made.id, name="CD")
    assert (renamed.name, renamed.event_types) == ("CD", ["video.completed"])
    assert client.webhooks.update(made.id, event_types=["video.failed"]).event_types == ["video.failed"]

    tested = client.webhooks.test(made.id, event_type="video.failed")
    assert (tested.object, tested.webhook_endpoint_id, tested.event_type) == (
        *("webhook_endpoint.test", made.id),
        "video.failed",
    )
    assert (tested.status_code, tested.success) == (200, True)
    event = unwrap(client, platform.receiver.wait(1, "/life")[-1], made.signing_secret)
    assert event.type == "video.failed"

    assert client.webhooks.delete(made.id).to_dict() == {
        "id": made.id,
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    }
    for call in (
        lambda: client.webhooks.retrieve(made.id),
        lambda: client.webhooks.delete(made.id),
        lambda: client.webhooks.update(made.id, name="x"),
        lambda: client.webhooks.rotate_secret(made.id),
        lambda: client.webhooks.test(made.id, event_type="video.failed"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_the_pages_of_the_list_and_the_event_types(platform: Platform) -> None:
    client = platform.client
    made = [client.webhooks.create(name=f"n{i}", url=platform.receiver.url(), event_types=BOTH).id for i in range(3)]
    first = client.webhooks.list(limit=2)
    assert [one.id for one in first.data] == made[:0:-1]
    assert first.has_next_page()
    assert [one.id for one in client.webhooks.list(limit=1)] == made[::-1], "newest first, page after page"
    assert client.webhooks.event_types.list().data == BOTH
    for one in made:
        client.webhooks.delete(one)
    assert client.webhooks.list().data == []


def test_a_video_that_ends_is_told_to_every_receiver_once_and_unwrap_verifies_it(platform: Platform) -> None:
    client, receiver = platform.client, platform.receiver
    failed = client.webhooks.create(name="a", url=receiver.url("/failed?key=1"), event_types=["video.failed"])
    completed = client.webhooks.create(name="b", url=receiver.url("/completed"), event_types=["video.completed"])
    foreign = platform.other.webhooks.create(name="c", url=receiver.url("/foreign"), event_types=BOTH)
    default = client.get("/webhooks/default/secret", cast_to=httpx.Response).json()["signing_secret"]
    video_id = platform.create(webhook_url=receiver.url("/request"), webhook_events=["video.failed"])
    platform.cancel(video_id)

    at_endpoint, at_request = receiver.wait(1, "/failed?key=1")[0], receiver.wait(1, "/request")[0]
    event = unwrap(client, at_endpoint, failed.signing_secret)
    assert (event.type, event.data.id, event.object) == ("video.failed", video_id, "event")
    assert event.to_dict()["data"] == {
        "id": video_id,
        "status": "failed",
        "error": {"code": "cancelled", "message": "The job was cancelled."},
    }
    assert event.id == at_endpoint.headers["webhook-id"] == at_request.headers["webhook-id"]
    assert at_endpoint.body == at_request.body
    unwrap(client, at_request, default)
    for received, secret in ((at_request, failed.signing_secret), (at_endpoint, completed.signing_secret)):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(client, received, secret)
    tampered = Received(at_request.path, at_request.headers, at_request.body.replace(b"failed", b"passed"))
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(client, tampered, default)

    wait_for("both deliveries", lambda: len(platform.deliveries(video_id=video_id, status="delivered")) == 2)
    log = platform.deliveries(video_id=video_id)
    assert {one["webhook_endpoint_id"] for one in log} == {failed.id, None}
    assert [one["url"] for one in log if one["webhook_endpoint_id"]] == [receiver.url("/failed")], "no keys in a log"
    assert {(one["last_status_code"], one["num_attempts"], one["event_id"]) for one in log} == {(200, 1, event.id)}
    assert [len(receiver.received(path)) for path in ("/completed", "/foreign", "/failed?key=1")] == [0, 0, 1]
    for owner, one in ((client, failed), (client, completed), (platform.other, foreign)):
        owner.webhooks.delete(one.id)


def test_a_rotated_secret_and_the_one_before_it_both_verify_for_a_day(platform: Platform) -> None:
    client, receiver = platform.client, platform.receiver
    made = client.webhooks.create(name="a", url=receiver.url("/rotated"), event_types=BOTH)
    kept = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert kept.signing_secret not in ("", made.signing_secret)
    client.webhooks.test(made.id, event_type="video.completed")
    platform.cancel(platform.create())
    for received in receiver.wait(2, "/rotated"):
        for secret in (made.signing_secret, kept.signing_secret):
            unwrap(client, received, secret)
    last = client.webhooks.rotate_secret(made.id)
    client.webhooks.test(made.id, event_type="video.completed")
    received = receiver.wait(3, "/rotated")[-1]
    unwrap(client, received, last.signing_secret)
    for secret in (made.signing_secret, kept.signing_secret):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(client, received, secret)
    client.webhooks.delete(made.id)


def test_what_failed_is_tried_again_and_what_arrived_can_be_replayed(platform: Platform) -> None:
    client, receiver = platform.client, platform.receiver
    receiver.answer("/flaky", 500, 503, 200)
    video_id = platform.create(webhook_url=receiver.url("/flaky"))
    platform.cancel(video_id)
    wait_for("the third attempt", lambda: platform.deliveries(video_id=video_id, status="delivered"))
    (delivery,) = platform.deliveries(video_id=video_id)
    assert (delivery["num_attempts"], delivery["last_error"]) == (3, None)
    path = f"/webhook_deliveries/{delivery['id']}/replay"
    replayed = client.post(path, cast_to=httpx.Response).json()
    assert replayed["id"] != delivery["id"]
    attempts = receiver.wait(4, "/flaky")
    assert len({one.headers["webhook-id"] for one in attempts}) == len({one.body for one in attempts}) == 1
    secret = client.get("/webhooks/default/secret", cast_to=httpx.Response).json()["signing_secret"]
    for one in attempts:
        unwrap(client, one, secret)
    with pytest.raises(openai.NotFoundError):
        platform.other.post(path, cast_to=httpx.Response)


def test_logs_name_neither_secrets_nor_urls(platform: Platform) -> None:
    log = platform.sender.log.read_text()
    assert "webhook.delivered" in log
    assert "crashed" not in log
    assert "key=1" not in log
    assert "whsec_" not in log
    assert "/failed" not in log
    secrets = [secret for (secret,) in platform.around.sql("SELECT secret FROM webhook_tenants")]
    assert secrets
    assert not any(secret in log for secret in secrets)
