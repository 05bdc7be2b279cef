"""The operator's routes: who may, what they show, what they pass on."""

import json
from typing import Any

import grpc
import pytest

from vitascope_proto.v1 import scheduler_pb2

JSON = {"content-type": "application/json"}
POOL = scheduler_pb2.PoolView(
    pool="default",
    num_waiting=3,
    num_in_flight=1,
    backlog_s=30.5,
    virtual_time=2.5,
    classes=[
        scheduler_pb2.ClassView(
            class_name="standard",
            weight=4,
            virtual_time=1.5,
            start_tag=2.5,
            num_waiting=3,
            num_in_flight=1,
            backlog_s=30.5,
            served_s=10,
            entitled_s=9.5,
            flows=[
                scheduler_pb2.FlowView(
                    tenant_id="other",
                    weight=2,
                    cap=4,
                    start_tag=1.5,
                    num_waiting=3,
                    num_in_flight=1,
                    backlog_s=30.5,
                    served_s=10,
                    entitled_s=9.5,
                )
            ],
        )
    ],
    workers=[
        scheduler_pb2.WorkerView(
            worker_id="gpu-worker-1",
            device="cpu",
            group_size=1,
            num_slots=2,
            num_free_slots=1,
            warm_models=["tiny"],
            expires_in_ms=9000,
            is_draining=True,
            task_ids=["video_1.generate.0"],
        )
    ],
    leases=[
        scheduler_pb2.LeaseView(
            task_id="video_1.generate.0",
            tenant_id="other",
            class_name="standard",
            worker_id="gpu-worker-1",
            state="claimed",
            expires_in_ms=8000,
            charged_s=10,
            attempt=2,
        )
    ],
)


def drain(inside: Any, tenant: str | None = "ops", **body: Any) -> Any:
    return inside.request("POST", "/admin/v1/queue/drain", tenant=tenant, content=json.dumps(body), headers=JSON)


def test_an_operator_sees_every_fact_of_the_schedulers_answer(inside: Any) -> None:
    inside.neighbours.pools = [POOL, scheduler_pb2.PoolView(pool="postproc")]
    answer = inside.request("GET", "/admin/v1/queue", tenant="ops")
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["object"], [one["pool"] for one in shown["pools"]]) == ("queue", ["default", "postproc"])
    pool = shown["pools"][0]
    (class_,) = pool.pop("classes")
    (flow,) = class_.pop("flows")
    (worker,), (lease,) = pool.pop("workers"), pool.pop("leases")
    assert pool == {
        "pool": "default",
        "is_draining": False,
        "num_waiting": 3,
        "num_in_flight": 1,
        "backlog_s": 30.5,
        "virtual_time": 2.5,
    }
    share = {"num_waiting": 3, "num_in_flight": 1, "backlog_s": 30.5, "served_s": 10.0, "entitled_s": 9.5}
    assert class_ == {"class_name": "standard", "weight": 4.0, "virtual_time": 1.5, "start_tag": 2.5, **share}
    assert flow == {"tenant_id": "other", "weight": 2.0, "cap": 4, "start_tag": 1.5, **share}
    assert worker == {
        "worker_id": "gpu-worker-1",
        "device": "cpu",
        "group_size": 1,
        "num_slots": 2,
        "num_free_slots": 1,
        "warm_models": ["tiny"],
        "expires_in_ms": 9000,
        "is_draining": True,
        "task_ids": ["video_1.generate.0"],
    }
    assert lease == {
        "task_id": "video_1.generate.0",
        "tenant_id": "other",
        "class_name": "standard",
        "worker_id": "gpu-worker-1",
        "state": "claimed",
        "expires_in_ms": 8000,
        "charged_s": 10.0,
        "attempt": 2,
    }


def test_one_pool_can_be_asked_for_and_one_that_is_none_is_not_found(inside: Any) -> None:
    inside.neighbours.pools = [POOL, scheduler_pb2.PoolView(pool="postproc")]
    answer = inside.request("GET", "/admin/v1/queue?pool=postproc", tenant="ops")
    assert [one["pool"] for one in answer.json()["pools"]] == ["postproc"]
    answer = inside.request("GET", "/admin/v1/queue?pool=nowhere", tenant="ops")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "pool")
    answer = inside.request("GET", "/admin/v1/queue?pool=a%20b", tenant="ops")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "pool")


@pytest.mark.parametrize(
    ("tenant", "status", "code"), [(None, 401, "invalid_api_key"), ("acme", 403, "permission_denied")]
)
def test_without_the_scope_there_is_nothing_to_see_or_do(
    inside: Any, tenant: str | None, status: int, code: str
) -> None:
    inside.neighbours.pools = [POOL]
    for answer in (
        inside.request("GET", "/admin/v1/queue", tenant=tenant),
        drain(inside, tenant, pool="default", is_draining=True),
        drain(inside, tenant),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert inside.neighbours.drains == []


@pytest.mark.parametrize("worker_id", [None, "gpu-worker-1"])
@pytest.mark.parametrize("is_draining", [True, False])
def test_a_drain_is_passed_on_with_who_asked(inside: Any, worker_id: str | None, is_draining: bool) -> None:
    answer = drain(inside, pool="default", worker_id=worker_id, is_draining=is_draining)
    assert answer.json() == {
        "object": "queue.drain",
        "pool": "default",
        "worker_id": worker_id,
        "is_draining": is_draining,
        "num_workers": 1,
    }
    (asked,) = inside.neighbours.drains
    assert (asked.pool, asked.worker_id, asked.is_draining) == ("default", worker_id or "", is_draining)
    assert asked.tenant_id == "ops"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "pool"),
        ({"pool": 3, "is_draining": True}, "pool"),
        ({"pool": "", "is_draining": True}, "pool"),
        ({"pool": "a\ud800", "is_draining": True}, "pool"),
        ({"pool": "x" * 201, "is_draining": True}, "pool"),
        ({"pool": "default\n", "is_draining": True}, "pool"),
        ({"pool": "default", "worker_id": "", "is_draining": True}, "worker_id"),
        ({"pool": "default", "worker_id": ["a"], "is_draining": True}, "worker_id"),
        ({"pool": "default"}, "is_draining"),
        ({"pool": "default", "is_draining": "true"}, "is_draining"),
        ({"pool": "default", "is_draining": 1}, "is_draining"),
        ({"pool": "default", "is_draining": True, "worker": "gpu-worker-1"}, "worker"),
    ],
)
def test_a_drain_that_cannot_be_meant_is_a_400(inside: Any, body: dict[str, Any], param: str) -> None:
    answer = drain(inside, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert inside.neighbours.drains == []


def test_with_the_scheduler_away_the_routes_say_so(inside: Any) -> None:
    inside.neighbours.failure = grpc.StatusCode.UNAVAILABLE
    for answer in (
        inside.request("GET", "/admin/v1/queue", tenant="ops"),
        drain(inside, pool="default", is_draining=True),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


def test_the_document_describes_both_routes(inside: Any) -> None:
    document = inside.request("GET", "/openapi.json", tenant=None).json()
    show, drain_ = document["paths"]["/admin/v1/queue"]["get"], document["paths"]["/admin/v1/queue/drain"]["post"]
    assert set(show["responses"]) == {"200", "400", "401", "403", "404", "503"}
    assert set(drain_["responses"]) == {"200", "400", "401", "403", "408", "413", "415", "429", "503"}
    schemas = document["components"]["schemas"]
    assert {"PoolView", "ClassView", "FlowView", "WorkerView", "LeaseView"} <= set(schemas)
    assert show["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Queue")
