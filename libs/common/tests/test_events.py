"""append_event against a real Redis: nothing doubled, nothing from an attempt that has ended."""

from collections.abc import Iterator

import pytest
from redis import Redis

from vitascope_common import events, keys
from vitascope_common.events import Event, EventType
from vitascope_common.redis_clients import connect
from vitascope_common.testing import redis_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    client = connect(url)
    client.flushall()
    yield client
    client.close()


def state(event_type: EventType, version: int, **rest: object) -> Event:
    return Event("video_1", event_type, version=version, **rest)  # type: ignore[arg-type]


def progress(step: int, attempt: int = 1, task: str = "video_1.generate.0") -> Event:
    return Event("video_1", EventType.PROGRESS, {"step": step}, task=task, attempt=attempt)


def types(redis: Redis) -> list[str]:
    return [fields["type"] for _, fields in redis.xrange(keys.events("video_1"))]


def test_a_state_event_that_comes_twice_is_written_once(redis: Redis) -> None:
    assert events.append(redis, state(EventType.QUEUED, 1))
    assert events.append(redis, state(EventType.QUEUED, 1)) is None
    assert types(redis) == ["queued"]


def test_an_older_state_event_is_dropped(redis: Redis) -> None:
    events.append(redis, state(EventType.STARTED, 2))
    assert events.append(redis, state(EventType.QUEUED, 1)) is None


def test_progress_of_an_older_attempt_is_dropped(redis: Redis) -> None:
    events.append(redis, state(EventType.RESUMED, 3, task="video_1.generate.0", attempt=2))
    assert events.append(redis, progress(14, attempt=1)) is None
    assert events.append(redis, progress(11, attempt=2))


def test_progress_alone_raises_the_fence(redis: Redis) -> None:
    events.append(redis, progress(11, attempt=2))
    assert events.append(redis, progress(14, attempt=1)) is None


def test_progress_of_an_attempt_that_ended_is_dropped(redis: Redis) -> None:
    events.append(redis, progress(20))
    events.append(redis, state(EventType.POSTPROCESSING, 3, task="video_1.generate.0", attempt=1, closes=True))
    assert events.append(redis, progress(21)) is None
    assert events.append(redis, progress(1, task="video_1.finish.0"))


def test_nothing_follows_a_terminal_event(redis: Redis) -> None:
    events.append(redis, state(EventType.CANCELLED, 4))
    assert events.append(redis, progress(21)) is None
    assert types(redis) == ["cancelled"]


def test_history_and_feed_tell_the_same(redis: Redis) -> None:
    event_id = events.append(redis, progress(3))
    ((_, copy),) = redis.xrange(keys.feed(keys.event_shard("video_1")))
    ((entry_id, fields),) = redis.xrange(keys.events("video_1"))
    assert events.from_feed(copy) == events.from_history("video_1", entry_id, fields)
    assert entry_id == event_id
    assert redis.ttl(keys.events("video_1")) > 0
    assert redis.ttl(keys.event_fence("video_1")) > 0


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "1-x", "١-١", "1-2-3"])
def test_what_is_not_a_stream_id_orders_first(text: str) -> None:
    assert events.id_order(text) == (0, 0)


def test_stream_ids_order_by_number() -> None:
    assert events.id_order("9-10") < events.id_order("10-2") < events.id_order("10-11")
