"""Patient work makes way for urgent work, and goes on afterwards as if nothing had been."""

from pathlib import Path
from typing import Any

import pytest
from tests.chaos.invariants import assert_done_once, assert_drained, assert_whole_history, follow
from tests.chaos.workers import num_steps

from tests.conftest import PROMPT, SHORT_LEASES, Stack
from vitascope_client import Event

STEPS, URGENT_STEPS = 60, 4
SOON = {"VITASCOPE_SCHEDULER_PREEMPT_AFTER_MS": "100", "VITASCOPE_SCHEDULER_PREEMPT_MIN_RUN_MS": "200"}


def ask(stack: Stack, service_class: str, steps: int) -> str:
    video: Any = stack.client.videos.create(
        prompt=PROMPT, seed=7, seconds="2", num_inference_steps=steps, service_class=service_class
    )
    return str(video.id)


@pytest.mark.slow
def test_a_batch_job_makes_way_at_a_step_and_resumes_from_exactly_there(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", settings=SHORT_LEASES | SOON)
    try:
        undisturbed = ask(stack, "batch", STEPS)
        assert follow(stack, undisturbed)[-1].type == "completed"
        twin = str(stack.output(undisturbed, "generate", "latents")["sha256"])

        before = num_steps(stack.metrics("gpu-worker"))
        patient = ask(stack, "batch", STEPS)
        urgent: list[str] = []

        def interrupt(event: Event) -> None:
            if not urgent and event.type == "progress" and event.data["step"] >= 5:
                urgent.append(ask(stack, "realtime", URGENT_STEPS))

        seen = follow(stack, patient, interrupt)
        story = follow(stack, urgent[0])
        assert (seen[-1].type, story[-1].type) == ("completed", "completed")

        (made_way,) = [event.data["step"] for event in seen if event.type == "preempted"]
        (went_on,) = [event.data["from_step"] for event in seen if event.type == "resumed"]
        assert 5 <= made_way < STEPS
        assert went_on == made_way
        assert num_steps(stack.metrics("gpu-worker")) - before == STEPS + URGENT_STEPS, "no step was taken twice"

        task = f"{patient}.generate.0"
        ledger = stack.sql("SELECT outcome FROM ledger WHERE task_id = ? ORDER BY attempt", task)
        assert [row["outcome"] for row in ledger] == ["yielded", "done"]
        between, after = stack.task(urgent[0], "generate"), stack.task(patient, "generate")
        assert between["finished_at_ms"] <= after["claimed_at_ms"], "the urgent one ran before the patient one went on"
        for video_id, told in ((patient, seen), (urgent[0], story)):
            assert_whole_history(stack, video_id, told)
        assert_done_once(stack, urgent[0])
        assert_done_once(stack, patient, twin)
        assert_drained(stack)
    finally:
        stack.close()
