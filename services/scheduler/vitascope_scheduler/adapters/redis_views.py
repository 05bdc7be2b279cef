"""What the scripts `view` and `line` answer in JSON, as values. An empty list of Lua arrives as {}: nothing either."""

import json
from collections.abc import Iterable
from typing import Any

from vitascope_scheduler.forecast import Line, RunningTask, WaitingClass, WaitingFlow, WaitingTask
from vitascope_scheduler.view import ClassView, FlowView, LeaseView, PoolView, WorkerView

Answer = Iterable[Any]


def pool_view(pool: str, answer: str) -> PoolView:
    """Read the answer of `view`."""
    (virtual_time, is_draining, num_waiting, num_in_flight, backlog_ms), classes, workers, leases = json.loads(answer)
    return PoolView(
        pool=pool,
        is_draining=bool(is_draining),
        num_waiting=int(num_waiting),
        num_in_flight=int(num_in_flight),
        backlog_s=float(backlog_ms) / 1000,
        virtual_time=float(virtual_time),
        classes=tuple(_class_view(one) for one in classes),
        workers=tuple(_worker_view(one) for one in workers),
        leases=tuple(_lease_view(one) for one in leases),
    )


def _class_view(answer: Answer) -> ClassView:
    name, weight, virtual_time, start_tag, num_waiting, num_in_flight, backlog_ms, served_ms, entitled_s, flows = answer
    return ClassView(
        class_name=str(name),
        weight=float(weight),
        virtual_time=float(virtual_time),
        start_tag=float(start_tag),
        num_waiting=int(num_waiting),
        num_in_flight=int(num_in_flight),
        backlog_s=float(backlog_ms) / 1000,
        served_s=float(served_ms) / 1000,
        entitled_s=float(entitled_s),
        flows=tuple(_flow_view(one) for one in flows),
    )


def _flow_view(answer: Answer) -> FlowView:
    tenant, weight, cap, start_tag, num_waiting, num_in_flight, backlog_ms, served_ms, entitled_s = answer
    return FlowView(
        tenant_id=str(tenant),
        weight=float(weight),
        cap=int(cap),
        start_tag=float(start_tag),
        num_waiting=int(num_waiting),
        num_in_flight=int(num_in_flight),
        backlog_s=float(backlog_ms) / 1000,
        served_s=float(served_ms) / 1000,
        entitled_s=float(entitled_s),
    )


def _worker_view(answer: Answer) -> WorkerView:
    worker, device, group_size, slots, num_free, models, expires_in_ms, is_draining, tasks = answer
    return WorkerView(
        worker_id=str(worker),
        device=str(device),
        group_size=int(group_size),
        num_slots=int(slots),
        num_free_slots=int(num_free),
        warm_models=tuple(json.loads(models)),
        expires_in_ms=int(float(expires_in_ms)),
        is_draining=bool(is_draining),
        task_ids=tuple(sorted(str(task) for task in tasks)),
    )


def _lease_view(answer: Answer) -> LeaseView:
    task, tenant, class_name, worker, state, expires_in_ms, charged_s, attempt = answer
    return LeaseView(
        task_id=str(task),
        tenant_id=str(tenant),
        class_name=str(class_name),
        worker_id=str(worker),
        state=str(state),
        expires_in_ms=int(float(expires_in_ms)),
        charged_s=float(charged_s),
        attempt=int(attempt),
    )


def line(answer: str) -> Line:
    """Read the answer of `line`."""
    num_slots, num_free, group_size, virtual_time, classes, in_flight = json.loads(answer)
    group_size = max(1, int(group_size))
    return Line(
        num_slots=int(num_slots),
        num_free=int(num_free),
        group_size=group_size,
        virtual_time=float(virtual_time),
        classes=tuple(
            WaitingClass(
                name=str(name),
                weight=float(weight),
                virtual_time=float(class_time),
                start_tag=float(start_tag),
                flows=tuple(_waiting_flow(one) for one in flows),
            )
            for name, weight, class_time, start_tag, flows in classes
        ),
        running=tuple(
            RunningTask(str(tenant), max(0.0, float(cost_s) / group_size - float(ran_ms) / 1000), bool(frees_slot))
            for tenant, cost_s, ran_ms, frees_slot in in_flight
        ),
    )


def _waiting_flow(answer: Answer) -> WaitingFlow:
    tenant, weight, cap, start_tag, tasks, num_more, more_ms = answer
    return WaitingFlow(
        tenant_id=str(tenant),
        weight=float(weight),
        cap=int(cap),
        start_tag=float(start_tag),
        tasks=tuple(WaitingTask(str(task), str(arrival), float(cost)) for task, arrival, cost in tasks),
        num_more=int(num_more),
        more_s=float(more_ms) / 1000,
    )
