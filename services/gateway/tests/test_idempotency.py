"""The same request twice: one job, whoever repeats it, whenever, and whatever was lost in between."""

import asyncio
import io
import json
from typing import Any

import grpc
import httpx
import pytest
import sqlalchemy as sa
from PIL import Image
from starlette.datastructures import Headers

from vitascope_common import tokens
from vitascope_common.errors import InvalidRequestError
from vitascope_common.tables import api_keys
from vitascope_gateway import idempotency
from vitascope_gateway.adapters.sql import SqlStore

BODY = {"prompt": "a red circle", "seed": 7}


def post(
    inside: Any,
    body: dict[str, Any] | None = None,
    *,
    key: str | None = None,
    count: object = None,
    tenant: str = "acme",
    path: str = "/v1/videos",
) -> httpx.Response:
    headers = {"Idempotency-Key": key, "x-stainless-retry-count": None if count is None else str(count)}
    given = {name: value for name, value in headers.items() if value is not None}
    answer: httpx.Response = inside.request("POST", path, json=body or BODY, headers=given, tenant=tenant)
    return answer


def made(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    assert "idempotent-replayed" not in answer.headers
    return str(answer.json()["id"])


def replayed(answer: httpx.Response) -> str:
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true"), answer.text
    assert answer.headers["location"].endswith(answer.json()["id"])
    return str(answer.json()["id"])


async def second_key(inside: Any) -> None:
    """Give a tenant another API key."""
    key = tokens.new_api_key()
    async with inside.database.transaction() as connection:
        row = {"key_sha256": tokens.api_key_hash(key), "tenant_id": "acme", "name": "second", "created_at_ms": 1}
        await connection.execute(sa.insert(api_keys).values(row))
    inside.keys["acme again"] = key


def at_once(inside: Any, headers: list[dict[str, str]], **options: Any) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        sent = [inside._request("POST", "/v1/videos", "acme", {"headers": one, **options}) for one in headers]
        return await asyncio.gather(*sent)

    answers: list[httpx.Response] = inside.runner.run(all_of_them())
    return answers


def age(inside: Any, by_ms: int) -> None:
    """Make everything that is known seem older."""
    for tenant, key, calls, expires_at_ms in inside.sql(
        "SELECT tenant_id, key, calls, expires_at_ms FROM idempotency_keys"
    ):
        older = json.loads(calls)
        for call in older:
            call["seen_at_ms"] -= by_ms
            call["expires_at_ms"] -= by_ms
        change = "UPDATE idempotency_keys SET calls = ?, expires_at_ms = ? WHERE tenant_id = ? AND key = ?"
        inside.sql(change, json.dumps(older), expires_at_ms - by_ms, tenant, key)


def num_jobs(inside: Any) -> int:
    return int(inside.sql("SELECT count(*) FROM jobs")[0][0])


def test_a_key_makes_one_video_and_shows_it_as_it_is_now(inside: Any) -> None:
    first = made(post(inside, key="order-1"))
    inside.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 1000")
    again = post(inside, key="order-1")
    assert replayed(again) == first
    assert again.json()["status"] == "completed"
    assert (num_jobs(inside), len(inside.neighbours.checked)) == (1, 1)
    assert made(post(inside, key="order-2")) != first


def test_without_a_key_the_same_request_is_another_one(inside: Any) -> None:
    assert made(post(inside)) != made(post(inside))


@pytest.mark.parametrize("other", [{"prompt": "a blue circle", "seed": 7}, {"prompt": "a red circle"}])
def test_a_key_with_another_body_is_refused(inside: Any, other: dict[str, Any]) -> None:
    made(post(inside, key="k"))
    answer = post(inside, other, key="k")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_key_reuse", "idempotency-key")
    assert num_jobs(inside) == 1


def test_the_order_of_fields_and_the_form_they_come_in_do_not_matter(inside: Any) -> None:
    fields = {"prompt": "x", "seconds": "2", "seed": 7, "guidance_scale": 2.5, "metadata": {"a": "1", "b": "2"}}
    first = made(post(inside, fields, key="k"))
    other = {
        "metadata": {"b": "2", "a": "1"},
        "guidance_scale": 2.5,
        "seed": 7.0,
        "seconds": 2,
        "prompt": "x",
        "size": None,
    }
    assert replayed(post(inside, other, key="k")) == first
    form = [
        ("seconds", "2"),
        ("seed", "7"),
        ("guidance_scale", "2.5"),
        ("metadata[b]", "2"),
        ("prompt", "x"),
        ("metadata[a]", "1"),
    ]
    form += [("user", "somebody")]  # which nothing depends on
    answer = inside.request(
        "POST",
        "/v1/videos",
        files=[(name, (None, value)) for name, value in form],
        headers={"Idempotency-Key": "k"},
    )
    assert replayed(answer) == first


def test_a_key_belongs_to_its_tenant(inside: Any) -> None:
    assert made(post(inside, key="k")) != made(post(inside, key="k", tenant="other"))


def test_a_key_is_kept_for_a_day(inside: Any) -> None:
    first = made(post(inside, key="k"))
    age(inside, 24 * 3600 * 1000 - 60_000)
    assert replayed(post(inside, key="k")) == first
    age(inside, 60_001)
    second = made(post(inside, {"prompt": "something else"}, key="k"))
    assert replayed(post(inside, {"prompt": "something else"}, key="k")) == second != first


def test_what_has_expired_is_swept(inside: Any) -> None:
    made(post(inside, key="old"))
    made(post(inside, key="new"))
    inside.sql("UPDATE idempotency_keys SET expires_at_ms = 1 WHERE key = 'key:old'")
    assert inside.runner.run(idempotency.sweep(inside.database)) == 1
    assert [row["key"] for row in inside.sql("SELECT key FROM idempotency_keys")] == ["key:new"]


@pytest.mark.parametrize("key", ["", " ", "k" * 256, "caf\xe9", "a\tb"])
def test_a_key_that_is_none_is_told(inside: Any, key: str) -> None:
    answer = inside.request("POST", "/v1/videos", json=BODY, headers=[(b"Idempotency-Key", key.encode("latin-1"))])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "idempotency-key")
    assert num_jobs(inside) == 0


