"""Remix, edits and extensions: what is taken from the video that they are made from, and when they are refused."""

import asyncio
import json
import threading
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import pytest

from vitascope_common.jobs import Artifact
from vitascope_gateway import references

WAYS = ["remix", "edits", "extensions"]
MP4 = b"\0\0\0\x18ftypmp42 what a published video is made of"


def create(inside: Any, **fields: Any) -> dict[str, Any]:
    answer = inside.request("POST", "/v1/videos", json={"prompt": "a red circle", **fields})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def publish(inside: Any, video_id: str) -> None:
    """Do what post-processing and the job manager do."""
    key = f"videos/{video_id}/1/video.mp4"
    inside.objects.put_bytes(key, MP4, "video/mp4")
    video = Artifact("video", "video", "video/mp4", key, sha256(MP4).hexdigest(), len(MP4))
    manifest = Artifact("manifest", "manifest", "application/json", f"videos/{video_id}/1/manifest.json", "0" * 64, 1)
    outputs = json.dumps([asdict(manifest), asdict(video)])
    inside.sql("UPDATE tasks SET outputs = ? WHERE job_id = ? AND stage = 'finish'", outputs, video_id)
    inside.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 5000 WHERE job_id = ?", video_id)


def finished(inside: Any, **fields: Any) -> dict[str, Any]:
    video = create(inside, **fields)
    publish(inside, video["id"])
    return video


def ask(inside: Any, way: str, video_id: str, tenant: str = "acme", **fields: Any) -> Any:
    body: dict[str, Any] = {"prompt": "a blue circle", **fields}
    if way == "remix":
        return inside.request("POST", f"/v1/videos/{video_id}/remix", tenant=tenant, json=body)
    return inside.request("POST", f"/v1/videos/{way}", tenant=tenant, json={"video": {"id": video_id}, **body})


