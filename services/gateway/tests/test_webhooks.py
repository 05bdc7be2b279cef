"""Webhooks at the edge: what may be asked for, who sees what, what a request may name."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from vitascope_common.testing import Receiver, free_port, webhook_receiver
from vitascope_common.webhooks import EVENT_TYPES
from vitascope_gateway.webhooks import MAX_ENDPOINTS, MAX_TESTS_OF_TENANT, TEST_VIDEO_ID

URL = "https://hooks.example.com/in?key=1"
FIELDS = {"name": "CI", "url": URL, "event_types": ["video.completed"]}
EVENT_ID = "evt_" + "5" * 32


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as one:
        yield one


def create(inside: Any, tenant: str = "acme", **fields: Any) -> dict[str, Any]:
    answer = inside.request("POST", "/v1/webhook_endpoints", tenant=tenant, json=FIELDS | fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def error_of(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def add_delivery(inside: Any, number: int, **columns: Any) -> str:
    """Write what the job manager writes when a job ends, and what the sender makes of it."""
    row = {
        "delivery_id": f"whd_{number:032x}",
        "tenant_id": "acme",
        "event_id": EVENT_ID,
        "event_type": "video.failed",
        "job_id": f"video_{number:032x}",
        "url": URL,
        "host": "hooks.example.com",
        "payload": "{}",
        "next_at_ms": 9000,
        "created_at_ms": 1000 * (number // 2),
        **columns,
    }
    names = ", ".join(row)
    inside.sql(f"INSERT INTO webhook_deliveries ({names}) VALUES ({', '.join('?' * len(row))})", *row.values())
    return str(row["delivery_id"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"name": 7}, "name"),
        ({"url": None}, "url"),
        ({"url": 7}, "url"),
        ({"url": "hooks.example.com"}, "url"),
        ({"url": "ftp://hooks.example.com/"}, "url"),
        ({"url": "https://user:password@hooks.example.com/"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
        ({"url": "https://hooks.example.com/" + "x" * 2048}, "url"),
        ({"url": "https://hooks.example.com/\0"}, "url"),
        ({"url": "https://hooks.example.com/\ud800"}, "url"),
        ({"event_types": None}, "event_types"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["batch.completed"]}, "event_types"),
        ({"event_types": [["video.failed"]]}, "event_types"),
        ({"event_types": [{}]}, "event_types"),
        ({"event_types": {"video.failed": 1}}, "event_types"),
        ({"event_types": 7}, "event_types"),
        ({"secret": "whsec_mine"}, "secret"),
    ],
)
def test_what_no_endpoint_can_be_is_refused_by_name(inside: Any, fields: dict[str, Any], param: str) -> None:
    body = json.dumps(FIELDS | fields)
    options = {"content": body, "headers": {"content-type": "application/json"}}
    status, code, named = error_of(inside.request("POST", "/v1/webhook_endpoints", **options))
    assert (status, named) == (400, param)
    assert code in ("invalid_request", "url_refused")
    assert inside.request("GET", "/v1/webhook_endpoints").json()["data"] == []


def test_a_secret_is_shown_once(inside: Any) -> None:
    made = inside.request("POST", "/v1/webhook_endpoints", json=FIELDS)
    assert made.headers["cache-control"] == "no-store"
    secret, path = made.json()["signing_secret"], f"/v1/webhook_endpoints/{made.json()['id']}"
    for answer in (
        inside.request("GET", path),
        inside.request("GET", "/v1/webhook_endpoints"),
        inside.request("POST", path, json={"name": "CD"}),
    ):
        assert answer.status_code == 200
        assert secret not in answer.text
        assert 'signing_secret"' not in answer.text
    rotated = inside.request("POST", f"{path}/rotate_secret").json()
    assert rotated["signing_secret"] != secret
    for value in ("true", "false"):
        form = {"keep_old_secret_active_for_24_hours": (None, value)}
        assert inside.request("POST", f"{path}/rotate_secret", files=form).status_code == 200
        (row,) = inside.sql("SELECT old_secret FROM webhook_endpoints")
        assert (row["old_secret"] is not None) is (value == "true")
    for value in ("yes", 1, "True"):
        fields = {"keep_old_secret_active_for_24_hours": value}
        answer = inside.request("POST", f"{path}/rotate_secret", json=fields)
        assert error_of(answer) == (400, "invalid_request", "keep_old_secret_active_for_24_hours")


@pytest.mark.parametrize(
    "headers", [[{"Idempotency-Key": "{}"}] * 2, [{"x-stainless-retry-count": count} for count in "01"]]
)
def test_an_answer_that_is_lost_makes_no_second_endpoint_and_no_third_secret(inside: Any, headers: Any) -> None:
    inside.request("GET", "/v1/webhooks/default/secret")
    keep = {"keep_old_secret_active_for_24_hours": True}
    secrets = "SELECT secret, old_secret FROM"
    for path, body, table in (
        ("/v1/webhook_endpoints", FIELDS, "webhook_endpoints"),
        ("/v1/webhook_endpoints/{}/rotate_secret", keep, "webhook_endpoints"),
        ("/v1/webhooks/default/rotate_secret", keep, "webhook_tenants"),
    ):
        before = [row["secret"] for row in inside.sql(f"{secrets} {table}")]
        ids = [row["endpoint_id"] for row in inside.sql("SELECT endpoint_id FROM webhook_endpoints")]
        path = path.format(*ids)
        first, again = ({name: value.format(path) for name, value in one.items()} for one in headers)
        inside.lose_next_commit()
        lost = inside.request("POST", path, json=body, headers=first)
        assert (lost.status_code, lost.headers["x-should-retry"]) == (503, "true")
        answer = inside.request("POST", path, json=body, headers=again)
        assert (answer.status_code, answer.headers.get("idempotent-replayed")) == (200, "true"), answer.text
        (row,) = inside.sql(f"{secrets} {table}")
        assert (answer.json()["signing_secret"], [row["old_secret"]]) == (row["secret"], before or [None])


def test_without_a_mark_an_unknown_outcome_is_not_said_to_be_repeatable(inside: Any) -> None:
    path = f"/v1/webhook_endpoints/{create(inside)['id']}"
    for ask, is_repeatable in ((f"{path}/rotate_secret", "false"), ("/v1/webhook_endpoints", "false"), (path, "true")):
        inside.lose_next_commit()
        answer = inside.request("POST", ask, json={"name": "new"} if ask == path else {} if "rotate" in ask else FIELDS)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, is_repeatable)


def test_an_update_that_changes_nothing_is_none_and_any_other_enables_again(inside: Any) -> None:
    made = create(inside)
    path = f"/v1/webhook_endpoints/{made['id']}"
    inside.sql("UPDATE webhook_endpoints SET updated_at_ms = 5000")
    assert inside.request("POST", path, json=FIELDS).json()["updated_at"] == 5
    assert inside.request("POST", path).json()["updated_at"] == 5
    inside.sql("UPDATE webhook_endpoints SET disabled_at_ms = 7000")
    assert inside.request("GET", path).json()["disabled_at"] == 7
    enabled = inside.request("POST", path, json={"url": URL}).json()
    assert enabled["disabled_at"] is None
    assert enabled["updated_at"] > 5


def test_the_twentieth_endpoint_is_the_last_also_at_once(inside: Any) -> None:
    async def make_all() -> list[int]:
        calls = (inside._request("POST", "/v1/webhook_endpoints", "acme", {"json": FIELDS}) for _ in range(24))
        return [answer.status_code for answer in await asyncio.gather(*calls)]

    assert sorted(inside.runner.run(make_all())) == [200] * MAX_ENDPOINTS + [400] * 4
    refused = inside.request("POST", "/v1/webhook_endpoints", json=FIELDS)
    assert error_of(refused) == (400, "invalid_request", None)
    assert str(MAX_ENDPOINTS) in refused.json()["error"]["message"]
    page = inside.request("GET", "/v1/webhook_endpoints?limit=100").json()["data"]
    assert inside.request("DELETE", f"/v1/webhook_endpoints/{page[0]['id']}").json()["deleted"] is True
    create(inside)
    create(inside, tenant="other")


def test_an_endpoint_of_another_tenant_does_not_exist(inside: Any) -> None:
    path = f"/v1/webhook_endpoints/{create(inside)['id']}"
    for method, suffix, body in (
        ("GET", "", None),
        ("POST", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("POST", "/rotate_secret", {}),
        ("POST", "/test", {"event_type": "video.failed"}),
    ):
        theirs = inside.request(method, path + suffix, tenant="other", json=body)
        nobodys = inside.request(method, f"/v1/webhook_endpoints/we_{'0' * 32}{suffix}", tenant="other", json=body)
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.json() == nobodys.json()
        assert inside.request(method, path + suffix, tenant=None, json=body).status_code == 401
    assert inside.request("GET", "/v1/webhook_endpoints", tenant="other").json()["data"] == []
    assert inside.request("GET", path).json()["name"] == "CI"


@pytest.mark.parametrize("path", ["/v1/webhook_endpoints/%00", "/v1/webhook_endpoints/we_\N{ARABIC-INDIC DIGIT ONE}"])
def test_what_has_not_the_form_of_an_id_is_not_looked_up(inside: Any, path: str) -> None:
    assert inside.request("GET", path).status_code == 404
    assert inside.request("POST", "/v1/webhook_deliveries/%00/replay").status_code == 404
    for query in ("after=%00", "video_id=%00", "webhook_endpoint_id=%00", "status=lost", "limit=0"):
        status, _, param = error_of(inside.request("GET", f"/v1/webhook_deliveries?{query}"))
        assert (status, param) == (400, query.partition("=")[0])
    assert error_of(inside.request("GET", "/v1/webhook_endpoints?after=%00"))[::2] == (400, "after")


def test_a_test_goes_out_now_and_says_what_came_back(inside: Any, receiver: Receiver) -> None:
    path = f"/v1/webhook_endpoints/{create(inside, url=receiver.url())['id']}/test"
    receiver.answer("/hook", 204, 500, 302, location="http://169.254.169.254/")
    for status in (204, 500, 302):
        answer = inside.request("POST", path, json={"event_type": "video.completed"}).json()
        assert (answer["status_code"], answer["success"], answer["event_type"]) == (status, True, "video.completed")
    assert len(receiver.received()) == 3, "a redirect is not followed"
    assert len({one.headers["webhook-id"] for one in receiver.received()}) == 3
    assert all(TEST_VIDEO_ID in one.body.decode() for one in receiver.received())
    assert inside.request("GET", "/v1/webhook_deliveries").json()["data"] == [], "a test is no delivery"
    for body in ({}, {"event_type": "batch.failed"}, {"event_type": ["video.failed"]}, {"event_type": None}):
        answer = inside.request("POST", path, json=body)
        assert error_of(answer) == (400, "invalid_request", "event_type")
        assert answer.json()["error"]["message"] == 'event_type must be one of "video.completed", "video.failed".'


def test_a_test_that_nobody_answers_is_an_error_that_says_so(inside: Any) -> None:
    path = f"/v1/webhook_endpoints/{create(inside, url=f'http://127.0.0.1:{free_port()}/')['id']}/test"
    answer = inside.request("POST", path, json={"event_type": "video.completed"})
    assert error_of(answer)[:2] == (400, "url_failed")
    assert "cannot be reached" in answer.json()["error"]["message"]


def test_one_tenants_slow_receivers_leave_tests_to_others(inside: Any, receiver: Receiver) -> None:
    receiver.held.add("/slow")
    slow, quick = create(inside, url=receiver.url("/slow")), create(inside, url=receiver.url("/quick"))
    theirs = create(inside, "other", url=receiver.url("/theirs"))

    async def scene() -> tuple[list[Any], Any, Any]:
        async def ask(tenant: str, endpoint: dict[str, Any]) -> Any:
            path = f"/v1/webhook_endpoints/{endpoint['id']}/test"
            return await inside._request("POST", path, tenant, {"json": {"event_type": "video.failed"}})

        held = [asyncio.create_task(ask("acme", slow)) for _ in range(MAX_TESTS_OF_TENANT)]
        await asyncio.to_thread(receiver.wait, MAX_TESTS_OF_TENANT, "/slow")
        refused, other = await ask("acme", quick), await ask("other", theirs)
        receiver.release()
        return await asyncio.gather(*held), refused, other

    held, refused, other = inside.runner.run(scene())
    assert error_of(refused)[:2] == (429, "quota_exceeded")
    assert (refused.headers["x-should-retry"], refused.headers["retry-after"]) == ("true", "1")
    assert [one.status_code for one in (*held, other)] == [200] * (MAX_TESTS_OF_TENANT + 1)


def test_a_host_that_leads_inside_is_refused_when_an_endpoint_is_made(
    inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"in.example.com": ["10.0.0.1"], "both.example.com": ["8.8.8.8", "fd00::1"], "out.example.com": ["8.8.8.8"]}
    may_answer = asyncio.Event()

    async def resolve(host: str, _: int) -> list[str]:
        if host == "slow.example.com":
            await may_answer.wait()
        if host not in found:
            raise OSError("no such name")
        return found[host]

    monkeypatch.setattr(inside.guard, "_resolve", resolve)
    monkeypatch.setattr("vitascope_gateway.webhooks.LOOKUP_TIMEOUT_S", 0.05)
    for host in ("in.example.com", "both.example.com"):
        answer = inside.request("POST", "/v1/webhook_endpoints", json=FIELDS | {"url": f"https://{host}/hook"})
        assert error_of(answer) == (400, "url_refused", "url")
        assert "10.0.0.1" not in answer.text
    made = [create(inside, url=f"https://{name}.example.com/hook") for name in ("out", "later", "slow")]
    path = f"/v1/webhook_endpoints/{made[0]['id']}"
    answer = inside.request("POST", path, json={"url": "https://in.example.com/hook"})
    assert error_of(answer) == (400, "url_refused", "url")
    assert inside.request("GET", path).json()["url"] == "https://out.example.com/hook"
    key = {"Idempotency-Key": "k"}
    once, again = FIELDS | {"url": "https://out.example.com/hook"}, []
    for found["out.example.com"] in (["8.8.8.8"], ["10.0.0.1"]):
        again.append(inside.request("POST", "/v1/webhook_endpoints", json=once, headers=key).json().get("id"))
    assert again[0] == again[1] is not None, "what was made already is not judged again"
    may_answer.set()
    inside.runner.run(asyncio.sleep(0))


def test_the_default_secret_is_made_once_kept_and_can_be_replaced(inside: Any) -> None:
    first = inside.request("GET", "/v1/webhooks/default/secret")
    assert first.headers["cache-control"] == "no-store"
    secret = first.json()["signing_secret"]
    assert inside.request("GET", "/v1/webhooks/default/secret").json()["signing_secret"] == secret
    assert inside.request("GET", "/v1/webhooks/default/secret", tenant="other").json()["signing_secret"] != secret
    fields = {"keep_old_secret_active_for_24_hours": True}
    rotated = inside.request("POST", "/v1/webhooks/default/rotate_secret", json=fields).json()
    assert rotated["signing_secret"] != secret
    assert rotated["old_secret_expires_at"] > 0
    assert inside.request("GET", "/v1/webhooks/default/secret").json() == rotated


def test_a_request_names_whom_to_tell_and_a_repeated_one_tells_them_too(inside: Any) -> None:
    body = {"prompt": "a circle", "webhook_url": URL, "webhook_events": ["video.failed"]}
    video = inside.request("POST", "/v1/videos", json=body)
    assert video.status_code == 202
    assert "key=1" not in video.text
    secret = inside.sql("SELECT secret FROM webhook_tenants WHERE tenant_id = 'acme'")[0]["secret"]
    assert inside.request("GET", "/v1/webhooks/default/secret").json()["signing_secret"] == secret
    inside.sql("UPDATE jobs SET state = 'failed', finished_at_ms = 1")
    assert inside.request("POST", f"/v1/videos/{video.json()['id']}/retry").status_code == 202
    rows = inside.sql("SELECT webhook_url, webhook_events FROM jobs")
    assert [tuple(row) for row in rows] == [(URL, "video.failed")] * 2


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"webhook_events": "video.failed, video.completed"}, "video.failed video.completed"),
        ({"webhook_events": '["video.failed"]'}, "video.failed"),
        ({"webhook_events[]": ["video.completed", "video.failed"]}, "video.completed video.failed"),
        ({}, ""),
    ],
)
def test_a_form_names_events_as_text_or_as_a_list(inside: Any, form: dict[str, Any], expected: str) -> None:
    parts = {"prompt": "a circle", "webhook_url": URL} | form
    files = [
        (name, (None, value))
        for name, values in parts.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    answer = inside.request("POST", "/v1/videos", files=files)
    assert answer.status_code == 202, answer.text
    assert inside.sql("SELECT webhook_events FROM jobs")[0]["webhook_events"] == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"webhook_url": "http://8.8.8.8/"}, "webhook_url"),
        ({"webhook_url": "https://10.0.0.1/"}, "webhook_url"),
        ({"webhook_url": "https://0x7f.1:22/"}, "webhook_url"),
        ({"webhook_url": "nothing"}, "webhook_url"),
        ({"webhook_url": ["https://hooks.example.com/"]}, "webhook_url"),
        ({"webhook_url": URL, "webhook_events": ["video.started"]}, "webhook_events"),
        ({"webhook_url": URL, "webhook_events": 7}, "webhook_events"),
        ({"webhook_url": URL, "webhook_events": []}, "webhook_events"),
        ({"webhook_events": ["video.failed"]}, "webhook_events"),
    ],
)
def test_whom_a_request_cannot_name(inside: Any, fields: dict[str, Any], param: str) -> None:
    answer = inside.request("POST", "/v1/videos", json={"prompt": "a circle"} | fields)
    assert error_of(answer)[::2] == (400, param)
    assert inside.neighbours.checked == [], "nothing was asked of anybody for it"
    assert inside.sql("SELECT * FROM jobs") == []


def test_the_log_has_pages_filters_and_no_queries_of_urls(inside: Any) -> None:
    endpoint_id = create(inside)["id"]
    made = [add_delivery(inside, number) for number in range(5)]
    add_delivery(inside, 7, tenant_id="other")
    made += [add_delivery(inside, 8, endpoint_id=endpoint_id, state="failed", finished_at_ms=8000, last_status=500)]
    seen: list[str] = []
    while True:
        after = f"&after={seen[-1]}" if seen else ""
        page = inside.request("GET", f"/v1/webhook_deliveries?limit=4{after}").json()
        seen += [one["id"] for one in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
    assert seen == made[::-1]
    for query, number in (
        (f"video_id=video_{3:032x}", 3),
        (f"webhook_endpoint_id={endpoint_id}", 5),
        ("status=failed", 5),
    ):
        (found,) = inside.request("GET", f"/v1/webhook_deliveries?{query}").json()["data"]
        assert found["id"] == made[number]
        assert found["url"] == "https://hooks.example.com/in"
    assert (found["next_attempt_at"], found["finished_at"], found["last_status_code"]) == (None, 8, 500)
    assert error_of(inside.request("GET", f"/v1/webhook_deliveries?after=whd_{7:032x}"))[::2] == (400, "after")


def test_a_replay_is_due_at_once_and_only_for_its_owner(inside: Any) -> None:
    endpoint_id = create(inside)["id"]
    path = f"/v1/webhook_deliveries/{add_delivery(inside, 1, endpoint_id=endpoint_id, state='failed')}/replay"
    assert inside.request("POST", path, tenant="other").status_code == 404
    replay = inside.request("POST", path)
    assert replay.status_code == 202
    assert (replay.json()["status"], replay.json()["event_id"]) == ("pending", EVENT_ID)
    assert len(inside.sql("SELECT * FROM webhook_deliveries WHERE state = 'pending'")) == 1
    inside.sql("UPDATE webhook_endpoints SET disabled_at_ms = 1")
    assert error_of(inside.request("POST", path)) == (409, "conflict", "delivery_id")
    inside.request("DELETE", f"/v1/webhook_endpoints/{endpoint_id}")
    assert error_of(inside.request("POST", path)) == (409, "conflict", "delivery_id")


def test_the_document_describes_every_route(inside: Any) -> None:
    document = inside.request("GET", "/openapi.json").json()
    routes = {(path, method) for path, methods in document["paths"].items() for method in methods if "webhook" in path}
    assert len(routes) == 12
    for path, method in routes:
        operation = document["paths"][path][method]
        assert {"401", "503"} <= operation["responses"].keys()
        assert ("422" in operation["responses"]) == ("idempotency-key" in str(operation.get("parameters")).lower())
        if method == "post" and not path.endswith("replay"):
            assert operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    fields = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "properties"
    ]
    assert fields["webhook_events"]["items"]["enum"] == list(EVENT_TYPES)
