"""Deadlines, priorities and classes of a request, and a request that is made again."""

import json
from pathlib import Path
from typing import Any

import pytest

from vitascope_gateway.request import SERVICE_CLASSES

ASKED = {
    "prompt": "a  red circle",
    "seconds": "2",
    "size": "96x64",
    "seed": 7,
    "negative_prompt": "blue  things",
    "num_inference_steps": 30,
    "guidance_scale": 3.5,
    "metadata": {"project": "demo"},
    "priority": -5,
    "service_class": "batch",
    "deadline_s": 90.5,
}


def create(inside: Any, tenant: str = "acme", **fields: Any) -> dict[str, Any]:
    answer = inside.request("POST", "/v1/videos", tenant=tenant, json={"prompt": "a red circle", **fields})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def retry(inside: Any, video_id: str, tenant: str = "acme") -> Any:
    return inside.request("POST", f"/v1/videos/{video_id}/retry", tenant=tenant)


def end(inside: Any, video_id: str, state: str = "failed") -> None:
    code = {"failed": "poison", "cancelled": "cancelled"}.get(state)
    statement = "UPDATE jobs SET state = ?, error_code = ?, finished_at_ms = 5000 WHERE job_id = ?"
    inside.sql(statement, state, code, video_id)


def test_the_queue_learns_deadline_priority_and_class_and_the_video_shows_them(inside: Any) -> None:
    video = create(inside, deadline_s=90.5, priority="-5", service_class="batch")
    (job,) = inside.sql("SELECT * FROM jobs")
    (task,) = inside.sql("SELECT * FROM tasks WHERE stage = 'generate'")
    assert job["deadline_at_ms"] == job["created_at_ms"] + 90_500
    assert (job["class_name"], task["class_name"], task["priority"]) == ("batch", "batch", -5)
    shown = {name: video[name] for name in ("deadline_at", "priority", "service_class", "retry_of")}
    assert shown == {
        "deadline_at": job["deadline_at_ms"] // 1000,
        "priority": -5,
        "service_class": "batch",
        "retry_of": None,
    }
    assert {name: inside.request("GET", f"/v1/videos/{video['id']}").json()[name] for name in shown} == shown


def test_a_request_that_says_nothing_gets_the_first_class_no_deadline_and_the_middle(inside: Any) -> None:
    shown = create(inside)
    assert (shown["service_class"], shown["priority"], shown["deadline_at"]) == ("standard", 0, None)
    assert create(inside, "ops")["service_class"] == "realtime"


