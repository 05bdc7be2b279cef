"""The whole stack on PostgreSQL: made, interrupted by a kill, cancelled, downloaded."""

from collections.abc import Iterator

import pytest

from tests.conftest import PROMPT, SHORT_LEASES, Stack
from vitascope_common.testing import postgres_server


@pytest.fixture(scope="module")
def postgres_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with postgres_server() as new_database:
        settings = {**SHORT_LEASES, "VITASCOPE_DATABASE_URL": new_database()}
        one = Stack(tmp_path_factory.mktemp("postgres") / "data", settings=settings)
        try:
            yield one
        finally:
            one.close()


@pytest.mark.slow
def test_a_job_survives_a_kill_and_another_is_cancelled(postgres_stack: Stack) -> None:
    stack = postgres_stack
    assert not list(stack.data_dir.glob("*.db")), "it was given PostgreSQL"
    video = stack.client.videos.create(prompt=PROMPT, seed=3, num_inference_steps=60)
    other = stack.client.videos.create(prompt=PROMPT, seed=4, num_inference_steps=200)

    seen, is_killed = [], False
    for event in stack.client.videos.stream(video.id):
        seen.append(event.type)
        if event.type == "checkpoint" and not is_killed:
            stack.kill("gpu-worker")
            is_killed = True
    assert seen[-1] == "completed"
    assert "resumed" in seen
    assert stack.client.videos.download(video.id)[4:8] == b"ftyp"

    for event in stack.client.videos.stream(other.id):
        if event.type == "progress" and event.data["step"]:
            assert stack.client.videos.cancel(other.id).error.code == "cancelled"
    assert event.type == "cancelled"

    ledger = stack.sql("SELECT stage, outcome FROM ledger JOIN tasks USING (task_id) WHERE tasks.job_id = ?", video.id)
    assert sorted((row["stage"], row["outcome"]) for row in ledger) == [
        ("finish", "done"),
        ("generate", "done"),
        ("generate", "lost"),
    ]
    states = stack.sql("SELECT state FROM jobs ORDER BY created_at_ms")
    assert [row["state"] for row in states] == ["completed", "cancelled"]
