"""Redis names: one slot per pool and per event shard, and each says whose it is."""

import inspect
import re
from collections.abc import Callable

import pytest

from vitascope_common import keys

FUNCTIONS = {
    name: function
    for name, function in inspect.getmembers(keys, inspect.isfunction)
    if function.__module__ == keys.__name__ and inspect.signature(function).return_annotation in (str, "str")
}
USED_ALONE = {"scheduler_leader"}
"""Never in one script or transaction with another key, so it needs no tag."""
VALUES = {
    "pool": "p1",
    "job_id": "video_1",
    "worker_id": "w1",
    "class_name": "batch",
    "tenant_id": "t1",
    "task": "x",
    "shard": 3,
    "role": "reaper",
}


def made(function: Callable[..., str], **changed: object) -> str:
    names = inspect.signature(function).parameters
    return function(**{name: changed.get(name, VALUES.get(name, "x")) for name in names})


def tags(key: str) -> list[str]:
    return re.findall(r"\{([^}]*)\}", key)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_key_carries_exactly_one_hash_tag(name: str) -> None:
    found = tags(made(FUNCTIONS[name]))
    assert len(found) == (0 if name in USED_ALONE else 1)
    assert all(found)


def test_all_keys_of_a_pool_share_its_tag() -> None:
    of_pools = [function for function in FUNCTIONS.values() if "pool" in inspect.signature(function).parameters]
    assert len(of_pools) > 8
    assert {tags(made(function))[0] for function in of_pools} == {"p1"}
    assert {tags(made(function, pool="p2"))[0] for function in of_pools} == {"p2"}


def test_all_keys_of_a_job_share_the_tag_of_its_shard() -> None:
    for number in range(50):
        job = f"video_{number}"
        found = {
            tags(made(function, job_id=job, shard=keys.event_shard(job)))[0]
            for function in (keys.events, keys.event_fence, keys.feed)
        }
        assert found == {f"e{keys.event_shard(job):02d}"}
        assert 0 <= keys.event_shard(job) < keys.NUM_EVENT_SHARDS


def test_no_two_functions_make_the_same_key() -> None:
    made_keys = [made(function) for function in FUNCTIONS.values()]
    assert len(set(made_keys)) == len(made_keys)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_changes_the_key(name: str) -> None:
    function = FUNCTIONS[name]
    for parameter in inspect.signature(function).parameters:
        assert made(function) != made(function, **{parameter: 4 if parameter == "shard" else "another"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_key_names_type_owner_and_lifetime(name: str) -> None:
    told = inspect.getdoc(FUNCTIONS[name]) or ""
    assert re.match(r"(STRING|HASH|LIST|SET|ZSET|STREAM)\b", told)
    assert "owner" in told
    assert re.search(r"expir|gone when|lifetime", told)
