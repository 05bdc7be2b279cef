"""Files and batches: what clients see, and what the duty does; SQL says what workers would have done."""

import asyncio
import copy
import itertools
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client import REGISTRY

from vitascope_common import ids
from vitascope_common.errors import UnavailableError
from vitascope_gateway import batch_api, batch_lines, batch_work, batches, uploads
from vitascope_gateway.batch_lines import Text, split
from vitascope_gateway.batches import LineState

HOUR_MS = 3600 * 1000


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/videos", "body": {"prompt": "a circle", **body}}


def jsonl(*lines: Any) -> bytes:
    return b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines) + b"\n"


def upload(inside: Any, data: bytes, *, tenant: str = "acme", purpose: str = "batch", **more: str) -> Any:
    form = {"purpose": purpose, **more}
    return inside.request("POST", "/v1/files", tenant=tenant, data=form, files={"file": ("in.jsonl", data)})


def create(inside: Any, file_id: str, *, tenant: str = "acme", headers: Any = None, **fields: Any) -> Any:
    body = {"input_file_id": file_id, "endpoint": "/v1/videos", "completion_window": "24h", **fields}
    return inside.request("POST", "/v1/batches", tenant=tenant, json=body, headers=headers or {})


def start(inside: Any, *lines: Any) -> str:
    """Upload lines and make a batch of them."""
    file = upload(inside, jsonl(*lines)).json()
    answer = create(inside, file["id"])
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def step(inside: Any) -> bool:
    """Let the duty do a round of the batch that waits for one."""
    inside.sql("UPDATE batches SET next_at_ms = 0")
    return bool(inside.runner.run(inside.work.step()))


def shown(inside: Any, batch_id: str) -> dict[str, Any]:
    return dict(inside.request("GET", f"/v1/batches/{batch_id}").json())


def read(inside: Any, file_id: str | None) -> list[Any]:
    answer = inside.request("GET", f"/v1/files/{file_id}/content")
    assert answer.status_code == 200, answer.text
    return [json.loads(one) for one in answer.text.splitlines()]


def end(inside: Any, job_id: str | None = None, state: str = "completed", code: str | None = None) -> None:
    """Do what workers do: end a job, or all that are not over."""
    inside.sql(
        "UPDATE jobs SET state = ?, error_code = ?, error_message = ?, finished_at_ms = ? "
        "WHERE finished_at_ms IS NULL AND job_id LIKE ?",
        state,
        code,
        code and f"It ended with {code}.",
        ids.now_ms(),
        job_id or "%",
    )


def ended(name: str, what: str = "batch_lines", label: str = "outcome") -> float:
    """Return how many lines ended in this way, as operators see it."""
    return REGISTRY.get_sample_value(f"vitascope_gateway_{what}_total", {label: name}) or 0.0


def jobs(inside: Any) -> list[Any]:
    return list(inside.sql("SELECT * FROM jobs ORDER BY created_at_ms, job_id"))


def test_a_file_is_kept_listed_downloaded_and_deleted_for_its_tenant_alone(inside: Any) -> None:
    data = jsonl(line("a"))
    answer = upload(inside, data)
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["bytes"], file["filename"], file["purpose"], file["status"]) == (
        len(data),
        "in.jsonl",
        "batch",
        "processed",
    )
    assert file["expires_at"] == file["created_at"] + 30 * 24 * 3600
    assert inside.request("GET", f"/v1/files/{file['id']}").json() == file
    content = inside.request("GET", f"/v1/files/{file['id']}/content")
    assert (content.content, content.headers["content-length"]) == (data, str(len(data)))
    assert [one.key for one in inside.objects.list()] == [f"files/acme/{file['id']}"]
    for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
        assert inside.request("GET", path, tenant="other").status_code == 404
        assert inside.request("GET", path, tenant=None).status_code == 401
    assert inside.request("DELETE", f"/v1/files/{file['id']}", tenant="other").status_code == 404
    assert inside.request("GET", "/v1/files", tenant="other").json()["data"] == []
    gone = inside.request("DELETE", f"/v1/files/{file['id']}").json()
    assert gone == {"id": file["id"], "object": "file", "deleted": True}
    assert inside.request("GET", f"/v1/files/{file['id']}").status_code == 404
    assert inside.request("GET", "/v1/files").json()["data"] == []
    inside.runner.run(inside.work.sweep())
    assert list(inside.objects.list()) == []
    assert inside.sql("SELECT * FROM files") == []