def test_one_tenants_copies_hold_up_nobody_else(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old, get_file, may_go_on = finished(inside), inside.objects.get_file, threading.Event()

    def late(*args: Any) -> Any:
        may_go_on.wait(10)
        return get_file(*args)

    monkeypatch.setattr(inside.objects, "get_file", late)

    async def scene() -> tuple[list[Any], Any, Any]:
        async def remix() -> Any:
            path = f"/v1/videos/{old['id']}/remix"
            return await inside._request("POST", path, "acme", {"json": {"prompt": "a blue circle"}})

        asked = [asyncio.create_task(remix()) for _ in range(references.MAX_COPIES_OF_TENANT + 1)]
        (refused,), rest = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        headers = {"x-stainless-retry-count": "0"}
        other = await inside._request("POST", "/v1/videos", "other", {"json": {"prompt": "x"}, "headers": headers})
        may_go_on.set()
        return await asyncio.gather(*rest), refused.result(), other

    others, refused, other = inside.runner.run(scene())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert other.status_code == 202
    assert {one.status_code for one in others} == {202}


def params_of(inside: Any, video_id: str) -> dict[str, Any]:
    (row,) = inside.sql("SELECT params FROM tasks WHERE job_id = ? AND stage = 'generate'", video_id)
    return dict(json.loads(row["params"]))


@pytest.mark.parametrize("way", ["remix", "edits"])
def test_a_change_keeps_what_it_does_not_name(inside: Any, way: str) -> None:
    made = {"num_inference_steps": 30, "guidance_scale": 4.5, "negative_prompt": "green", "solver": "heun", "seed": 5}
    old = finished(inside, seconds="2", size="96x64", **made)
    answer = ask(inside, way, old["id"])
    new = answer.json()
    assert answer.status_code == 202, answer.text
    assert (new["remixed_from_video_id"], new["prompt"], new["status"]) == (old["id"], "a blue circle", "queued")
    assert (new["seconds"], new["size"], new["model"], new["num_frames"]) == ("2", "96x64", "tiny", 17)
    params = params_of(inside, new["id"])
    assert {name: params[name] for name in made if name != "seed"} | {"seed": 5} == made
    assert new["seed"] != 5
    (given,) = params["references"]
    assert (given["role"], given["strength"]) == ("change", 0.75)
    key = given["artifact"]["key"]
    assert key.startswith(f"work/{new['id']}/references/")  # its own: the old video may go
    assert inside.objects.get_bytes(key) == MP4
    assert inside.request("GET", f"/v1/videos/{new['id']}").json()["remixed_from_video_id"] == old["id"]


@pytest.mark.parametrize("name", ["tiny", "sora-2"])
def test_the_same_model_by_another_name_is_no_other_model(
    inside: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(inside.creation, "_aliases", {"sora-2": "default"})
    old = finished(inside, num_inference_steps=30, solver="heun")
    params = params_of(inside, ask(inside, "remix", old["id"], model=name).json()["id"])
    assert (params["num_inference_steps"], params["solver"]) == (30, "heun")


def test_a_change_says_how_much_and_what_else_it_wants(inside: Any) -> None:
    old = finished(inside)
    fields = {"strength": "0.4", "seconds": "2", "size": "96x64", "seed": 9, "negative_prompt": "green"}
    new = ask(inside, "edits", old["id"], **fields).json()
    assert (new["seconds"], new["size"], new["seed"]) == ("2", "96x64", 9)
    params = params_of(inside, new["id"])
    assert (params["references"][0]["strength"], params["negative_prompt"]) == (0.4, "green")


def test_an_extension_is_the_video_and_its_continuation(inside: Any) -> None:
    old = finished(inside, seconds="4", size="96x64")
    new = ask(inside, "extensions", old["id"], seconds="2").json()
    assert (new["remixed_from_video_id"], new["size"]) == (old["id"], "96x64")
    assert (new["num_frames"], new["seconds"]) == (33 - 5 + 17, "5.5")  # five frames are in both
    params = params_of(inside, new["id"])
    assert (params["num_frames"], params["num_frames_before"], params["seconds"]) == (17, 33, "2")
    (finish,) = inside.sql("SELECT params, total FROM tasks WHERE job_id = ? AND stage = 'finish'", new["id"])
    assert (json.loads(finish["params"])["num_frames"], finish["total"]) == (45, 45)

    publish(inside, new["id"])
    longer = ask(inside, "extensions", new["id"], seconds="2").json()
    assert (longer["num_frames"], longer["seconds"]) == (45 - 5 + 17, "7")
    clip = ask(inside, "edits", new["id"]).json()
    assert (clip["num_frames"], clip["seconds"]) == (33, "4")  # as much of it as the model makes at once


def test_an_extension_is_made_as_its_video_was_and_as_long_as_it_says(inside: Any) -> None:
    old = finished(inside, seconds="2", num_inference_steps=30)
    new = ask(inside, "extensions", old["id"]).json()
    params = params_of(inside, new["id"])
    assert (params["seconds"], params["num_inference_steps"]) == ("4", 30)  # the model's length


@pytest.mark.parametrize("way", WAYS)
def test_another_size_may_come_as_its_sides(inside: Any, way: str) -> None:
    old = finished(inside, size="96x64")
    answer = ask(inside, way, old["id"], width=64, height=64)
    assert (answer.status_code, answer.json()["size"]) == (202, "64x64")


@pytest.mark.parametrize("form", ["id", "text", "brackets", "json"])
def test_a_video_is_named_as_clients_name_it(inside: Any, form: str) -> None:
    old = finished(inside)
    if form in ("brackets", "json"):
        name, value = ("video[id]", old["id"]) if form == "brackets" else ("video", json.dumps({"id": old["id"]}))
        files = {"prompt": (None, "a blue circle"), name: (None, value)}
        answer = inside.request("POST", "/v1/videos/edits", files=files)
    else:
        video = {"id": old["id"]} if form == "id" else old["id"]
        answer = inside.request("POST", "/v1/videos/edits", json={"prompt": "a blue circle", "video": video})
    assert (answer.status_code, answer.json()["remixed_from_video_id"]) == (202, old["id"])


@pytest.mark.parametrize(
    "video", [None, "x", 5, {}, {"id": 5}, {"id": "video_1", "more": 1}, ["video_1"], "https://x/y"]
)
def test_a_video_that_is_none_is_a_400_that_names_the_field(inside: Any, video: Any) -> None:
    answer = inside.request("POST", "/v1/videos/edits", json={"prompt": "x", "video": video})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "video")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("state = 'running', phase = 'decoding'", "video_not_ready"),
        ("state = 'failed', error_code = 'poison', error_message = 'It crashed.'", "video_failed"),
        ("state = 'failed', error_code = 'output_blocked', error_message = 'Withheld.'", "video_failed"),
        ("expires_at_ms = 1", "video_expired"),
        ("deleted_at_ms = 1", "not_found"),
    ],
)
def test_a_video_without_a_file_is_a_404_with_the_reason(inside: Any, way: str, change: str, code: str) -> None:
    old = finished(inside)
    inside.sql(f"UPDATE jobs SET {change}")
    answer = ask(inside, way, old["id"])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, code)
    assert error["param"] == ("video_id" if way == "remix" else "video")
    assert len(inside.sql("SELECT * FROM jobs")) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_video_of_somebody_else_does_not_exist(inside: Any, way: str) -> None:
    old = finished(inside)
    assert ask(inside, way, old["id"], tenant="other").status_code == 404


