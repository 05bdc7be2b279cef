"""The worker's machine, every pair of states."""

from itertools import product

import prometheus_client
import pytest

from vitascope_gpu_worker.errors import IllegalTransitionError
from vitascope_gpu_worker.states import TRANSITIONS, WorkerMachine, WorkerState

# The seed's diagram, and below it what real life adds; written down a second time on purpose.
SEED = """
idle loading, loading ready, loading idle, ready initializing, initializing generating, generating checkpointing,
checkpointing generating, generating generating, generating decoding, decoding audio_sync, audio_sync safety_check,
safety_check uploading, safety_check failed, uploading complete, uploading failed, complete idle, failed idle,
generating recovering, recovering generating, recovering failed
"""
ADDED = """
initializing recovering,
ready idle, initializing idle, recovering idle, generating idle, checkpointing idle, decoding idle, uploading idle,
ready failed, initializing failed, generating failed, checkpointing failed, decoding failed
"""


def pairs(text):
    return {tuple(WorkerState(name) for name in pair.split()) for pair in text.replace("\n", " ").split(",")}


ALLOWED = pairs(SEED) | pairs(ADDED)


def machine_in(state):
    machine = WorkerMachine()
    machine._state = state
    return machine


@pytest.mark.parametrize(("before", "after"), list(product(WorkerState, WorkerState)))
def test_every_pair(before, after):
    machine = machine_in(before)
    if (before, after) in ALLOWED:
        machine.to(after)
        assert machine.state is after
    else:
        with pytest.raises(IllegalTransitionError, match=f"from {before} to {after}"):
            machine.to(after)
        assert machine.state is before


def test_the_seeds_machine_is_whole():
    assert {(before, after) for before, found in TRANSITIONS.items() for after in found} == ALLOWED
    assert set(TRANSITIONS) == set(WorkerState)


@pytest.mark.parametrize("state", sorted(set(WorkerState) - {WorkerState.AUDIO_SYNC, WorkerState.SAFETY_CHECK}))
def test_whatever_happens_the_worker_becomes_idle(state):
    machine = machine_in(state)
    machine.end()
    assert machine.state is WorkerState.IDLE


def test_a_failed_load_goes_to_idle_and_any_other_failure_through_failed():
    machine = machine_in(WorkerState.LOADING)
    machine.fail()
    assert machine.state is WorkerState.IDLE
    machine = machine_in(WorkerState.DECODING)
    machine.fail()
    assert machine.state is WorkerState.FAILED


def test_the_gauge_and_the_listener_follow():
    heard = []
    machine = WorkerMachine(heard.append)
    machine.to(WorkerState.LOADING)
    assert heard == [WorkerState.IDLE, WorkerState.LOADING]
    values = {
        state: prometheus_client.REGISTRY.get_sample_value("vitascope_worker_state", {"state": state.value})
        for state in WorkerState
    }
    assert values == {state: float(state is WorkerState.LOADING) for state in WorkerState}