def test_files_come_in_pages(inside: Any) -> None:
    made = [upload(inside, jsonl(line(str(number)))).json()["id"] for number in range(3)]
    page = inside.request("GET", "/v1/files?limit=2").json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    assert (page["first_id"], page["last_id"]) == (made[2], made[1])
    rest = inside.request("GET", f"/v1/files?limit=2&after={page['last_id']}").json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([made[0]], False)
    up = inside.request("GET", "/v1/files?order=asc&limit=10000&purpose=batch").json()
    assert [one["id"] for one in up["data"]] == made
    assert inside.request("GET", "/v1/files?purpose=batch_output").json()["data"] == []
    assert inside.request("GET", "/v1/files?purpose=%00").json()["data"] == []
    for wrong in ("file_1", ids.new_file_id(), "%00"):
        assert inside.request("GET", f"/v1/files?after={wrong}").json()["error"]["param"] == "after"
        assert inside.request("GET", f"/v1/files/{wrong}").status_code == 404


def test_a_download_that_nobody_takes_ends_and_frees_the_object(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = upload(inside, b"x" * 1_000_000).json()
    monkeypatch.setattr(batch_api, "SEND_TIMEOUT_S", 0.05)
    opened: list[Any] = []
    open_range = inside.objects.open_range
    monkeypatch.setattr(inside.objects, "open_range", lambda key: opened.append(open_range(key)) or opened[-1])
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # its connection takes no more

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/v1/files/{file['id']}/content",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {inside.keys['acme']}".encode())],
    }
    inside.runner.run(asyncio.wait_for(inside.app(scope, receive, send), 10))
    assert [one["type"] for one in sent] == ["http.response.start", "http.response.body"]
    assert next(opened[0], None) is None  # closed


@pytest.mark.parametrize(
    ("form", "files", "param"),
    [
        ({"purpose": "batch"}, None, "file"),
        ({"purpose": "batch", "file": "text"}, {}, "file"),
        ({}, {"file": ("x", b"1")}, "purpose"),
        ({"purpose": "fine-tune"}, {"file": ("x", b"1")}, "purpose"),
        ({"purpose": "batch"}, {"file": ("x", b"")}, "file"),
        ({"purpose": "batch", "colour": "red"}, {"file": ("x", b"1")}, "colour"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, {"file": ("x", b"1")}, "expires_after"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            {"file": ("x", b"1")},
            "expires_after",
        ),
    ],
)
def test_an_upload_that_cannot_be_used_names_the_field(inside: Any, form: Any, files: Any, param: str) -> None:
    files = {"other": ("x", b"1")} if files is None else files or {"purpose2": ("x", b"1")}
    answer = inside.request("POST", "/v1/files", data=form, files=files)
    assert answer.status_code == 400
    if "other" not in files and "purpose2" not in files:
        assert answer.json()["error"]["param"] == param
    assert inside.sql("SELECT * FROM files") == []
    assert list(inside.objects.list()) == []