def test_two_keys_are_none() -> None:
    twice = Headers(raw=[(b"idempotency-key", b"a"), (b"idempotency-key", b"b")])
    with pytest.raises(InvalidRequestError):
        idempotency.mark_of(twice)


def test_a_request_that_was_refused_leaves_its_key_free(inside: Any) -> None:
    assert post(inside, {"prompt": "forbidden"}, key="k").status_code == 400
    assert post(inside, {"prompt": "x", "seconds": "99"}, key="k").status_code == 400
    made(post(inside, key="k"))


def test_a_video_that_was_deleted_is_not_made_again(inside: Any) -> None:
    first = made(post(inside, key="k"))
    inside.sql("UPDATE jobs SET deleted_at_ms = 1 WHERE job_id = ?", first)
    answer = post(inside, key="k")
    assert (answer.status_code, num_jobs(inside)) == (404, 1)
    assert "deleted" in answer.json()["error"]["message"]


def test_a_key_covers_the_retry_of_a_video_too(inside: Any) -> None:
    first = made(post(inside, key="k"))
    inside.sql("UPDATE jobs SET state = 'failed', finished_at_ms = 1000")
    path = f"/v1/videos/{first}/retry"
    second = made(post(inside, key="r", path=path))
    assert replayed(post(inside, key="r", path=path)) == second != first
    assert post(inside, key="k", path=path).status_code == 422
    inside.sql("UPDATE jobs SET deleted_at_ms = 1 WHERE job_id = ?", first)
    assert replayed(post(inside, key="r", path=path)) == second, "whatever became of the first one since"


def test_of_many_at_once_one_is_made_and_the_others_leave_nothing(inside: Any) -> None:
    answers = at_once(inside, [{"Idempotency-Key": "k"}] * 8, json=BODY)
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert num_jobs(inside) == 1
    assert len(inside.sql("SELECT * FROM tasks")) == 2


def test_the_database_that_loses_the_answer_to_a_commit_loses_no_request(inside: Any) -> None:
    assert inside.request("GET", "/v1/models").status_code == 200  # the API key is known now
    inside.lose_next_commit()
    answer = post(inside, count=0)
    assert answer.status_code == 503
    assert (answer.headers.get("x-should-retry"), answer.headers["retry-after"]) == ("true", "1")
    replayed(post(inside, count=1))
    assert num_jobs(inside) == 1


@pytest.mark.parametrize("count", [None, 0, 2, idempotency.MAX_RETRIES])
def test_who_gave_no_key_is_never_told_to_repeat_what_may_be_made(inside: Any, count: int | None) -> None:
    """A client that tries again by itself may do so; when it gives up, a human reads the message."""
    assert inside.request("GET", "/v1/models").status_code == 200  # the API key is known now
    inside.lose_next_commit()
    answer = post(inside, count=count)
    assert (answer.status_code, num_jobs(inside)) == (503, 1)
    assert "look at GET /v1/videos before you repeat it" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == ("true" if count in (0, 2) else "false")


