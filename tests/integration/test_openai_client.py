"""The unmodified `openai` client against the gateway: about the wire, so SQL says what workers would have done."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

from vitascope_gateway.testing import Surroundings, surroundings

# The client marks its whole videos API as deprecated, since its makers closed their own service.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MODEL = "vita-mini-6"


class Files(BaseHTTPRequestHandler):
    """What stands where delivery would: remembers who asked, and with what."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        body = b"thumbnail" if "/thumbnail?" in self.path else b"video"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Platform:
    client: openai.OpenAI
    around: Surroundings
    files: list[tuple[str, str | None]]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    class Handler(Files):
        seen: list[tuple[str, str | None]] = []  # noqa: RUF012

    folder = tmp_path_factory.mktemp("platform")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as files:
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        try:
            with (
                surroundings(folder, delivery_url=f"http://127.0.0.1:{files.server_port}") as around,
                around.gateway(),
                openai.OpenAI(base_url=f"{around.base_url}/v1", api_key=around.key) as client,
            ):
                yield Platform(client, around, Handler.seen)
        finally:
            files.shutdown()
            thread.join()


def work(platform: Platform, statement: str, num_polls: int = 2) -> threading.Thread:
    """Do what workers would, once the client has asked a few times."""

    def wait_and_write() -> None:
        asked = len(platform.around.neighbours.positions)
        while len(platform.around.neighbours.positions) < asked + num_polls:
            platform.around.neighbours.asked.wait(10)
            platform.around.neighbours.asked.clear()
        platform.around.sql(statement)

    thread = threading.Thread(target=wait_and_write)
    thread.start()
    return thread


def test_create_and_poll_until_it_is_completed(platform: Platform) -> None:
    worker = work(platform, "UPDATE jobs SET state = 'completed', finished_at_ms = 1000")
    video = platform.client.videos.create_and_poll(
        prompt="a blue square moving up", model=MODEL, seconds="4", size="64x64", poll_interval_ms=20
    )
    worker.join()
    assert (video.status, video.progress, video.object, video.error) == ("completed", 100, "video", None)
    assert (video.seconds, video.size, video.model, video.prompt) == ("4", "64x64", MODEL, "a blue square moving up")
    assert (video.completed_at, video.expires_at, video.remixed_from_video_id) == (1, None, None)


def test_a_failed_video_says_why(platform: Platform) -> None:
    worker = work(platform, "UPDATE jobs SET state = 'cancelled' WHERE state = 'queued'")
    video = platform.client.videos.create_and_poll(prompt="a circle", model=MODEL, poll_interval_ms=20)
    worker.join()
    assert video.status == "failed"
    assert video.error is not None
    assert video.error.code == "cancelled"


def test_the_first_poll_says_how_often_to_ask(platform: Platform) -> None:
    video = platform.client.videos.create(prompt="a circle", model=MODEL)
    answer = platform.client.videos.with_raw_response.retrieve(video.id)
    assert answer.headers["openai-poll-after-ms"] == "1500"  # a twentieth of 30 s
    assert answer.parse().id == video.id


def test_extensions_travel_as_form_fields_and_come_back_as_attributes(platform: Platform) -> None:
    video = platform.client.videos.create(
        prompt="a circle",
        model=MODEL,
        seconds="2",
        extra_body={
            "seed": 5,
            "negative_prompt": "blue",
            "num_inference_steps": 12,
            "guidance_scale": 1.5,
            "metadata": {"project": "demo"},
        },
    )
    extra = video.model_extra or {}
    assert (extra["seed"], extra["steps_total"], extra["metadata"]) == (5, 12, {"project": "demo"})
    assert extra["events_url"].startswith(f"{platform.around.base_url}/v1/videos/{video.id}/events?token=")


def test_a_json_body_is_as_good(platform: Platform) -> None:
    video = platform.client.videos.create(
        prompt="a circle", model=MODEL, extra_headers={"Content-Type": "application/json"}, extra_body={"seed": 3}
    )
    assert (video.model_extra or {})["seed"] == 3


