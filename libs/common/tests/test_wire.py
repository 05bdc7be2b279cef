"""Tasks survive the wire as they are."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitascope_common import wire
from vitascope_common.errors import InternalError
from vitascope_common.jobs import (
    Artifact,
    Checkpoint,
    FinishParams,
    GenerateParams,
    Progress,
    Reference,
    Task,
    params_from_dict,
    params_to_dict,
)
from vitascope_proto.v1 import jobs_pb2

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
count = st.integers(0, 2**53)
artifacts = st.builds(Artifact, text, text, text, text, text, count)
checkpoints = st.builds(Checkpoint, count, text, st.lists(artifacts, max_size=2).map(tuple))
int32 = st.integers(0, 2**31 - 1)
number = st.floats(allow_nan=False, allow_infinity=False)
references = st.lists(st.builds(Reference, text, artifacts, number), max_size=2).map(tuple)
generate = st.builds(
    GenerateParams, text, text, text, text, int32, int32, int32, int32, int32, number, number, text, count, text,
    references, number, number, number, text,
)  # fmt: skip
params = generate | st.builds(FinishParams, text, text, int32, int32, int32, int32)
tasks = st.builds(
    Task,
    text, text, text, text, text, int32, text, text, count, params,
    st.lists(artifacts, max_size=2).map(tuple),
    st.lists(checkpoints, max_size=3).map(tuple),
    st.booleans(), text, count,
    st.dictionaries(text, text, max_size=2), st.integers(1, 2**31 - 1),
)  # fmt: skip


@given(tasks)
def test_a_task_comes_back_as_it_went(task: Task) -> None:
    sent = wire.task_to_proto(task).SerializeToString()
    assert wire.task_from_proto(jobs_pb2.Task.FromString(sent)) == task


@given(params)
def test_parameters_survive_the_database(params: GenerateParams | FinishParams) -> None:
    stage = "generate" if isinstance(params, GenerateParams) else "finish"
    assert params_from_dict("generate", stage, json.loads(json.dumps(params_to_dict(params)))) == params


PLAIN = GenerateParams("m", "f" * 64, "a", "", 64, 48, 9, 8, 24, 2.5, 2.0, "euler", 7, "1")


def test_a_clip_from_text_alone_is_told_as_older_builds_tell_it() -> None:
    """Rows, and with them the identity of checkpoints, stay what they are."""
    assert list(params_to_dict(PLAIN)) == list(GenerateParams.__dataclass_fields__)[:14]


def test_a_sender_that_knows_no_guidance_interval_means_all_of_it() -> None:
    message = wire.task_to_proto(Task("j", "j", "t", "generate", "generate", 0, "gpu-worker", "default", 1, PLAIN))
    for name in ("references", "guidance_start", "guidance_end", "guidance_rescale", "temporal_attention"):
        message.generate.ClearField(name)
    assert wire.task_from_proto(message).params == PLAIN


@given(checkpoints)
def test_a_checkpoint_survives_the_database(checkpoint: Checkpoint) -> None:
    assert Checkpoint.from_dict(checkpoint.to_dict()) == checkpoint


def test_progress_comes_back() -> None:
    progress = Progress(3, 24, "step", "denoising")
    assert wire.progress_from_proto(wire.progress_to_proto(progress)) == progress


def test_parameters_of_an_unknown_kind_are_an_error() -> None:
    with pytest.raises(InternalError, match="does not know"):
        wire.task_from_proto(jobs_pb2.Task(task_id="t"))


def test_keys_contain_the_attempt() -> None:
    task = Task("j.generate.0", "j", "t", "generate", "generate", 0, "gpu-worker", "default", 3,
                FinishParams("m", "", 1, 1, 1, 1))  # fmt: skip
    assert task.work_key("a") == "work/j/generate/0/3/a"
    assert replace(task, attempt=4).video_key("a") == "videos/j/4/a"
