"""The checkpoint file: what it keeps, and that no damage passes for a checkpoint."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from structlog.testing import capture_logs

from vitascope_common.errors import CorruptObjectError
from vitascope_common.jobs import GenerateParams, Task
from vitascope_gpu_worker import checkpoint
from vitascope_gpu_worker.checkpoint import Origin
from vitascope_gpu_worker.engine import Snapshot

MODEL = "ab" * 32
PARAMS = GenerateParams("tiny", MODEL, "a", "", 16, 16, 9, 8, 24, 2.5, 2.0, "euler", 7, "1")
TASK = Task("j.generate.0", "j", "t", "generate", "generate", 0, "gpu-worker", "default", 3, PARAMS)
HERE = Origin(1, "cpu")
SNAPSHOT = Snapshot(
    10,
    torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(1)),
    {"history": torch.arange(6, dtype=torch.float64).reshape(2, 3), "order": torch.tensor(2)},
    torch.Generator().manual_seed(7).get_state(),
)
DATA = checkpoint.encode(SNAPSHOT, TASK, MODEL, HERE)


def test_everything_comes_back():
    found = checkpoint.decode(DATA, replace(TASK, attempt=9), MODEL, HERE)
    assert found.step == 10
    assert torch.equal(found.latents_BCTHW, SNAPSHOT.latents_BCTHW)
    assert torch.equal(found.rng, SNAPSHOT.rng)
    assert found.sampler.keys() == SNAPSHOT.sampler.keys()
    for name, value in found.sampler.items():
        assert value.dtype == SNAPSHOT.sampler[name].dtype
        assert torch.equal(value, SNAPSHOT.sampler[name])


@settings(max_examples=200)
@given(position=st.integers(0, len(DATA) - 1), mask=st.integers(1, 255))
def test_a_flipped_byte_never_changes_what_is_read(position, mask):
    """Without the file's own hash: either it is noticed, or it was padding and nothing differs."""
    damaged = bytearray(DATA)
    damaged[position] ^= mask
    try:
        found = checkpoint.decode(bytes(damaged), TASK, MODEL, HERE)
    except CorruptObjectError:
        return
    assert found.step == SNAPSHOT.step
    assert torch.equal(found.latents_BCTHW, SNAPSHOT.latents_BCTHW)
    assert torch.equal(found.rng, SNAPSHOT.rng)
    assert found.sampler.keys() == SNAPSHOT.sampler.keys()


@settings(max_examples=60)
@given(length=st.integers(0, len(DATA) - 1))
def test_a_torn_file_is_noticed(length):
    with pytest.raises(CorruptObjectError):
        checkpoint.decode(DATA[:length], TASK, MODEL, HERE)


@pytest.mark.parametrize(
    ("task", "model", "what"),
    [
        (replace(TASK, task_id="k.generate.0"), MODEL, "task"),
        (TASK, "cd" * 32, "model_sha256"),
        (replace(TASK, params=replace(PARAMS, seed=8)), MODEL, "config_sha256"),
        (replace(TASK, params=replace(PARAMS, num_inference_steps=30)), MODEL, "config_sha256"),
    ],
)
def test_a_foreign_checkpoint_is_refused_by_name(task, model, what):
    with pytest.raises(CorruptObjectError, match=what):
        checkpoint.decode(DATA, task, model, HERE)


@pytest.mark.parametrize(
    ("here", "what"),
    [
        (Origin(2, "cpu"), "num_threads"),
        (Origin(1, "cuda:X"), "device"),
        (Origin(1, "cpu", num_ranks=2), "num_ranks"),
        (Origin(1, "cpu", cpu_capability="ANOTHER"), "cpu_capability"),
    ],
)
def test_other_conditions_are_said_but_accepted(here, what):
    with capture_logs() as said:
        assert checkpoint.decode(DATA, TASK, MODEL, here).step == 10
    assert [(one["event"], one["what"]) for one in said] == [("checkpoint.not_bit_identical", what)]


def test_the_same_conditions_are_not_worth_a_word():
    with capture_logs() as said:
        checkpoint.decode(DATA, TASK, MODEL, HERE)
    assert said == []


def without(name):
    """Write the checkpoint as a version would that did not know this field."""
    metadata = checkpoint._metadata(DATA)
    del metadata["content_sha256"], metadata[name]
    tensors = load_tensors(DATA)
    return save_tensors(tensors, metadata | {"content_sha256": checkpoint._content_sha256(tensors, metadata)})


def test_a_checkpoint_that_is_older_than_a_condition_is_accepted():
    with capture_logs() as said:
        assert checkpoint.decode(without("cpu_capability"), TASK, MODEL, HERE).step == 10
    assert [(one["what"], one["then"]) for one in said] == [("cpu_capability", "unknown")]


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused():
    with pytest.raises(CorruptObjectError, match="task is None"):
        checkpoint.decode(without("task"), TASK, MODEL, HERE)