@pytest.mark.parametrize("name", SERVICE_CLASSES)
def test_a_class_is_the_plans_and_never_the_clients_choice_alone(inside: Any, name: str) -> None:
    answer = inside.request("POST", "/v1/videos", json={"prompt": "x", "service_class": name})
    if name in ("standard", "batch"):
        assert answer.status_code == 202
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (403, "permission_denied", "permission_error")
    assert error["param"] == "service_class"
    assert '"standard", "batch"' in error["message"]
    assert inside.sql("SELECT * FROM jobs") == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deadline_s", 0.5),
        ("deadline_s", 30 * 24 * 3600 + 1),
        ("deadline_s", "soon"),
        ("deadline_s", True),
        ("priority", 101),
        ("priority", -101),
        ("priority", 0.5),
        ("priority", "high"),
        ("service_class", "Batch"),
        ("service_class", 1),
        ("service_class", ["batch"]),
    ],
)
def test_values_that_mean_nothing_name_their_field(inside: Any, field: str, value: Any) -> None:
    answer = inside.request("POST", "/v1/videos", json={"prompt": "x", field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("state", ["failed", "cancelled", "completed"])
def test_a_retry_is_a_new_job_with_the_same_request(inside: Any, state: str) -> None:
    old = create(inside, **ASKED)
    end(inside, old["id"], state)
    answer = retry(inside, old["id"])
    assert answer.status_code == 202
    new = answer.json()
    assert answer.headers["location"].endswith(new["id"])
    assert new["id"] != old["id"]
    assert (new["retry_of"], new["status"], new["error"]) == (old["id"], "queued", None)
    once = {"id", "created_at", "deadline_at", "events_url", "retry_of", "websocket_url"}
    assert {name: new[name] for name in new.keys() - once} == {name: old[name] for name in old.keys() - once}
    before, after = (inside.sql("SELECT * FROM jobs WHERE job_id = ?", one["id"])[0] for one in (old, new))
    assert json.loads(after["params"]) == json.loads(before["params"])
    assert after["deadline_at_ms"] - after["created_at_ms"] == 90_500
    inside.runner.run(inside.closing[0]())
    assert new["id"] in inside.neighbours.submitted


def test_a_job_that_had_no_time_left_can_be_made_again(inside: Any) -> None:
    old = create(inside)
    end(inside, old["id"], "failed")
    inside.sql("UPDATE jobs SET deadline_at_ms = created_at_ms + 5")
    assert retry(inside, old["id"]).status_code == 202


def test_only_what_has_ended_can_be_made_again_and_only_by_its_tenant(inside: Any) -> None:
    old = create(inside)
    for state in ("queued", "running"):
        inside.sql("UPDATE jobs SET state = ?", state)
        answer = retry(inside, old["id"])
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_finished")
    end(inside, old["id"])
    assert retry(inside, old["id"], "other").status_code == 404
    assert retry(inside, "video_" + "0" * 32).status_code == 404
    inside.sql("UPDATE jobs SET deleted_at_ms = 1")
    assert retry(inside, old["id"]).status_code == 404
    assert len(inside.sql("SELECT * FROM jobs")) == 1


def test_the_prompt_is_judged_again(inside: Any) -> None:
    old = create(inside)
    end(inside, old["id"])
    inside.sql("UPDATE jobs SET prompt = 'forbidden'")  # what a stricter policy would find in it
    answer = retry(inside, old["id"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "moderation_blocked")
    assert len(inside.sql("SELECT * FROM jobs")) == 1


def test_a_class_that_the_plan_lost_is_not_kept_by_a_retry(inside: Any) -> None:
    old = create(inside, service_class="batch")
    end(inside, old["id"])
    inside.sql("UPDATE jobs SET class_name = 'realtime'")
    assert retry(inside, old["id"]).status_code == 403


@pytest.mark.parametrize(
    ("name", "value"), [("model_sha256", "f" * 64), ("shift", 9.0), ("num_frames", 16), ("of_another_build", 1)]
)
def test_a_model_that_changed_is_a_409_that_says_what(inside: Any, name: str, value: Any) -> None:
    old = create(inside)
    end(inside, old["id"])
    (row,) = inside.sql("SELECT params FROM jobs")
    inside.sql("UPDATE jobs SET params = ?", json.dumps(json.loads(row["params"]) | {name: value}))
    answer = retry(inside, old["id"])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (409, "model_changed", "model")
    assert name in error["message"]


def test_a_model_that_is_gone_or_no_longer_takes_the_request_is_a_400(inside: Any, models_dir: Path) -> None:
    old = create(inside)
    end(inside, old["id"])
    inside.sql("UPDATE jobs SET model = 'gone'")
    answer = retry(inside, old["id"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_model")
    (row,) = inside.sql("SELECT params FROM jobs")
    steps = json.loads(row["params"]) | {"num_inference_steps": 500}
    inside.sql("UPDATE jobs SET model = 'tiny', params = ?", json.dumps(steps))
    answer = retry(inside, old["id"])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "num_inference_steps")


@pytest.mark.parametrize(
    ("classes", "default"), [(" batch , realtime", "batch"), ("gold,standard", "standard"), ("", None)]
)
def test_what_a_plan_includes_is_what_the_queue_knows_of_it(inside: Any, classes: str, default: str | None) -> None:
    inside.sql("UPDATE tenants SET classes = ? WHERE tenant_id = 'acme'", classes)
    answer = inside.request("POST", "/v1/videos", json={"prompt": "x"})
    if default is not None:
        assert answer.json()["service_class"] == default
    else:
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, "service_class")
