"""Which URLs say where Redis is, and that clients are made without asking it. The rest: tests/integration."""

import pytest

from vitascope_common import redis_clients, redis_url
from vitascope_common.errors import ConfigurationError
from vitascope_common.redis_url import RedisUrl, Topology
from vitascope_common.testing import free_port


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:secret@redis:6379/0", RedisUrl(Topology.STANDALONE)),
        ("rediss://redis", RedisUrl(Topology.STANDALONE)),
        ("unix:///run/redis.sock?db=1", RedisUrl(Topology.STANDALONE)),
        (
            "redis+sentinel://me:p%40%2Fss@a:26380,[::1]/main/3?sentinel_password=other",
            RedisUrl(Topology.SENTINEL, (("a", 26380), ("::1", 26379)), "me", "p@/ss", "main", 3, "other"),
        ),
        ("redis+sentinel://a/main", RedisUrl(Topology.SENTINEL, (("a", 26379),), master_name="main")),
        ("redis+cluster://:pass@a:1,b", RedisUrl(Topology.CLUSTER, (("a", 1), ("b", 6379)), password="pass")),
    ],
)
def test_a_url_says_where_redis_is(url, expected):
    assert redis_url.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://:hunter2@redis",
        "sentinel://:hunter2@a/main",
        "redis+sentinel:/:hunter2@a/main",
        "redis+sentinel://:hunter2@a:26379",
        "redis+sentinel://:hunter2@a:26379/main/x",
        "redis+sentinel://:hunter2@a:26379/main?hunter2=1",
        "redis+sentinel://:hunter2@a,/main",
        "redis+sentinel://:hunter2@a:99999/main",
        "redis+sentinel://:hunter2/3@a/main",
        "redis+cluster://:hunter2@a/0",
        "redis+cluster://:hunter2@a?db=1",
        "redis+cluster://:hunter2@",
        "redis+cluster://:hunter2@a:b",
        "redis://:hunter2/3@redis:6379/0",
        "redis://:hunter2@redis:port",
    ],
)
def test_a_malformed_url_is_refused_without_repeating_it(url):
    for make in (redis_clients.connect, redis_clients.connect_async):
        with pytest.raises(ConfigurationError) as caught:
            make(url)
        assert "hunter2" not in caught.value.message
        assert caught.value.__cause__ is None


def test_passwords_are_not_shown():
    where = redis_url.parse("redis+sentinel://:hunter2@a/main?sentinel_password=hunter3")
    assert "hunter" not in repr(where)


@pytest.mark.parametrize(
    "form", ["redis://127.0.0.1:{}/0", "redis+sentinel://127.0.0.1:{}/x", "redis+cluster://127.0.0.1:{}"]
)
async def test_clients_are_made_while_redis_is_away(form):
    url = form.format(free_port())
    plain, redis = redis_clients.connect(url), redis_clients.connect_async(url)
    for _ in range(2):
        with pytest.raises(redis_clients.ERRORS):
            plain.get("a")
        with pytest.raises(redis_clients.ERRORS):
            await redis.get("a")
    plain.close()
    await redis.aclose()