def test_who_gave_a_key_is_told_to_repeat_it(inside: Any) -> None:
    assert inside.request("GET", "/v1/models").status_code == 200  # the API key is known now
    inside.lose_next_commit()
    answer = post(inside, key="k")
    assert (answer.status_code, answer.headers["x-should-retry"], answer.headers["retry-after"]) == (503, "true", "1")
    assert "repeat the request with the same Idempotency-Key" in answer.json()["error"]["message"]
    replayed(post(inside, key="k"))
    assert num_jobs(inside) == 1


def test_a_stock_client_that_tries_again_gets_the_video_of_its_first_try(inside: Any) -> None:
    first = made(post(inside, count=0))
    assert [replayed(post(inside, count=count)) for count in (1, 2)] == [first, first]
    assert made(post(inside, count=0)) != first  # asked for on purpose
    assert num_jobs(inside) == 2


def test_a_first_try_that_is_refused_begins_a_call_of_its_own(inside: Any) -> None:
    first = made(post(inside, count=0))
    inside.neighbours.failure = grpc.StatusCode.UNAVAILABLE
    assert [post(inside, count=count).status_code for count in (0, 1)] == [503, 503]
    inside.neighbours.failure = None
    second = made(post(inside, count=2))
    assert replayed(post(inside, count=3)) == second != first
    assert num_jobs(inside) == 2


@pytest.mark.parametrize("body", [{"prompt": ""}, {"prompt": "a forbidden circle", "size": "1x1"}])
def test_a_first_try_that_is_refused_for_good_leaves_no_trace(inside: Any, body: dict[str, Any]) -> None:
    assert post(inside, body, count=0).status_code == 400
    assert inside.sql("SELECT * FROM idempotency_keys") == []


def test_every_call_of_several_that_are_alike_finds_a_video_of_its_own(inside: Any) -> None:
    videos = {made(post(inside, count=0)) for _ in range(4)}
    for count in (1, 2):
        assert {replayed(post(inside, count=count)) for _ in range(4)} == videos
    assert made(post(inside, count=2)) not in videos  # of a fifth call: its tries before this one never arrived


def test_a_try_that_is_late_belongs_to_the_call_whose_next_one_has_come(inside: Any) -> None:
    first = made(post(inside, count=0))
    assert replayed(post(inside, count=2)) == first
    assert replayed(post(inside, count=1)) == first
    assert num_jobs(inside) == 1


def test_a_try_that_is_the_first_to_arrive_makes_the_video(inside: Any) -> None:
    first = made(post(inside, count=1))
    assert replayed(post(inside, count=2)) == first


def test_a_repetition_is_the_same_body_under_the_same_api_key(inside: Any) -> None:
    first = made(post(inside, count=0))
    assert made(post(inside, {"prompt": "another"}, count=1)) != first
    assert made(post(inside, count=1, tenant="other")) != first
    inside.runner.run(second_key(inside))
    assert made(post(inside, count=1, tenant="acme again")) != first
    assert replayed(post(inside, count=1)) == first


def test_a_repetition_is_known_for_a_quarter_of_an_hour(inside: Any) -> None:
    first = made(post(inside, count=0))
    age(inside, 15 * 60 * 1000 - 60_000)
    assert replayed(post(inside, count=1)) == first
    age(inside, 15 * 60 * 1000)
    assert made(post(inside, count=2)) != first


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "61", "123", ""])
def test_a_number_that_is_none_says_nothing(inside: Any, count: str) -> None:
    assert made(post(inside, count=count)) != made(post(inside, count=count))
    assert inside.sql("SELECT * FROM idempotency_keys") == []


def test_a_first_try_that_was_overtaken_by_its_repetition_finds_it(
    inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, overtaken = SqlStore.admit, asyncio.Event()

    async def in_turn(self: SqlStore, job: Any, sent: Any) -> None:
        if sent.num_retries == 0:
            await overtaken.wait()
        await admit(self, job, sent)
        overtaken.set()

    monkeypatch.setattr(SqlStore, "admit", in_turn)
    assert inside.request("GET", "/v1/models").status_code == 200  # the key is known now: both keep their order
    first, second = at_once(inside, [{"x-stainless-retry-count": count} for count in "01"], json=BODY)
    assert replayed(first) == made(second)
    assert num_jobs(inside) == 1


def test_whoever_was_too_late_leaves_no_pictures(inside: Any) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    files = [("prompt", (None, "x")), ("input_reference", ("a.png", picture.getvalue()))]
    answers = at_once(inside, [{"Idempotency-Key": "k"}] * 4, files=files)
    (one,) = {answer.json()["id"] for answer in answers}
    assert {found.key.split("/")[1] for found in inside.objects.list()} == {one}
