"""The states of jobs and tasks: every pair decided, every road ends."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import product
from typing import Any

import pytest

from vitascope_common import jobs
from vitascope_common.jobs import (
    ACTIVE_JOB,
    JOB_TRANSITIONS,
    KINDS,
    OPEN_TASK,
    PARAMS,
    TASK_TRANSITIONS,
    TERMINAL_JOB,
    TERMINAL_TASK,
    JobState,
    TaskState,
)

TABLES = [
    (JobState, JOB_TRANSITIONS, TERMINAL_JOB, ACTIVE_JOB, jobs.job_states_before),
    (TaskState, TASK_TRANSITIONS, TERMINAL_TASK, OPEN_TASK, jobs.task_states_before),
]
ALLOWED = {
    JobState: "queued>running queued>failed queued>cancelled running>completed running>failed running>cancelled",
    TaskState: "waiting>ready waiting>cancelled ready>leased ready>cancelled leased>ready leased>done leased>failed "
    "leased>cancelled",
}
"""Written out a second time on purpose: a change of a table is a change of the contract."""


@pytest.mark.parametrize(("states", "table", "terminal", "active", "before"), TABLES)
def test_transitions(
    states: type[StrEnum],
    table: Mapping[Any, frozenset[Any]],
    terminal: frozenset[Any],
    active: frozenset[Any],
    before: Callable[[Any], frozenset[Any]],
) -> None:
    assert set(table) == set(states)
    allowed = set(ALLOWED[states].split())
    for one, other in product(states, repeat=2):
        assert (other in table[one]) == (f"{one}>{other}" in allowed), f"{one} -> {other}"
        assert (one in before(other)) == (other in table[one]), "states_before is not the inverse"
    assert terminal == {state for state in states if not table[state]}
    assert active | terminal == set(states)
    assert not active & terminal
    for state in active:
        assert _reachable(state, table) & terminal, f"{state} never ends"
        assert states["CANCELLED"] in table[state], f"{state} cannot be cancelled"
    assert not any(state in table[state] for state in states)


def _reachable(start: Any, table: Mapping[Any, frozenset[Any]]) -> frozenset[Any]:
    seen, todo = {start}, [start]
    while todo:
        fresh = table[todo.pop()] - seen
        seen |= fresh
        todo += fresh
    return frozenset(seen)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_is_a_chain_of_stages(kind: jobs.Kind) -> None:
    """Each stage needs the one before it, parameters exist for each, and exactly one is first."""
    names = [stage.name for stage in kind.stages]
    assert len(set(names)) == len(names)
    assert [stage.needs for stage in kind.stages] == [None, *names[:-1]]
    assert set(names) <= set(PARAMS)
    for stage in kind.stages:
        after = kind.after(stage.name)
        assert after is None or after.needs == stage.name
