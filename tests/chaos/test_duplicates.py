"""What is delivered twice is done once."""

import asyncio
import json

import pytest
from tests.chaos.clips import STEPS, make_clip
from tests.chaos.invariants import POOL, assert_done_once, assert_drained, assert_whole_history, follow
from tests.chaos.workers import Worker, num_steps

from tests.conftest import Stack, wait_for
from vitascope_client import Event
from vitascope_common import keys
from vitascope_common.redis_clients import connect
from vitascope_scheduler.adapters.celery_sender import CelerySender


@pytest.mark.slow
def test_one_assignment_in_the_inboxes_of_two_workers(chaos: Stack, twin: str, second: Worker) -> None:
    steps_before = num_steps(second.metrics)
    redis = connect(chaos.state["redis_url"])
    try:
        inboxes = [keys.inbox(POOL, key.rpartition(":")[2]) for key in redis.scan_iter(keys.worker(POOL, "*"))]
        assert len(inboxes) >= 2
        video_id = make_clip(chaos)
        entry = json.dumps({"command": "assign", "tasks": [{"task_id": f"{video_id}.generate.0"}]})

        def say_it_again(event: Event) -> None:
            if event.type in ("queued", "started", "checkpoint", "decoding"):
                for inbox in inboxes:
                    redis.xadd(inbox, {"data": entry})

        seen = follow(chaos, video_id, say_it_again)
        for inbox in inboxes:
            redis.xadd(inbox, {"data": entry})  # and when all is over
    finally:
        redis.close()
    refused = lambda log: log.count("task.claim_refused")  # noqa: E731
    wait_for("both to refuse", lambda: refused(second.log) and refused(chaos.service_log("gpu-worker")))
    assert num_steps(second.metrics) - steps_before in (0, STEPS), "one of the two made all of it"
    assert seen[-1].type == "completed"
    assert_done_once(chaos, video_id, twin)
    assert chaos.task(video_id, "generate")["attempt"] == 1
    assert_whole_history(chaos, video_id, seen)
    assert_drained(chaos)


@pytest.mark.slow
def test_one_celery_message_sent_again_and_again(chaos: Stack, twin: str) -> None:
    video_id = make_clip(chaos)
    pool = chaos.task(video_id, "finish")["pool"]
    sender = CelerySender(f"{chaos.state['redis_url'].removesuffix('/0')}/1")

    def send_again(event: Event) -> None:
        if event.type in ("progress", "postprocessing", "completed"):  # too early, meanwhile, too late
            asyncio.run(sender.send(f"{video_id}.finish.0", pool, ""))

    try:
        seen = follow(chaos, video_id, send_again)
    finally:
        sender.close()
    assert seen[-1].type == "completed"
    refusals = lambda: [  # noqa: E731
        line for line in chaos.service_log("postproc").splitlines() if "task.claim_refused" in line and video_id in line
    ]
    wait_for("the messages to be refused", lambda: len(refusals()) >= 3)
    assert_done_once(chaos, video_id, twin)
    assert chaos.task(video_id, "finish")["attempt"] == 1
    assert_whole_history(chaos, video_id, seen)
    assert_drained(chaos)