@pytest.mark.parametrize("way", WAYS)
def test_files_that_went_meanwhile_are_a_409_and_leave_nothing(inside: Any, way: str) -> None:
    old = finished(inside)
    inside.objects.delete_prefix(f"videos/{old['id']}/")
    answer = ask(inside, way, old["id"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "reference_expired")
    assert answer.headers["x-should-retry"] == "false"
    assert len(inside.sql("SELECT * FROM jobs")) == 1
    assert not [one for one in inside.objects.list("work/")]


@pytest.mark.parametrize("way", WAYS)
def test_the_prompt_is_judged_and_what_was_kept_for_a_refused_one_is_not(inside: Any, way: str) -> None:
    old = finished(inside)
    answer = ask(inside, way, old["id"], prompt="forbidden")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "moderation_blocked")
    assert not [one for one in inside.objects.list("work/")]


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_belong_there_is_named(inside: Any, way: str) -> None:
    old = finished(inside)
    wrong = {"input_reference": "data:image/png;base64,AAAA", "strenght": 1, "seconds": "3", "size": "1x1"}
    wrong |= {"strength": 1.5} if way != "extensions" else {"strength": 0.5}
    for field, value in wrong.items():
        answer = ask(inside, way, old["id"], **{field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert len(inside.sql("SELECT * FROM jobs")) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_retry_is_made_from_the_same_again(inside: Any, way: str) -> None:
    old = finished(inside)
    fields = {} if way == "extensions" else {"strength": 0.3}
    first = ask(inside, way, old["id"], **fields).json()
    inside.sql("UPDATE jobs SET state = 'failed', error_code = 'poison' WHERE job_id = ?", first["id"])
    inside.objects.delete_prefix(f"videos/{old['id']}/")
    again = inside.request("POST", f"/v1/videos/{first['id']}/retry")
    assert again.status_code == 202, again.text
    new = again.json()
    assert (new["remixed_from_video_id"], new["seconds"], new["seed"]) == (old["id"], first["seconds"], first["seed"])
    before, after = params_of(inside, first["id"]), params_of(inside, new["id"])
    assert after["references"][0]["artifact"]["key"].startswith(f"work/{new['id']}/references/")
    for params in (before, after):
        del params["references"][0]["artifact"]["key"]
    assert before == after


@pytest.mark.parametrize("way", WAYS)
def test_a_key_covers_these_too_and_a_reused_one_is_refused(inside: Any, way: str) -> None:
    old, other = finished(inside), finished(inside)

    def send(video_id: str) -> Any:
        path = f"/v1/videos/{video_id}/remix" if way == "remix" else f"/v1/videos/{way}"
        body = {"prompt": "a blue circle"} | ({} if way == "remix" else {"video": {"id": video_id}})
        return inside.request("POST", path, json=body, headers={"Idempotency-Key": "one"})

    first, second = send(old["id"]), send(old["id"])
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]
    assert send(other["id"]).json()["error"]["code"] == "idempotency_key_reuse"
    assert len(inside.sql("SELECT * FROM jobs WHERE remixed_from IS NOT NULL")) == 1


@pytest.mark.parametrize(("method", "path"), [("POST", "characters"), ("GET", "characters/char_1")])
def test_characters_are_honestly_not_there(inside: Any, method: str, path: str) -> None:
    answer = inside.request(method, f"/v1/videos/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
    assert inside.request(method, f"/v1/videos/{path}", tenant=None).status_code == 401


def test_a_withheld_video_shows_why_and_only_its_content_is_a_451(inside: Any) -> None:
    video = create(inside)
    inside.sql("UPDATE jobs SET state = 'failed', error_code = 'output_blocked', error_message = 'Withheld: violence.'")
    shown = inside.request("GET", f"/v1/videos/{video['id']}")
    assert (shown.status_code, shown.json()["status"]) == (200, "failed")
    assert shown.json()["error"] == {"code": "output_blocked", "message": "Withheld: violence."}
    content = inside.request("GET", f"/v1/videos/{video['id']}/content")
    assert (content.status_code, content.json()["error"]["code"]) == (451, "output_blocked")
    assert content.json()["error"]["type"] == "permission_error"  # the key is the right one
    assert content.json()["error"]["message"] == "Withheld: violence."


def test_an_estimate_says_price_and_wait_and_makes_nothing(inside: Any) -> None:
    answer = inside.request("POST", "/v1/videos/estimate", json={"prompt": "forbidden", "seconds": "2"})
    found = answer.json()
    run_s = 1.0 + 0.01 * 24 * 17  # what the card says
    assert (answer.status_code, found["object"], found["model"]) == (200, "video.estimate", "tiny")
    assert (found["seconds"], found["size"], found["num_frames"]) == ("2", "64x64", 17)
    assert (found["price"], found["currency"]) == (0.002, "USD")
    assert (found["queue_position"], found["eta_seconds"]) == (2, 30.0)
    assert (found["run_seconds"], found["wait_seconds"]) == (round(run_s, 1), round(30 - run_s, 1))
    (asked,) = inside.neighbours.foreseen
    assert (asked.pool, asked.tenant_id, asked.class_name) == ("default", "acme", "standard")
    assert asked.cost_s == pytest.approx(run_s)
    assert inside.sql("SELECT * FROM jobs") == []
    assert inside.neighbours.checked == []


def test_an_estimate_knows_what_runs_really_cost(inside: Any) -> None:
    inside.sql(
        "INSERT INTO cost_ratios (pool, model, ratio, estimate_s, num_runs, updated_at_ms) "
        "VALUES ('default', 'tiny', 2.0, 1, 1, 1)"
    )
    found = inside.request("POST", "/v1/videos/estimate", json={"prompt": "x", "seconds": "2"}).json()
    assert found["run_seconds"] == pytest.approx(2 * (1.0 + 0.01 * 24 * 17), abs=0.06)


def test_an_estimate_without_a_scheduler_knows_the_price(inside: Any) -> None:
    import grpc

    inside.neighbours.failure = grpc.StatusCode.UNAVAILABLE
    found = inside.request("POST", "/v1/videos/estimate", json={"prompt": "x"}).json()
    assert found["price"] == 0.004
    assert [found[name] for name in ("queue_position", "wait_seconds", "eta_seconds")] == [None] * 3


def test_an_estimate_is_refused_as_the_request_would_be(inside: Any) -> None:
    for fields, status, param in (
        ({"prompt": "x", "webhook_url": "http://169.254.169.254/"}, 400, "webhook_url"),
        ({"prompt": "x", "input_reference": "http://169.254.169.254/a.png"}, 400, "input_reference"),
        ({"prompt": "x", "seconds": "3"}, 400, "seconds"),
        ({}, 400, "prompt"),
        ({"prompt": "x", "service_class": "realtime"}, 403, "service_class"),
    ):
        answer = inside.request("POST", "/v1/videos/estimate", json=fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_the_models_of_videos_say_what_a_second_costs(inside: Any) -> None:
    (shown,) = inside.request("GET", "/v1/videos/models").json()["data"]
    assert (shown["id"], shown["price"]) == ("tiny", {"currency": "USD", "per_second": 0.001})
    assert inside.request("GET", "/v1/models").json()["data"] == [shown]