@pytest.mark.parametrize("charset", ["hex", "utf-16", "no-such", "undefined"])
def test_the_charset_of_an_upload_is_utf_8_whatever_it_claims(inside: Any, charset: str) -> None:
    form = {"purpose": "batch"}, {"file": ("größe.jsonl", jsonl(line("1")))}
    request = httpx.Request("POST", "http://test/", data=form[0], files=form[1])
    headers = {"content-type": request.headers["content-type"] + f"; charset={charset}"}
    answer = inside.request("POST", "/v1/files", content=request.read(), headers=headers)
    assert (answer.status_code, answer.json().get("filename")) == (200, "größe.jsonl"), answer.text


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 300])
def test_an_upload_without_a_boundary_is_a_400(inside: Any, boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data{boundary}"}
    answer = inside.request("POST", "/v1/files", content=b"--XX--", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-type")


def test_an_upload_that_is_cut_off_is_not_kept(inside: Any) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    body = head % (b"purpose", b"") + b"batch\r\n" + head % (b"file", b'; filename="x"') + b"{}\r\n--b--\r\n"
    for num_bytes in range(0, len(body) - 6, 7):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = inside.request("POST", "/v1/files", content=body[:num_bytes], headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert inside.sql("SELECT * FROM files") == []
    assert inside.request("POST", "/v1/files", content=body, headers=headers).status_code == 200


def test_a_file_may_expire_sooner(inside: Any) -> None:
    after = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(inside, jsonl(line("a")), **after).json()
    assert file["expires_at"] == file["created_at"] + 3600
    inside.sql("UPDATE files SET expires_at_ms = 1")
    assert inside.request("GET", f"/v1/files/{file['id']}").status_code == 404
    assert create(inside, file["id"]).status_code == 404


def test_an_upload_that_is_too_large_is_not_kept(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_FILE_BYTES", 1000)
    answer = upload(inside, b"x" * 1001)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert "1000 bytes" in answer.json()["error"]["message"]
    assert upload(inside, b"x" * 100_000).status_code == 413
    assert upload(inside, b"x" * 1000).status_code == 200
    answer = inside.request("POST", "/v1/files", json={"file": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (415, "content-type")


def test_the_files_of_a_tenant_have_only_so_many_bytes(inside: Any) -> None:
    batch_id = start(inside, line("a"))
    step(inside)
    first = upload(inside, b"x" * 1_200_000).json()
    answer = upload(inside, b"x" * 800_000)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (413, "quota_exceeded", "file")
    (row,) = inside.sql("SELECT sum(num_bytes) AS used, count(*) AS number FROM files")
    assert row["number"] == 2  # what was refused is not kept
    assert f"{row['used']} of the 2000000 bytes" in error["message"]
    assert upload(inside, b"x" * 800_000, tenant="other").status_code == 200
    assert upload(inside, b"x" * (2_000_000 - row["used"])).status_code == 200
    end(inside)
    step(inside)
    assert read(inside, shown(inside, batch_id)["output_file_id"])  # for which there is always room
    inside.request("DELETE", f"/v1/files/{first['id']}")
    assert upload(inside, b"x" * 1_000_000).status_code == 413  # its bytes are there still
    inside.runner.run(inside.work.sweep())
    assert upload(inside, b"x" * 1_000_000).status_code == 200


def test_a_file_that_could_not_be_stored_does_not_count_for_long(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise UnavailableError("The object store is away.")

    with monkeypatch.context() as patch:
        patch.setattr(inside.objects, "put_file", away)
        assert [upload(inside, b"x" * 900_000).status_code for _ in range(2)] == [503, 503]
    assert upload(inside, b"x" * 900_000).status_code == 413
    inside.runner.run(inside.work.sweep())
    assert upload(inside, b"x" * 900_000).status_code == 200
    assert len(inside.sql("SELECT * FROM files")) == 1


def test_a_process_that_dies_while_a_file_is_stored_leaves_nothing_for_ever(inside: Any) -> None:
    upload(inside, jsonl(line("a")))
    inside.sql("UPDATE files SET stored_at_ms = NULL")
    assert inside.request("GET", "/v1/files").json()["data"] == []
    inside.runner.run(inside.work.sweep())
    assert len(list(inside.objects.list())) == 1  # not yet: whoever stores it may live
    inside.sql("UPDATE files SET expires_at_ms = 1")
    inside.runner.run(inside.work.sweep())
    assert list(inside.objects.list()) == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_batch_that_cannot_be_names_the_field(inside: Any, change: Any, param: str) -> None:
    file = upload(inside, jsonl(line("a"))).json()
    answer = create(inside, **{"file_id": file["id"], **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert inside.sql("SELECT * FROM batches") == []


def test_a_batch_needs_ones_own_file_and_the_class_batch(inside: Any) -> None:
    file = upload(inside, jsonl(line("a"))).json()
    assert create(inside, file["id"], tenant="other").status_code == 404
    assert create(inside, ids.new_file_id()).status_code == 404
    file = upload(inside, jsonl(line("a")), tenant="ops").json()
    answer = create(inside, file["id"], tenant="ops")
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


def test_a_batch_that_is_asked_for_twice_is_one(inside: Any) -> None:
    file = upload(inside, jsonl(line("a"))).json()
    for headers in ({"Idempotency-Key": "k"}, {"x-stainless-retry-count": "0"}):
        first = create(inside, file["id"], headers=headers).json()
        again = {**headers, **({"x-stainless-retry-count": "1"} if "x-stainless-retry-count" in headers else {})}
        assert create(inside, file["id"], headers=again).json()["id"] == first["id"]
    assert len(inside.sql("SELECT * FROM batches")) == 2
    other = create(inside, file["id"], headers={"Idempotency-Key": "k"}, metadata={"a": "b"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reuse")


def test_an_upload_that_trickles_keeps_no_place(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = itertools.count(step=20)
    monkeypatch.setattr("vitascope_gateway.uploads.time", SimpleNamespace(monotonic=lambda: next(now_s)))

    async def slowly(size: int) -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"\n" * size
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    for size, status in ((1000, 408), (1_000_000, 200)):
        assert inside.request("POST", "/v1/files", content=slowly(size), headers=headers).status_code == status


def test_a_file_and_a_batch_say_in_a_form_how_long_files_are_kept(inside: Any) -> None:
    after = json.dumps({"anchor": "created_at", "seconds": 3600})
    file = upload(inside, jsonl(line("a")), expires_after=after).json()
    assert file["expires_at"] - file["created_at"] == 3600
    twice = upload(inside, jsonl(line("a")), expires_after=after, **{"expires_after[seconds]": "3600"})
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "expires_after")
    fields = {"input_file_id": file["id"], "endpoint": "/v1/videos", "completion_window": "24h"}
    form = {name: (None, text) for name, text in (fields | {"output_expires_after": after}).items()}
    assert inside.request("POST", "/v1/batches", files=form).status_code == 200
    assert inside.sql("SELECT output_ttl_ms FROM batches")[0]["output_ttl_ms"] == HOUR_MS


def test_a_line_may_say_fields_as_a_request_may(inside: Any) -> None:
    extra = {"num_inference_steps": 30}
    start(inside, line("a", extra_body=extra), line("b", extra_body=json.dumps(extra)), line("c", extra_body="x"))
    while step(inside) and len(jobs(inside)) < 2:
        pass
    assert [json.loads(one["params"])["num_inference_steps"] for one in jobs(inside)] == [30, 30]
    (refused,) = inside.sql("SELECT error FROM batch_lines WHERE custom_id = 'c'")
    assert json.loads(refused["error"])["param"] == "extra_body"


def test_a_batch_whose_answer_is_lost_is_found_again_and_no_other_is_forgotten(inside: Any) -> None:
    file = upload(inside, jsonl(line("a"))).json()
    inside.lose_next_commit()
    lost = create(inside, file["id"])
    assert (lost.status_code, lost.headers["x-should-retry"]) == (503, "false")
    assert "GET /v1/batches" in lost.json()["error"]["message"]
    for _ in range(2):
        inside.lose_next_commit()
        lost = create(inside, file["id"], headers={"x-stainless-retry-count": "0"})
        assert (lost.status_code, lost.headers["x-should-retry"]) == (503, "true")
    again = [create(inside, file["id"], headers={"x-stainless-retry-count": "1"}) for _ in range(2)]
    assert [answer.headers.get("idempotent-replayed") for answer in again] == ["true"] * 2
    assert len({answer.json()["id"] for answer in again}) == 2
    assert len(inside.sql("SELECT * FROM batches")) == 3


def test_only_so_many_batches_of_a_tenant_are_under_way(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_BATCHES", 2)
    start(inside, b"{")
    cancelled = start(inside, line("a"))
    file = upload(inside, jsonl(line("a"))).json()
    answer = create(inside, file["id"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    # There is room when a batch ends: clients that try again by themselves would do so in vain.
    assert (answer.headers["x-should-retry"], answer.headers.get("retry-after")) == ("false", None)
    others = upload(inside, jsonl(line("a")), tenant="other").json()
    assert create(inside, others["id"], tenant="other").status_code == 200
    inside.request("POST", f"/v1/batches/{cancelled}/cancel")
    for _ in range(4):
        step(inside)
    assert [create(inside, file["id"]).status_code for _ in range(3)] == [200, 200, 429]


def test_a_batch_that_nobody_could_read_for_a_day_fails(inside: Any) -> None:
    batch_id = start(inside, line("a"))
    inside.sql("UPDATE batches SET deadline_at_ms = 1")
    step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "batch_expired")


def test_a_batch_makes_videos_and_says_what_became_of_each_line(inside: Any) -> None:
    batch_id = start(
        inside,
        line("good", seconds="2", metadata={"n": "1"}),
        line("field", seconds="7"),
        line("refused", prompt="something forbidden"),
        line("fails"),
        line("class", service_class="standard"),
    )
    before = {name: ended(name) for name in ("completed", "moderation_blocked", "poison")}
    num_completed = ended("completed", "batches", "state")
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["expires_at"]) == ("validating", batch["created_at"] + 24 * 3600)
    assert step(inside)
    inside.runner.run(inside.work.measure())
    assert REGISTRY.get_sample_value("vitascope_gateway_batches_under_way") == 1
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["in_progress_at"] is None) == ("in_progress", False)
    assert batch["request_counts"] == {"total": 5, "completed": 0, "failed": 3}
    good, fails = jobs(inside)
    assert (good["class_name"], good["tenant_id"]) == ("batch", "acme")
    (row,) = inside.sql("SELECT deadline_at_ms FROM batches")
    assert good["deadline_at_ms"] == row["deadline_at_ms"]
    end(inside, good["job_id"])
    end(inside, fails["job_id"], "failed", "poison")
    assert step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["errors"]) == ("completed", None)
    assert batch["completed_at"] >= batch["finalizing_at"] >= batch["in_progress_at"]
    assert batch["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
    (done,) = read(inside, batch["output_file_id"])
    assert (done["custom_id"], done["error"], done["response"]["status_code"]) == ("good", None, 200)
    video = done["response"]["body"]
    assert (video["id"], video["status"], video["metadata"]) == (good["job_id"], "completed", {"n": "1"})
    assert video["events_url"].startswith("http://gateway.test/v1/videos/")
    failed = {one["custom_id"]: one for one in read(inside, batch["error_file_id"])}
    assert list(failed) == ["field", "refused", "fails", "class"]
    assert failed["field"]["response"]["status_code"] == 400
    assert failed["field"]["response"]["body"]["error"]["param"] == "seconds"
    assert failed["refused"]["response"]["body"]["error"]["code"] == "moderation_blocked"
    assert failed["class"]["response"]["body"]["error"]["param"] == "service_class"
    assert (failed["fails"]["error"]["code"], failed["fails"]["response"]["body"]["status"]) == ("poison", "failed")
    assert len({one["id"] for one in [done, *failed.values()]}) == 5
    output = inside.request("GET", f"/v1/files/{batch['output_file_id']}").json()
    assert (output["purpose"], output["filename"]) == ("batch_output", f"{batch_id}_output.jsonl")
    assert inside.request("GET", f"/v1/files/{batch['output_file_id']}/content", tenant="other").status_code == 404
    assert not step(inside)
    assert {name: ended(name) for name in before} == {name: number + 1 for name, number in before.items()}
    assert ended("completed", "batches", "state") == num_completed + 1


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (jsonl(line("a"), b"{not json"), "invalid_json_line", 2),
        (jsonl(line("a"), b"\xff"), "invalid_json_line", 2),
        (jsonl(line("a"), b"[1]"), "invalid_json_line", 2),
        (jsonl(line("a"), b"", line("a")), "duplicate_custom_id", 3),
        (jsonl({**line("a"), "method": "GET"}), "invalid_method", 1),
        (jsonl({**line("a"), "url": "/v1/responses"}), "invalid_url", 1),
        (jsonl({**line("a"), "body": "x"}), "invalid_body", 1),
        (jsonl({**line("a"), "colour": 1}), "unknown_field", 1),
        (jsonl(line("")), "invalid_custom_id", 1),
        (jsonl(line("\0")), "invalid_custom_id", 1),
        (jsonl(line("\ud800")), "invalid_custom_id", 1),
        (b"\n \n", "empty_file", None),
        (jsonl(line("a", seconds="7")), "no_valid_line", None),
    ],
)
def test_a_file_that_cannot_be_used_fails_its_batch_with_the_line(
    inside: Any, data: bytes, code: str, number: int | None
) -> None:
    file = upload(inside, data).json()
    batch_id = create(inside, file["id"]).json()["id"]
    assert step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["failed_at"] is None, batch["output_file_id"]) == ("failed", False, None)
    first = batch["errors"]["data"][0]
    assert (first["code"], first["line"]) == (code, number)
    assert jobs(inside) == []
    assert not step(inside)


def test_a_file_with_too_many_lines_fails_its_batch(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINES", 2)
    batch_id = start(inside, *(line(str(number)) for number in range(3)))
    step(inside)
    (error,) = shown(inside, batch_id)["errors"]["data"]
    assert (error["code"], error["line"]) == ("too_many_lines", 3)
    assert "more than 2 requests" in error["message"]


@pytest.mark.parametrize(("num_blank", "codes"), [(999, []), (1000, ["too_many_lines"])])
def test_a_file_of_blank_lines_is_left_before_its_end(
    inside: Any, monkeypatch: pytest.MonkeyPatch, num_blank: int, codes: list[str]
) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINES_IN_ALL", 1000)
    batch_id = start(inside, b"\n" * (num_blank - 1), line("1"))
    step(inside)
    errors = shown(inside, batch_id)["errors"] or {"data": []}
    assert [one["code"] for one in errors["data"]] == codes


def test_lines_are_split_wherever_chunks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\xef\xbb\xbf{1}\r\n\n  \n{2}\n{3}"
    for size in range(1, len(data)):
        chunks: Any = iter([data[at : at + size] for at in range(0, len(data), size)])
        assert list(split(chunks)) == [Text(1, 3, b"{1}\r"), Text(4, 12, b"{2}"), Text(5, 16, b"{3}")]
    monkeypatch.setattr(batch_lines, "MAX_LINE_BYTES", 5)
    for parts in ([b"{1}\n", b"12345", b"6\n"], [b"{1}\n123456"]):
        chunks = iter(parts)
        with pytest.raises(batch_lines.LineError) as error:
            list(split(chunks))
        assert error.value.line == 2


def test_only_so_many_jobs_of_a_batch_wait_at_once(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "MAX_UNFINISHED", 2)
    batch_id = start(inside, *(line(str(number)) for number in range(5)))
    for num_jobs in (2, 4, 5):
        for _ in range(2):
            step(inside)
            assert len(jobs(inside)) == num_jobs
        end(inside)
    step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 5)
    assert [one["custom_id"] for one in read(inside, batch["output_file_id"])] == list("01234")
    assert len(jobs(inside)) == 5


def test_what_is_away_ends_no_line_and_holds_up_no_other(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = start(inside, *(line(str(number), prompt=f"{number}") for number in range(4)))
    inside.neighbours.failure = grpc.StatusCode.UNAVAILABLE
    step(inside)
    assert jobs(inside) == []
    assert shown(inside, batch_id)["request_counts"] == {"total": 4, "completed": 0, "failed": 0}
    inside.neighbours.failure = None
    monkeypatch.setattr(batch_work, "MAX_UNFINISHED", 2)
    step(inside)
    assert {one["prompt"] for one in jobs(inside)} == {"3", "0"}  # three in a row were tried, the fourth was not
    for _ in range(2):
        end(inside)
        step(inside)
    assert shown(inside, batch_id)["request_counts"]["completed"] == 4


def test_a_video_that_its_owner_deletes_meanwhile_is_a_line(inside: Any) -> None:
    batch_id = start(inside, line("running"), line("done"))
    step(inside)
    running, done = jobs(inside)
    inside.sql("UPDATE jobs SET deleted_at_ms = 1 WHERE job_id = ?", running["job_id"])
    end(inside, done["job_id"])
    inside.runner.run(inside.work._batches.settle(claimed(inside)))
    inside.sql("UPDATE jobs SET deleted_at_ms = 1 WHERE job_id = ?", done["job_id"])
    step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    codes = [one["error"]["code"] for one in read(inside, batch["error_file_id"])]
    assert codes == ["not_found", "not_found"]


def test_a_cancelled_batch_keeps_what_is_done(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "MAX_UNFINISHED", 2)
    batch_id = start(inside, line("done"), line("running"), line("waiting"))
    step(inside)
    done, running = jobs(inside)
    end(inside, done["job_id"])
    assert inside.request("POST", f"/v1/batches/{batch_id}/cancel", tenant="other").status_code == 404
    answer = inside.request("POST", f"/v1/batches/{batch_id}/cancel").json()
    assert (answer["status"], answer["cancelling_at"] is None) == ("cancelling", False)
    assert inside.request("POST", f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
    step(inside)
    assert inside.neighbours.cancelled == [("acme", running["job_id"])]
    assert shown(inside, batch_id)["status"] == "cancelling"
    end(inside, running["job_id"], "cancelled", "cancelled")
    step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["cancelled_at"] is None) == ("cancelled", False)
    assert [one["custom_id"] for one in read(inside, batch["output_file_id"])] == ["done"]
    codes = {one["custom_id"]: one["error"]["code"] for one in read(inside, batch["error_file_id"])}
    assert codes == {"running": "cancelled", "waiting": "batch_cancelled"}
    assert len(jobs(inside)) == 2
    assert inside.request("POST", f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelled"


def test_a_batch_that_is_cancelled_before_it_is_read_makes_nothing(inside: Any) -> None:
    batch_id = start(inside, line("a"))
    inside.request("POST", f"/v1/batches/{batch_id}/cancel")
    step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("cancelled", None, None)
    assert jobs(inside) == []


def test_a_batch_that_is_over_cannot_be_cancelled(inside: Any) -> None:
    batch_id = start(inside, line("a", prompt="forbidden"))
    step(inside)
    answer = inside.request("POST", f"/v1/batches/{batch_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


def test_a_day_is_all_that_a_batch_has(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "MAX_UNFINISHED", 3)
    batch_id = start(inside, line("done"), line("late"), line("stuck"), line("waiting"))
    step(inside)
    done, late, stuck = jobs(inside)
    end(inside, done["job_id"])
    inside.sql("UPDATE batches SET deadline_at_ms = ?", ids.now_ms() - 1)
    end(inside, late["job_id"], "failed", "expired")
    step(inside)
    assert shown(inside, batch_id)["status"] == "in_progress"  # a job is about to end by the deadline as well
    inside.sql("UPDATE batches SET deadline_at_ms = ?", ids.now_ms() - batch_work.GRACE_MS)
    step(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["expired_at"] is None) == ("expired", False)
    assert [one["custom_id"] for one in read(inside, batch["output_file_id"])] == ["done"]
    codes = {one["custom_id"]: one["error"]["code"] for one in read(inside, batch["error_file_id"])}
    assert codes == dict.fromkeys(("late", "stuck", "waiting"), "batch_expired")
    assert len(jobs(inside)) == 3
    assert stuck["job_id"]


def test_a_line_may_have_less_time_than_its_batch_but_not_more(inside: Any) -> None:
    start(inside, line("less", deadline_s=60), line("more", deadline_s=30 * 24 * 3600))
    step(inside)
    less, more = jobs(inside)
    (batch,) = inside.sql("SELECT deadline_at_ms FROM batches")
    assert less["deadline_at_ms"] == less["created_at_ms"] + 60_000
    assert more["deadline_at_ms"] == batch["deadline_at_ms"]


def test_a_file_that_a_batch_reads_may_be_deleted_and_stays_until_it_ends(inside: Any) -> None:
    file = upload(inside, jsonl(line("a"))).json()
    batch_id = create(inside, file["id"]).json()["id"]
    inside.request("DELETE", f"/v1/files/{file['id']}")
    inside.runner.run(inside.work.sweep())
    step(inside)
    end(inside)
    step(inside)
    assert shown(inside, batch_id)["status"] == "completed"
    inside.runner.run(inside.work.sweep())
    assert not any(one.key.endswith(file["id"]) for one in inside.objects.list())


def test_a_file_that_is_gone_ends_the_batch(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "MAX_UNFINISHED", 1)
    first, second = start(inside, line("a")), start(inside, line("a"), line("b"), line("c"))
    inside.sql("UPDATE batches SET next_at_ms = 1 WHERE batch_id = ?", second)
    inside.runner.run(inside.work.step())
    inside.objects.delete_prefix("files/")
    for _ in range(2):
        inside.sql("UPDATE batches SET next_at_ms = 0")
        inside.runner.run(inside.work.step())
        inside.sql("UPDATE batches SET next_at_ms = 1 + next_at_ms WHERE batch_id = ?", first)
        end(inside)
    for _ in range(4):
        step(inside)
        end(inside)
    assert shown(inside, first)["errors"]["data"][0]["code"] == "file_not_found"
    batch = shown(inside, second)
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 1, "failed": 2})


def test_batches_come_in_pages_and_are_swept_after_a_month(inside: Any) -> None:
    made = [start(inside, line("a")) for _ in range(3)]
    page = inside.request("GET", "/v1/batches?limit=2").json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    rest = inside.request("GET", f"/v1/batches?after={page['last_id']}").json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([made[0]], False)
    assert inside.request("GET", "/v1/batches", tenant="other").json()["data"] == []
    assert inside.request("GET", f"/v1/batches/{made[0]}", tenant="other").status_code == 404
    for wrong in ("batch_1", "%00", ids.new_batch_id()):
        assert inside.request("GET", f"/v1/batches?after={wrong}").status_code == 400
        assert inside.request("GET", f"/v1/batches/{wrong}").status_code == 404
    inside.request("POST", f"/v1/batches/{made[0]}/cancel")
    for _ in made:
        inside.sql("UPDATE batches SET next_at_ms = 0 WHERE batch_id = ?", made[0])
        inside.runner.run(inside.work.step())
    inside.runner.run(inside.work.sweep())
    assert len(inside.sql("SELECT * FROM batches")) == 3
    inside.sql("UPDATE batches SET ended_at_ms = ended_at_ms - ? WHERE ended_at_ms > 0", batch_work.KEPT_MS + 1)
    inside.runner.run(inside.work.sweep())
    assert [one["id"] for one in inside.request("GET", "/v1/batches").json()["data"]] == [made[2], made[1]]


class Died(BaseException):
    """Stands for a process that ends between two lines."""


def test_a_process_that_dies_after_an_admission_makes_no_second_video(
    inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = start(inside, line("a"), line("b"), line("c"))
    store = inside.work._store
    admit = store.admit

    async def admit_and_die(job: Any, sent: Any) -> None:
        await admit(job, sent)
        raise Died

    for _ in range(3):
        monkeypatch.setattr(store, "admit", admit_and_die)
        with pytest.raises(Died):
            step(inside)
    monkeypatch.setattr(store, "admit", admit)
    step(inside)
    assert len(jobs(inside)) == 3
    end(inside)
    step(inside)
    output = read(inside, shown(inside, batch_id)["output_file_id"])
    assert {one["response"]["body"]["id"] for one in output} == {one["job_id"] for one in jobs(inside)}


@pytest.mark.parametrize("method", ["begin", "finalize", "end"])
@pytest.mark.parametrize("is_written", [False, True])
def test_a_process_that_dies_around_a_commit_changes_nothing(
    inside: Any, monkeypatch: pytest.MonkeyPatch, method: str, is_written: bool
) -> None:
    batch_id = start(inside, line("a"), line("b"), line("no", seconds="7"))
    store = inside.work._batches
    real = getattr(store, method)

    async def die(*args: Any) -> None:
        if is_written:
            await real(*args)
        raise Died

    monkeypatch.setattr(store, method, die)
    if method != "begin":
        step(inside)
        end(inside)
    with pytest.raises(Died):
        step(inside)
    monkeypatch.setattr(store, method, real)
    for _ in range(3):
        step(inside)
        end(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    assert [one["custom_id"] for one in read(inside, batch["output_file_id"])] == ["a", "b"]
    assert len(jobs(inside)) == 2
    listed = {one["id"] for one in inside.request("GET", "/v1/files").json()["data"]}
    assert listed == {batch["input_file_id"], batch["output_file_id"], batch["error_file_id"]}
    inside.sql("UPDATE files SET expires_at_ms = 1 WHERE stored_at_ms IS NULL")
    inside.runner.run(inside.work.sweep())
    assert {one.key.rpartition("/")[2] for one in inside.objects.list("files/")} == listed


def test_one_that_has_lost_its_lease_does_nothing_twice(inside: Any) -> None:
    batch_id = start(inside, *(line(str(number)) for number in range(8)))

    async def both(old: Any, new: Any) -> None:
        await asyncio.gather(*(inside.work._round(one) for one in (old, new)), return_exceptions=True)

    for num_jobs in (8, 8):
        inside.runner.run(both(claimed(inside), claimed(inside)))
        assert len(jobs(inside)) == num_jobs
        end(inside)
    batch = shown(inside, batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 8)
    output = read(inside, batch["output_file_id"])
    assert {one["response"]["body"]["id"] for one in output} == {one["job_id"] for one in jobs(inside)}
    outputs = inside.request("GET", "/v1/files?purpose=batch_output").json()["data"]
    assert [one["id"] for one in outputs] == [batch["output_file_id"]]


def test_a_line_whose_batch_is_cancelled_while_it_is_judged_makes_no_video(
    inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = start(inside, line("a"))
    store = inside.work._store
    admit = store.admit

    async def late(job: Any, sent: Any) -> None:
        await inside.work._batches.cancel("acme", batch_id, ids.now_ms())
        await inside.work._batches.give_up(batch_id, LineState.PENDING, batch_lines.CANCELLED)
        await admit(job, sent)

    monkeypatch.setattr(store, "admit", late)
    step(inside)
    step(inside)
    assert shown(inside, batch_id)["status"] == "cancelled"
    assert jobs(inside) == []


def test_gateways_share_batches_and_give_them_back_when_they_stop(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "NUM_AT_ONCE", 2)
    monkeypatch.setattr(batch_work, "IDLE_S", 0.01)
    batch_ids = {start(inside, line("a")) for _ in range(5)}
    begun: list[str] = []
    news, is_first_over = asyncio.Event(), asyncio.Event()

    async def hold(self: Any, batch: Any) -> None:
        begun.append(batch.batch_id)
        news.set()
        await (is_first_over if batch.batch_id == begun[0] else asyncio.Event()).wait()

    async def play() -> None:
        running = [asyncio.create_task(one.run()) for one in (inside.work, copy.copy(inside.work))]
        for num_begun in (4, 5):
            while len(begun) < num_begun:
                news.clear()
                await news.wait()
            is_first_over.set()  # there is room for the fifth
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    monkeypatch.setattr(batch_work.BatchWork, "_round", hold)
    inside.runner.run(asyncio.wait_for(play(), 20))
    assert sorted(begun) == sorted(batch_ids)
    soon_ms = ids.now_ms() + batch_work.POLL_MS
    assert len(inside.sql("SELECT * FROM batches WHERE next_at_ms <= ?", soon_ms)) == 5


def test_an_idle_gateway_asks_for_batches_once_at_a_time(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = 0

    async def ask(*_: Any) -> None:
        nonlocal questions
        questions += 1
        await asyncio.Event().wait()

    async def idle() -> None:
        running = asyncio.create_task(inside.work.run())
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    monkeypatch.setattr(inside.work._batches, "claim", ask)
    inside.runner.run(idle())
    assert questions == 1


def claimed(inside: Any) -> Any:
    """Take the one batch, as a duty does that then stands still."""
    inside.sql("UPDATE batches SET next_at_ms = 0")
    return inside.runner.run(inside.work._batches.claim(ids.new_batch_id(), ids.now_ms(), HOUR_MS))