def test_download_follows_to_delivery_without_the_key(platform: Platform) -> None:
    video = platform.client.videos.create(prompt="a circle", model=MODEL)
    platform.around.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 1 WHERE job_id = ?", video.id)
    assert platform.client.videos.download_content(video.id).read() == b"video"
    assert platform.client.videos.download_content(video.id, variant="thumbnail").read() == b"thumbnail"
    paths = [path.partition("?")[0] for path, _ in platform.files[-2:]]
    assert paths == [f"/videos/{video.id}/video", f"/videos/{video.id}/thumbnail"]
    assert [key for _, key in platform.files[-2:]] == [None, None]


class LosesAnswers(httpx.HTTPTransport):
    """A network that carries every request, and loses the first answer to each POST."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if request.method == "POST":
            self.counts.append(request.headers["x-stainless-retry-count"])
            if len(self.counts) == 1:
                answer.read()
                answer.close()
                raise httpx.ReadError("the connection broke", request=request)
        return answer


def test_a_create_whose_answer_was_lost_is_repeated_and_makes_one_video(platform: Platform) -> None:
    before = len(list(platform.client.videos.list()))
    network = LosesAnswers()
    with platform.client.with_options(http_client=httpx.Client(transport=network)) as client:
        video = client.videos.create(prompt="a video asked for once", model=MODEL)
    assert network.counts == ["0", "1"]
    videos = list(platform.client.videos.list())
    assert (len(videos), videos[0].id) == (before + 1, video.id)


def test_list_pages_by_itself(platform: Platform) -> None:
    made = [platform.client.videos.create(prompt="a circle", model=MODEL).id for _ in range(5)]
    listed = [video.id for video in platform.client.videos.list(limit=2)]
    assert len(listed) == len(set(listed))
    assert set(made) <= set(listed)
    oldest_first = [video.id for video in platform.client.videos.list(limit=3, order="asc")]
    assert oldest_first == listed[::-1]


def test_delete_answers_as_the_client_expects(platform: Platform) -> None:
    video = platform.client.videos.create(prompt="a circle", model=MODEL)
    deleted = platform.client.videos.delete(video.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (video.id, "video.deleted", True)
    platform.around.sql("UPDATE jobs SET deleted_at_ms = 1 WHERE job_id = ?", video.id)
    with pytest.raises(openai.NotFoundError) as gone:
        platform.client.videos.retrieve(video.id)
    assert gone.value.code == "not_found"
    assert video.id not in {one.id for one in platform.client.videos.list()}


def test_models_are_listed(platform: Platform) -> None:
    assert [model.id for model in platform.client.models.list()] == [MODEL]
    assert platform.client.models.retrieve(MODEL).owned_by == "vitascope"


def test_errors_arrive_as_the_clients_own(platform: Platform) -> None:
    client: Any = platform.client
    with pytest.raises(openai.BadRequestError) as wrong:
        client.videos.create(prompt="a circle", model=MODEL, seconds="7")
    assert (wrong.value.param, wrong.value.type) == ("seconds", "invalid_request_error")
    assert '"1", "2", "3", "4"' in wrong.value.message
    assert wrong.value.request_id
    with pytest.raises(openai.BadRequestError) as wrong:
        client.videos.create(prompt="a circle", model="sora-9")
    assert (wrong.value.param, wrong.value.code) == ("model", "invalid_model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.videos.create(prompt="a circle", model=MODEL, input_reference=b"\x89PNG")
    assert wrong.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="something forbidden", model=MODEL)
    assert refused.value.code == "moderation_blocked"
    video = client.videos.create(prompt="a circle", model=MODEL)
    with pytest.raises(openai.NotFoundError) as early:
        client.videos.download_content(video.id)
    assert early.value.code == "video_not_ready"
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="vs_wrong").videos.retrieve(video.id)
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.videos.remix(video.id, prompt="another circle")
