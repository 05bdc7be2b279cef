"""What the API says, over real SQL and real gRPC neighbours."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from vitascope_common import ids, tokens
from vitascope_gateway import body as bodies
from vitascope_gateway.body import MAX_BODY_BYTES
from vitascope_gateway.places import Places
from vitascope_gateway.request import FIELDS, IGNORED_FIELDS, PICTURES
from vitascope_gateway.testing import SIGNING_KEY

READERS = (
    *("/v1/videos", "/v1/videos/edits", "/v1/videos/extensions", "/v1/videos/estimate"),
    *("/v1/batches", "/v1/webhook_endpoints"),
)
"""Routes that read a body and name nothing in their path."""


def create(inside: Any, **fields: Any) -> str:
    answer = inside.request("POST", "/v1/videos", json={"prompt": "a red circle", **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def error(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return dict(body["error"])


def test_create_answers_with_a_queued_video(inside: Any) -> None:
    answer = inside.request(
        "POST", "/v1/videos", json={"prompt": "a  red circle", "seed": 7, "metadata": {"project": "demo"}}
    )
    assert answer.status_code == 202
    video = answer.json()
    assert answer.headers["location"] == f"http://gateway.test/v1/videos/{video['id']}"
    assert (video["object"], video["status"], video["phase"], video["progress"]) == ("video", "queued", "queued", 0)
    assert (video["seconds"], video["size"], video["model"], video["error"]) == ("4", "64x64", "tiny", None)
    assert (video["prompt"], video["seed"], video["metadata"]) == ("a  red circle", 7, {"project": "demo"})
    assert (video["fps"], video["num_frames"], video["steps_total"], video["attempt"]) == (8, 33, 24, 0)
    assert video["events_url"].startswith(f"{answer.headers['location']}/events?token=")
    assert video["websocket_url"].startswith(f"ws{answer.headers['location'].removeprefix('http')}/ws?token=")
    assert abs(video["created_at"] - time.time()) < 60
    (row,) = inside.sql("SELECT * FROM jobs")
    assert json.loads(row["params"])["prompt"] == "a red circle"
    assert json.loads(row["safety"]) == {"category": "", "score": 0.0, "policy_version": "test-1"}


def test_a_video_says_what_it_costs_and_took(inside: Any) -> None:
    job_id = create(inside, seconds="4")

    def shown(**changes: Any) -> dict[str, Any]:
        for name, value in changes.items():
            table, _, column = name.partition("__")
            where = " WHERE stage = 'generate'" if table == "tasks" else ""
            inside.sql(f"UPDATE {table} SET {column} = ?{where}", value)
        return dict(inside.request("GET", f"/v1/videos/{job_id}").json())

    nothing = {"currency": "USD", "estimated": 0.004, "charged": None, "refunded": None}
    new = shown()
    assert (new["cost"], new["stage"], new["gpu_seconds"], new["stage_durations"]) == (nothing, None, 0, {})
    assert (new["inference_time_s"], new["peak_memory_mb"], new["preview_url"]) == (None, None, None)
    assert new["estimated_completion_at"] == pytest.approx(time.time() + new["eta_seconds"], abs=5)
    begun = shown(
        jobs__state="running",
        jobs__started_at_ms=new["created_at"] * 1000 + 60_000,
        tasks__state="leased",
        tasks__ran_s=10.0,
        tasks__used_s=2.5,
        tasks__group_size=2,
        jobs__meters=json.dumps({"denoise_s": 1.0, "decode_s": 0.5}),  # of the attempt before
    )
    assert (begun["stage"], begun["gpu_seconds"], begun["cost"]) == ("generate", 25.0, nothing)
    assert begun["stage_durations"]["queue"] == pytest.approx(60, abs=1.1)
    assert begun["inference_time_s"] is None
    measured = {"denoise_s": 4.25, "decode_s": 0.5, "load_s": 0.00012, "peak_memory_mb": 512.0, "x": 1.0}
    decoded = shown(tasks__state="done", jobs__meters=json.dumps(measured))
    assert (decoded["stage"], decoded["inference_time_s"], decoded["peak_memory_mb"]) == ("finish", 4.75, 512.0)
    assert list(decoded["stage_durations"]) == ["queue", "load", "denoise", "decode"]
    done = shown(jobs__state="completed", jobs__finished_at_ms=ids.now_ms())
    assert done["cost"] == {"currency": "USD", "estimated": 0.004, "charged": 0.004, "refunded": 0.0}
    assert (done["stage"], done["inference_time_s"], done["estimated_completion_at"]) == (None, 4.75, None)
    failed = shown(jobs__state="cancelled")
    assert failed["cost"] == {"currency": "USD", "estimated": 0.004, "charged": 0.0, "refunded": 0.004}
    assert failed["inference_time_s"] == 4.75, "its clip was made all the same"
    old = shown(jobs__price_usd_micros=None)
    assert old["cost"] == {"currency": "USD", "estimated": None, "charged": 0.0, "refunded": None}


def test_the_scheduler_hears_of_a_new_job(inside: Any) -> None:
    job_id = create(inside)
    inside.runner.run(inside.closing[0]())
    assert inside.neighbours.submitted == [job_id]


def test_a_form_says_the_same_as_json(inside: Any) -> None:
    fields = {"prompt": "a red circle", "seconds": "2", "seed": "9", "metadata[a]": "1", "metadata[b]": "2"}
    body = [(name, (None, value)) for name, value in fields.items()]
    body.append(("extra_body", (None, '{"guidance_scale": 3, "num_inference_steps": 30}')))
    answer = inside.request("POST", "/v1/videos", files=body)
    assert answer.status_code == 202, answer.text
    video = answer.json()
    assert (video["seconds"], video["seed"], video["steps_total"]) == ("2", 9, 30)
    assert video["metadata"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'"text"', None),
        (b"\xff\xfe", None),
        (b'{"prompt": "\xff"}', None),
        (b'{"prompt": "x", "seed": NaN}', None),
        (b'{"prompt": "x", "guidance_scale": -Infinity}', None),
        (b'{"prompt": "x", "guidance_scale": 1e999}', "guidance_scale"),
        (b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}", None),
        (b'{"prompt": "x", "prompt": "y"}', "prompt"),
        (b'{"prompt": "x", "extra_body": {"prompt": "y"}}', "prompt"),
        (b'{"prompt": "x", "extra_body": "["}', "extra_body"),
        (b'{"prompt": "x", "extra_body": 3}', "extra_body"),
        (b"[" * 200_000, None),
        (b'{"prompt":' * 100_000, None),
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"prompt": "a\\u0000b"}', "prompt"),
        (b'{"prompt": "x", "\\ud800": 1}', "\\ud800"),
        (b"{}", "prompt"),
    ],
)
def test_json_that_cannot_be_used_is_a_400(inside: Any, body: bytes, param: str | None) -> None:
    answer = inside.request("POST", "/v1/videos", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    said = error(answer)
    assert (said["param"], said["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize("path", READERS)
def test_every_route_reads_bodies_alike(inside: Any, path: str) -> None:
    json_type, form_type = "application/json", "multipart/form-data; boundary=XX"
    for content_type, body, status in (
        (json_type, b"", 400),
        (json_type, b"{", 400),
        (json_type, b"[]", 400),
        (json_type, b'{"a": NaN}', 400),
        (json_type, b'{"a": 1, "a": 2}', 400),
        (json_type, b'{"a": "\xff"}', 400),
        (json_type, b"[" * 10_000, 400),
        (form_type, b"nonsense", 400),
        (form_type, b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--XX', 400),
        (form_type, b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--XX--', 400),
        ("text/plain", b"{}", 415),
    ):
        answer = inside.request("POST", path, content=body, headers={"content-type": content_type})
        assert (answer.status_code, bool(error(answer)["message"])) == (status, True), (body, answer.text)


def part(name: str, value: str, extra: str = "") -> str:
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{value}\r\n'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (part("prompt", "x"), None),
        (part("prompt", "x") + "--XX", None),
        ("", "prompt"),
        ("nonsense", None),
        ("--XX\r\n\r\nno disposition\r\n--XX--", None),
        (part("prompt", "x") + part("prompt", "y") + "--XX--", "prompt"),
        (part("metadata[a]", "x") + part("metadata[a]", "y") + "--XX--", "metadata[a]"),
        (part("metadata", "{}") + part("metadata[a]", "y") + "--XX--", "metadata[a]"),
        (part("loras[][id]", "x") + "--XX--", "loras"),
        (part("[]", "x") + "--XX--", None),
        (part("", "x") + "--XX--", None),
        (part("prompt", "x", '; filename="x.txt"') + "--XX--", "prompt"),
        (part("prompt", "x") + part("input_reference", "x", '; filename="x.png"') + "--XX--", "input_reference"),
        (part("prompt", "x") + part("input_reference[image_url]", "http://x") + "--XX--", "input_reference"),
        ("".join(part(f"a{number}", "") for number in range(100)) + "--XX--", None),
    ],
)
def test_a_form_that_cannot_be_used_is_a_400(inside: Any, body: str, param: str | None) -> None:
    headers = {"content-type": "multipart/form-data; boundary=XX"}
    answer = inside.request("POST", "/v1/videos", content=body.encode(), headers=headers)
    assert answer.status_code == 400, answer.text
    assert error(answer)["param"] == param


@pytest.mark.parametrize(
    ("field", "param"),
    [
        (b'name="prompt"\r\n\r\nv\xe9', "prompt"),
        (b'name="metadata[a]"\r\n\r\n\xff', "metadata[a]"),
        (b'name="extra_body"\r\n\r\n{"prompt": "\xe9"}', "extra_body"),
        (b'name="pr\xe9"\r\n\r\nx', None),
    ],
)
def test_a_form_that_is_not_utf_8_is_a_400(inside: Any, field: bytes, param: str | None) -> None:
    body = b"--XX\r\nContent-Disposition: form-data; " + field + b"\r\n--XX--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=XX"}
    answer = inside.request("POST", "/v1/videos", content=body, headers=headers)
    assert answer.status_code == 400
    assert error(answer)["param"] == param
    assert "is not UTF-8" in error(answer)["message"]


@pytest.mark.parametrize("charset", ["utf-8", "hex", "rot13", "utf-16", "no-such", "undefined"])
def test_the_charset_of_a_form_is_utf_8_whatever_it_claims(inside: Any, charset: str) -> None:
    body = (part("prompt", "a naïve circle") + "--XX--\r\n").encode()
    headers = {"content-type": f"multipart/form-data; boundary=XX; charset={charset}"}
    answer = inside.request("POST", "/v1/videos", content=body, headers=headers)
    assert answer.json()["prompt"] == "a naïve circle"


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=XX", "application/jsonx", "é"],
)
def test_other_content_types_are_a_415(inside: Any, content_type: str) -> None:
    headers = {"content-type": content_type.encode("latin-1")}
    answer = inside.request("POST", "/v1/videos", content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 415
    assert "application/json or multipart/form-data" in error(answer)["message"]


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary=""', "; boundary=" + "x" * 300])
def test_a_form_without_a_boundary_is_a_400(inside: Any, boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data{boundary}"}
    answer = inside.request("POST", "/v1/videos", content=b"--XX--", headers=headers)
    assert answer.status_code == 400
    assert error(answer)["param"] == "content-type"


def test_a_body_that_is_too_large_is_a_413_whether_announced_or_not(inside: Any) -> None:
    async def chunks() -> Any:
        for _ in range(11):
            yield b"x" * (MAX_BODY_BYTES // 10)

    for content in (b"x" * (MAX_BODY_BYTES + 1), chunks()):
        answer = inside.request("POST", "/v1/videos", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert str(MAX_BODY_BYTES) in error(answer)["message"]


def test_all_bodies_that_arrive_have_a_limit_together(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ARRIVING", Places("bytes are arriving", 3000, 10_000))

    async def post(*sizes: int) -> list[int]:
        are_full = asyncio.Event()

        async def slowly(size: int) -> AsyncIterator[bytes]:
            yield b" " * size
            await are_full.wait()

        async def one(size: int) -> int:
            options = {"content": slowly(size), "headers": {"content-type": "application/json"}}
            answer = await inside._request("POST", "/v1/videos", "acme", options)
            if answer.status_code == 503:
                assert answer.headers["x-should-retry"] == "true"
                are_full.set()
            return int(answer.status_code)

        return await asyncio.gather(*map(one, sizes))

    for _ in range(2):  # what was taken is given back
        assert sorted(inside.runner.run(post(2000, 2000))) == [400, 503]


MANY = "[" + ",".join(["{}"] * 20_000) + "]"


@pytest.mark.parametrize(
    "sent",
    [
        {"content": f'{{"a": {MANY}}}', "headers": {"content-type": "application/json"}},
        {"json": {"prompt": "x", "extra_body": f'{{"a": {MANY}}}'}},
        {"files": [("prompt", (None, "x")), ("extra_body", (None, f'{{"a": {MANY}}}'))]},
    ],
)
def test_json_that_is_nothing_but_structure_is_not_parsed(inside: Any, sent: dict[str, Any]) -> None:
    answer = inside.request("POST", "/v1/videos", **sent)
    assert answer.status_code == 400
    assert "brackets, commas and colons" in error(answer)["message"]


@pytest.mark.parametrize("field", ["video", "input_reference", "last_frame", "metadata"])
def test_a_text_that_is_nothing_but_structure_is_no_object_of_any_field(
    inside: Any, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    loads = SimpleNamespace(loads=lambda _: pytest.fail("parsed"))
    monkeypatch.setattr("vitascope_gateway.forms.json", loads)
    fields = {"prompt": "x", field: f'{{"image_url": {MANY}}}'}
    if field == "last_frame":
        fields["input_reference"] = "data:image/png;base64,"
    escaped = json.dumps(fields).replace("{},", r"\u007b}\u002c")  # which the limit for a body does not count
    form = {"files": [(name, (None, text)) for name, text in fields.items()]}
    for path in ("/edits", "/extensions") if field == "video" else ("", "/estimate"):
        for body in ({"content": escaped, "headers": {"content-type": "application/json"}}, form):
            answer = inside.request("POST", f"/v1/videos{path}", **body)
            assert (answer.status_code, error(answer)["param"]) == (400, field)


def test_labels_as_text_are_measured_before_they_are_parsed(inside: Any) -> None:
    parts = [("prompt", (None, "x")), ("metadata", (None, " " * 200_000 + "{}"))]
    answer = inside.request("POST", "/v1/videos", files=parts)
    assert (answer.status_code, error(answer)["param"]) == (400, "metadata")
    assert "characters" in error(answer)["message"]


def test_a_large_body_is_parsed_beside_the_other_requests(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[str] = []
    loads = json.loads

    def watched(*args: Any, **options: Any) -> Any:
        where.append(threading.current_thread().name)
        return loads(*args, **options)

    monkeypatch.setattr(bodies.json, "loads", watched)
    assert inside.request("POST", "/v1/videos", json={"prompt": "x", "user": "u" * 100_000}).status_code == 202
    assert inside.request("POST", "/v1/videos", json={"prompt": "x"}).status_code == 202
    assert any(name.startswith("parser") for name in where)
    assert threading.current_thread().name in where


fields = st.sampled_from(["prompt", "model", "seconds", "size", "seed", "metadata", "extra_body", "input_reference"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("4") | st.just("x" * 300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
documents = st.dictionaries(fields | st.text(max_size=12), values, max_size=5).map(
    lambda fields: json.dumps(fields).encode()
)
PIECES = (
    *(
        b"--XX\r\n",
        b"--XX--\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b'Content-Disposition: form-data; name="',
        b'prompt"',
        b'"',
        b"x",
    ),
    *(b'; filename="f"', b"Content-Type: text/plain; charset=hex", b"\0", b"\xff", b"[a]", b"[]", b"metadata", b"="),
)
pieces = st.sampled_from(PIECES)
forms = st.lists(pieces | st.binary(max_size=8), max_size=25).map(b"".join)
whole_forms = st.lists(st.tuples(fields | st.text(max_size=8), st.text(max_size=12)), max_size=4).map(
    lambda parts: ("".join(part(name.replace('"', ""), value) for name, value in parts) + "--XX--").encode(
        errors="replace"
    )
)


@given(
    path=st.sampled_from(READERS),
    sent=st.tuples(st.just("application/json"), documents | st.binary(max_size=60))
    | st.tuples(st.just("multipart/form-data; boundary=XX"), forms | whole_forms)
    | st.tuples(
        st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30), st.binary(max_size=9)
    ),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_causes_a_5xx(inside: Any, path: str, sent: tuple[str, bytes]) -> None:
    content_type, body = sent
    headers = {"content-type": content_type.encode("latin-1")}
    answer = inside.request("POST", path, content=body, headers=headers)
    assert answer.status_code in (200, 202, 400, 404, 415), (answer.status_code, answer.text)
    if answer.status_code > 202:
        assert error(answer)["message"]


@given(
    path=st.text(max_size=20).map(lambda text: f"/v1/videos/{text}")
    | st.text(max_size=20).map(lambda text: f"/{text}"),
    query=st.dictionaries(
        st.sampled_from(["after", "limit", "order", "variant", "last_event_id", "x"]), st.text(max_size=30)
    ),
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "BREW"]),
    last_event_id=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_or_query_causes_a_5xx(
    inside: Any, path: str, query: dict[str, str], method: str, last_event_id: str
) -> None:
    try:
        url = httpx.URL("http://gateway.test", path=path, params=query)
    except (httpx.InvalidURL, UnicodeEncodeError):
        return
    answer = inside.request(method, url, headers={"last-event-id": last_event_id})
    assert answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code >= 400 and method != "HEAD":
        error(answer)


def test_without_a_key_nothing_is_shown(inside: Any) -> None:
    job_id = create(inside)
    keys = ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {inside.keys['acme']}", "Bearer " + "x" * 5000, "Bearer é"]
    for key in keys:
        for path in ("/v1/videos", f"/v1/videos/{job_id}", f"/v1/videos/{job_id}/events", "/v1/models"):
            headers = {"Authorization": key.encode("latin-1")} if key else {}
            answer = inside.request("GET", path, tenant=None, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert error(answer)["code"] == "invalid_api_key"


def test_a_page_of_another_origin_may_ask_and_read_every_answer(inside: Any) -> None:
    job_id = create(inside)
    page = {"Origin": "https://app.example"}
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    leave = inside.request("OPTIONS", "/v1/videos", tenant=None, headers=page | wish)
    assert leave.status_code == 200
    assert leave.headers["access-control-allow-origin"] == "*"
    assert {"authorization", "idempotency-key"} <= set(leave.headers["access-control-allow-headers"].split(","))
    for tenant, path, status in [
        ("acme", f"/v1/videos/{job_id}", 200),
        ("acme", f"/v1/videos/{job_id}/content", 404),
        (None, f"/v1/videos/{job_id}/events", 401),
    ]:
        answer = inside.request("GET", path, tenant=tenant, headers=page)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "*")
        assert "access-control-allow-credentials" not in answer.headers
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"x-request-id", "openai-poll-after-ms", "retry-after"} <= exposed


def test_what_a_page_may_not_send_is_refused_in_the_envelope(inside: Any) -> None:
    wish = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST", "X-Request-Id": "mine"}
    leave = inside.request("OPTIONS", "/v1/videos", tenant=None, headers=wish)
    assert (leave.status_code, leave.headers["x-request-id"]) == (200, "mine")
    for header, value in (
        ("Access-Control-Request-Method", "PUT"),
        ("Access-Control-Request-Private-Network", "true"),
    ):
        answer = inside.request("OPTIONS", "/v1/videos", tenant=None, headers=wish | {header: value})
        assert (answer.status_code, answer.headers["x-request-id"]) == (400, "mine")
        assert error(answer)["code"] == "invalid_request"
        assert "GET, HEAD, POST, DELETE" in error(answer)["message"]


def test_a_crash_can_be_read_by_a_page_and_has_an_id(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(*_: Any) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(inside.gateway, "video", crash)
    answer = inside.request("GET", f"/v1/videos/{'0' * 32}", headers={"Origin": "https://app.example"})
    assert (answer.status_code, error(answer)["code"]) == (500, "internal")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("name", ["edits", "extensions", "estimate", "characters", "models"])
def test_a_word_that_is_a_route_is_no_id(inside: Any, name: str) -> None:
    allowed = "GET" if name == "models" else "POST"
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        answer = inside.request(method, f"/v1/videos/{name}", json=None if method == "GET" else {})
        if method == allowed:
            assert answer.status_code in (200, 400)
            continue
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        if method != "HEAD":
            assert error(answer)["code"] == "method_not_allowed"


def test_another_tenants_video_does_not_exist(inside: Any) -> None:
    job_id = create(inside)
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/content"),
        ("GET", "/events"),
    ):
        answer = inside.request(method, f"/v1/videos/{job_id}{path}", tenant="other")
        assert (answer.status_code, error(answer)["code"]) == (404, "not_found")
    assert inside.request("GET", "/v1/videos", tenant="other").json()["data"] == []
    assert error(inside.request("GET", f"/v1/videos?after={job_id}", tenant="other"))["param"] == "after"
    assert (inside.neighbours.cancelled, inside.neighbours.deleted) == ([], [])


def test_a_revoked_key_stops_to_open(inside: Any) -> None:
    inside.sql("UPDATE api_keys SET revoked_at_ms = 1")
    assert inside.request("GET", "/v1/models").status_code == 401


def test_a_refused_prompt_never_becomes_a_job(inside: Any) -> None:
    for fields in ({"prompt": "something forbidden"}, {"negative_prompt": "something forbidden", "prompt": "x"}):
        answer = inside.request("POST", "/v1/videos", json=fields)
        assert answer.status_code == 400
        assert (error(answer)["code"], error(answer)["param"]) == ("moderation_blocked", next(iter(fields)))
    assert inside.sql("SELECT * FROM jobs") == []


@pytest.mark.parametrize(
    "failure",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED],
)
def test_without_a_verdict_nothing_passes(inside: Any, failure: grpc.StatusCode) -> None:
    inside.neighbours.failure = failure
    answer = inside.request("POST", "/v1/videos", json={"prompt": "a red circle"})
    assert (answer.status_code, error(answer)["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert inside.sql("SELECT * FROM jobs") == []


def test_without_a_scheduler_a_job_is_promised_and_shown_but_not_cancelled(inside: Any) -> None:
    job_id = create(inside)
    inside.neighbours.failure = grpc.StatusCode.UNAVAILABLE
    video = inside.request("GET", f"/v1/videos/{job_id}").json()
    assert (video["status"], video["queue_position"], video["eta_seconds"]) == ("queued", None, None)
    assert inside.request("POST", f"/v1/videos/{job_id}/cancel").status_code == 503
    assert inside.request("DELETE", f"/v1/videos/{job_id}").status_code == 503


def test_without_a_database_every_answer_is_a_503_that_keeps_secrets(inside: Any) -> None:
    assert inside.request("GET", "/v1/models").status_code == 200  # the key is known now
    os.rename(inside.database.engine.url.database, inside.database.engine.url.database + ".away")
    os.mkdir(inside.database.engine.url.database)
    inside.runner.run(inside.database.close())
    answer = inside.request("POST", "/v1/videos", json={"prompt": "a red circle"})
    assert (answer.status_code, error(answer)["code"]) == (503, "unavailable")
    assert "can be repeated" in error(answer)["message"]  # nothing was begun
    assert "sqlite" not in answer.text.lower()
    assert "unable to open" not in answer.text
    assert inside.request("GET", "/v1/videos", tenant="other").status_code == 503
    ready = inside.request("GET", "/readyz")
    assert ready.status_code == 503
    assert "database" in error(ready)["message"]
    assert "prompt" not in error(ready)["message"]


def test_a_commit_whose_answer_is_lost_is_not_said_to_be_repeatable(inside: Any) -> None:
    assert inside.request("GET", "/v1/models").status_code == 200  # the key is known now
    inside.lose_next_commit()
    answer = inside.request("POST", "/v1/videos", json={"prompt": "a red circle"})
    assert (answer.status_code, error(answer)["code"]) == (503, "unavailable")
    assert "GET /v1/videos" in error(answer)["message"]
    assert (answer.headers["x-should-retry"], answer.headers.get("retry-after")) == ("false", None)
    assert len(inside.request("GET", "/v1/videos").json()["data"]) == 1


def test_running_completed_failed_and_cancelled_jobs_show_four_states(inside: Any) -> None:
    job_id = create(inside, num_inference_steps=50)
    task = ids.task_id(job_id, "generate", 0)
    assert inside.request("GET", f"/v1/videos/{job_id}").headers["openai-poll-after-ms"] == "1500"

    inside.sql("UPDATE jobs SET state = 'running', phase = 'denoising'")
    inside.sql("UPDATE tasks SET done = 17, attempt = 2 WHERE task_id = ?", task)
    video = inside.request("GET", f"/v1/videos/{job_id}").json()
    assert (video["status"], video["phase"], video["progress"]) == ("in_progress", "denoising", 34)
    assert (video["steps_done"], video["steps_total"], video["attempt"]) == (17, 50, 2)
    assert (video["eta_seconds"], video["completed_at"]) == (30.0, None)
    inside.sql("UPDATE tasks SET done = 50 WHERE task_id = ?", task)
    assert inside.request("GET", f"/v1/videos/{job_id}").json()["progress"] == 99

    inside.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 5000, expires_at_ms = 9000")
    video = inside.request("GET", f"/v1/videos/{job_id}").json()
    assert (video["status"], video["progress"], video["completed_at"], video["expires_at"]) == ("completed", 100, 5, 9)

    inside.sql("UPDATE jobs SET state = 'failed', error_code = 'poison', error_message = 'It crashed three times.'")
    video = inside.request("GET", f"/v1/videos/{job_id}").json()
    assert video["error"] == {"code": "poison", "message": "It crashed three times."}
    assert (video["status"], video["completed_at"]) == ("failed", None)

    inside.sql("UPDATE jobs SET state = 'cancelled', error_code = NULL, error_message = NULL")
    video = inside.request("GET", f"/v1/videos/{job_id}").json()
    assert (video["status"], video["phase"], video["error"]["code"]) == ("failed", "cancelled", "cancelled")


def test_content_is_a_link_that_delivery_can_verify(inside: Any) -> None:
    job_id = create(inside)
    inside.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 1")
    for query, variant, suffix in (
        ("", "video", "mp4"),
        ("?variant=thumbnail", "thumbnail", "webp"),
        ("?variant=spritesheet", "spritesheet", "jpg"),
    ):
        for method in ("GET", "HEAD"):
            answer = inside.request(method, f"/v1/videos/{job_id}/content{query}")
            assert (answer.status_code, answer.headers["cache-control"]) == (302, "no-store")
            link = urlsplit(answer.headers["location"])
            assert (link.netloc, link.path) == ("delivery.test", f"/videos/{job_id}/{variant}")
            signed = tokens.verify_path(link.path, link.query, time.time(), SecretStr(SIGNING_KEY))
            assert signed == {"filename": f"{job_id}.{suffix}"}
            assert 3500 < int(parse_qs(link.query)["expires"][0]) - time.time() <= 3600
    answer = inside.request("GET", f"/v1/videos/{job_id}/content?variant=poster")
    assert (answer.status_code, error(answer)["param"]) == (400, "variant")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("state = 'queued'", "video_not_ready"),
        ("state = 'running', phase = 'decoding'", "video_not_ready"),
        ("state = 'failed', error_code = 'poison', error_message = 'It crashed.'", "video_failed"),
        ("state = 'cancelled'", "video_failed"),
        ("state = 'completed', expires_at_ms = 1", "video_expired"),
        ("state = 'completed', deleted_at_ms = 1", "not_found"),
    ],
)
def test_content_that_is_not_there_is_a_404_with_the_reason(inside: Any, change: str, code: str) -> None:
    job_id = create(inside)
    inside.sql(f"UPDATE jobs SET {change}")
    answer = inside.request("GET", f"/v1/videos/{job_id}/content")
    assert (answer.status_code, error(answer)["code"]) == (404, code)


def test_pages_cover_everything_once_in_either_order(inside: Any) -> None:
    made = [create(inside) for _ in range(5)]
    inside.sql("UPDATE jobs SET created_at_ms = 1000 WHERE job_id IN (?, ?)", made[1], made[2])  # a tie
    for order in ("asc", "desc"):
        seen: list[str] = []
        query = ""
        while True:
            page = inside.request("GET", f"/v1/videos?limit=2&order={order}{query}").json()
            found = [video["id"] for video in page["data"]]
            assert (page["object"], page["first_id"], page["last_id"]) == ("list", found[0], found[-1])
            seen += found
            if not page["has_more"]:
                break
            query = f"&after={page['last_id']}"
        assert sorted(seen) == sorted(made)
        assert seen == (made[1:3] + made[:1] + made[3:] if order == "asc" else (made[1:3] + made[:1] + made[3:])[::-1])
    inside.sql("UPDATE jobs SET deleted_at_ms = 1 WHERE job_id = ?", made[3])
    page = inside.request("GET", f"/v1/videos?after={made[3]}").json()
    assert made[3] not in [video["id"] for video in page["data"]]
    assert len(page["data"]) == 3
    empty = inside.request("GET", "/v1/videos", tenant="other").json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=x", "after=%00", "after="])
def test_a_page_that_cannot_be_is_a_400(inside: Any, query: str) -> None:
    answer = inside.request("GET", f"/v1/videos?{query}")
    assert (answer.status_code, error(answer)["param"]) == (400, query.partition("=")[0])


def test_cancel_and_delete_are_the_schedulers(inside: Any) -> None:
    job_id = create(inside)
    assert inside.request("POST", f"/v1/videos/{job_id}/cancel").json()["id"] == job_id
    answer = inside.request("DELETE", f"/v1/videos/{job_id}", headers={"content-type": "application/json"})
    assert answer.json() == {"id": job_id, "object": "video.deleted", "deleted": True}
    assert inside.neighbours.cancelled == inside.neighbours.deleted == [("acme", job_id)]


def test_request_ids_are_echoed_when_they_are_sane(inside: Any) -> None:
    for given_id, is_kept in (("abc-1.2:3", True), ("a" * 129, False), ("a b", False), ("é", False), ("", False)):
        answer = inside.request("GET", "/healthz", headers={"x-request-id": given_id.encode("latin-1")})
        assert (answer.headers["x-request-id"] == given_id) is is_kept
        assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]


def test_routes_and_methods_that_do_not_exist_answer_in_the_envelope(inside: Any) -> None:
    answer = inside.request("GET", "/v1/nothing")
    assert (answer.status_code, error(answer)["code"]) == (404, "not_found")
    answer = inside.request("PATCH", "/v1/videos")
    assert (answer.status_code, error(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"]


def test_a_host_that_is_none_is_not_repeated(inside: Any) -> None:
    for host in ("[", "a b", "evil/..", "x" * 300, "user@host", "é"):
        answer = inside.request("POST", "/v1/videos", json={"prompt": "x"}, headers={"host": host.encode("latin-1")})
        assert answer.status_code == 202
        assert answer.headers["location"].startswith("/v1/videos/video_")
    answer = inside.request("POST", "/v1/videos", json={"prompt": "x"}, headers={"host": "[::1]:80"})
    assert answer.headers["location"].startswith("http://[::1]:80/v1/videos/video_")


def test_models_say_what_they_can_do(inside: Any) -> None:
    listed = inside.request("GET", "/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["sizes"], model["seconds"]) == (
        "tiny",
        "model",
        ["64x64", "96x64"],
        ["2", "4"],
    )
    assert inside.request("GET", "/v1/models/tiny").json() == model
    assert error(inside.request("GET", "/v1/models/sora-2"))["param"] == "model"


def test_the_document_names_every_route_and_its_errors(inside: Any) -> None:
    document = inside.request("GET", "/openapi.json", tenant=None).json()
    create_ = document["paths"]["/v1/videos"]["post"]
    statuses = "200 202 400 401 403 404 408 413 415 422 429 503"
    assert sorted(create_["responses"]) == statuses.split()
    assert set(create_["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    fields = create_["requestBody"]["content"]["application/json"]["schema"]["properties"]
    others = {*IGNORED_FIELDS, "extra_body"}
    assert set(fields) == {*FIELDS, *others}
    form = create_["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert len(form["last_frame"]["anyOf"]) == 3  # a file is a string, and so is a data URL: never oneOf
    edit, extension = (document["paths"][f"/v1/videos/{one}"]["post"] for one in ("edits", "extensions"))
    fields = edit["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(fields) == {*FIELDS, *others, "strength", "video"} - PICTURES.keys()
    assert set(edit["responses"]) == set(create_["responses"]) | {"409"} == set(extension["responses"])
    retry = document["paths"]["/v1/videos/{video_id}/retry"]["post"]
    assert set(retry["responses"]) == {"200", "202", "400", "401", "403", "404", "409", "422", "429", "503"}
    assert create_["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorEnvelope")
    assert "404" in document["paths"]["/v1/videos/{video_id}"]["get"]["responses"]
    assert "ValidationError" not in json.dumps(document)
    assert [one["name"] for one in create_["parameters"]] == ["Idempotency-Key"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_reference_is_readable_without_the_internet(inside: Any, path: str) -> None:
    page = inside.request("GET", path, tenant=None)
    assert page.status_code == 200
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert any(one.endswith(".js") for one in assets)
    for one in assets:
        assert one.startswith("/"), f"it asks another server for {one}"
        assert inside.request("GET", one, tenant=None).status_code == 200
