"""The queue as clients and operators see it: places, deadlines, priorities, drains, retries."""

from collections.abc import Iterator

import pytest

from tests.conftest import PROMPT, Stack, wait_for
from vitascope_client import Event, Video

STEPS = 100


def short(stack: Stack, **options: object) -> Video:
    return stack.client.videos.create(prompt=PROMPT, seed=3, num_inference_steps=4, **options)  # type: ignore[arg-type]


def until(events: Iterator[Event], kind: str) -> Event:
    """Return the next event of this type; nothing ends before it."""
    for event in events:
        assert not event.is_last or event.type == kind, event
        if event.type == kind:
            return event
    raise AssertionError(f"the stream ended without {kind}")


def place(events: Iterator[Event]) -> Event:
    """Return the next event that says where a job stands."""
    return next(event for event in events if event.type == "queued" and not event.id)


def test_who_waits_hears_where_it_stands_and_operators_see_why(stack: Stack) -> None:
    client = stack.client
    running = client.videos.create(prompt=PROMPT, num_inference_steps=200)
    until(client.videos.stream(running.id), "started")
    behind = short(stack)
    story = client.videos.stream(behind.id)
    shown = place(story).data
    assert shown["position"] == 0
    assert shown["eta_s"] > 0
    assert client.videos.retrieve(behind.id).queue_position == 0

    (pool,) = client.admin.queue("default")
    (worker,), (lease,) = pool["workers"], pool["leases"]
    task = f"{running.id}.generate.0"
    assert (worker["task_ids"], worker["num_free_slots"]) == ([task], 0)
    assert (lease["task_id"], lease["worker_id"], lease["state"]) == (task, worker["worker_id"], "claimed")
    (flow,) = next(one for one in pool["classes"] if one["class_name"] == "standard")["flows"]
    assert (flow["num_waiting"], flow["num_in_flight"]) == (1, 1)
    assert flow["backlog_s"] == pool["backlog_s"] > 0

    client.videos.cancel(running.id)
    rest = [event.type for event in story]
    assert rest[-1] == "completed"
    assert "queued" not in rest[rest.index("started") :]


@pytest.mark.slow
def test_a_drained_pool_makes_way_and_then_goes_on_in_order_as_if_undisturbed(stack: Stack) -> None:
    client = stack.client
    running = client.videos.create(prompt=PROMPT, seed=7, num_inference_steps=STEPS)
    story = client.videos.stream(running.id)
    next(event for event in story if event.data.get("phase") == "denoising" and event.data["step"] >= 2)
    try:
        assert client.admin.drain("default") == 1
        step = until(story, "preempted").data["step"]
        assert 0 < step < STEPS

        last, urgent, late = short(stack), short(stack, priority=-10), short(stack, service_class="batch", deadline_s=1)
        error = wait_for("the deadline", lambda: client.videos.retrieve(late.id).error, 15)
        assert error.code == "expired"
        shown = place(client.videos.stream(last.id)).data
        assert shown["position"] >= 2  # the urgent one and the one that came first
        assert shown["eta_s"] is None  # nobody works
        (pool,) = client.admin.queue("default")
        assert (pool["is_draining"], pool["num_in_flight"], pool["num_waiting"]) == (True, 0, 3)
    finally:
        assert client.admin.drain("default", is_draining=False) == 1  # the stack is others' too

    assert until(story, "resumed").data["from_step"] == step
    until(story, "completed")
    in_order = [client.videos.wait(one.id, timeout_s=60) for one in (urgent, running, last)]
    assert [one.status for one in in_order] == ["completed"] * 3
    claimed = [stack.task(one.id, "generate")["claimed_at_ms"] for one in in_order]
    assert claimed == sorted(claimed), "the lowest priority first, then by arrival"

    twin = client.videos.retry(running.id)
    assert (twin.retry_of, twin.seed, twin.id != running.id) == (running.id, 7, True)
    assert client.videos.wait(twin.id, timeout_s=60).status == "completed"
    latents = [stack.output(one, "generate", "latents")["sha256"] for one in (running.id, twin.id)]
    assert latents[0] == latents[1]
