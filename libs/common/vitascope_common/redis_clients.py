"""Redis clients for one server, Sentinel or a Cluster, with timeouts and retries said out loud.

redis-py 8 retries ten times by default, which can run a write twice, and cuts blocking reads off after five seconds.
Nothing of ours repeats a command behind the caller's back: scripts are idempotent and the caller decides. What remains
are a Cluster's redirections (MOVED, ASK, TRYAGAIN): the server that sends one has not run the command.

After a failure a Sentinel client asks the sentinels again and a Cluster client the hosts of its URL, by name. So a
cluster that comes back under other addresses is found; list several of its hosts, or a name that stands for all.
No client connects before its first command.
"""

import threading
from typing import Any, cast

from redis import Redis, RedisCluster
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import RedisCluster as AsyncRedisCluster
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from vitascope_common import redis_url
from vitascope_common.errors import ConfigurationError
from vitascope_common.redis_url import RedisUrl, Topology

CONNECT_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 5.0
BLOCKING_TIMEOUT_S = 10.0  # longer than any BLOCK of ours; a dead server still ends the read
SENTINEL_TIMEOUT_S = 0.5  # one that is gone must not use up the patience of who waits for the next

ERRORS = (RedisError, RedisClusterException, OSError)
"""What a command raises when Redis is away or refuses; a Cluster's exceptions are no RedisError."""


def connect(url: str, *, is_blocking: bool = False) -> Redis:
    """Make a synchronous client; `is_blocking` for a client that waits in XREAD BLOCK.

    For a Cluster it is a RedisCluster, which has the same commands. Raises ConfigurationError.
    """
    where, options = redis_url.parse(url), _options(is_blocking)
    retry, sentinel_class = Retry(NoBackoff(), 0), cast(Any, Sentinel)
    if where.topology is Topology.CLUSTER:
        return cast(Redis, _LazyCluster(where, options))
    if where.topology is Topology.SENTINEL:
        sentinel = sentinel_class(where.hosts, sentinel_kwargs=_of_sentinel(where) | {"retry": retry})
        options |= _login(where) | {"db": where.db, "retry": retry}
        return cast(Redis, sentinel.master_for(where.master_name, _MasterClient, **options))
    try:
        return Redis.from_url(url, retry=retry, **options)
    except ValueError:
        raise _malformed() from None


def connect_async(url: str, *, is_blocking: bool = False) -> AsyncRedis:
    """Make an asyncio client; `is_blocking` for a client that waits in XREAD BLOCK.

    For a Cluster it is a RedisCluster, which has the same commands. Raises ConfigurationError.
    """
    where, options = redis_url.parse(url), _options(is_blocking)
    retry, sentinel_class = AsyncRetry(NoBackoff(), 0), cast(Any, AsyncSentinel)
    if where.topology is Topology.CLUSTER:
        nodes = [AsyncClusterNode(host, port) for host, port in where.hosts]
        options |= _login(where) | {"retry": retry, "dynamic_startup_nodes": False, "reinitialize_steps": 0}
        cluster = _AsyncClusterClient(startup_nodes=nodes, **options)
        return cast(AsyncRedis, cluster)
    if where.topology is Topology.SENTINEL:
        sentinel = sentinel_class(where.hosts, sentinel_kwargs=_of_sentinel(where) | {"retry": retry})
        options |= _login(where) | {"db": where.db, "retry": retry}
        return cast(AsyncRedis, sentinel.master_for(where.master_name, _AsyncMasterClient, **options))
    try:
        return AsyncRedis.from_url(url, retry=retry, **options)
    except ValueError:
        raise _malformed() from None


def is_cluster(redis: AsyncRedis) -> bool:
    """Tell whether one command can only reach keys of one hash slot."""
    return isinstance(redis, AsyncRedisCluster)


async def run_id(redis: AsyncRedis, key: str) -> str:
    """Return the id of the run of the server that has `key`: a restart or a failover changes it."""
    client: Any = redis
    if is_cluster(redis):
        await client.initialize()
        server = await client.info("server", target_nodes=client.get_node_from_key(key))
    else:
        server = await client.info("server")
    return str(server["run_id"])


def _options(is_blocking: bool) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": BLOCKING_TIMEOUT_S if is_blocking else COMMAND_TIMEOUT_S,
    }


def _login(where: RedisUrl) -> dict[str, Any]:
    return {"username": where.username, "password": where.password}


def _of_sentinel(where: RedisUrl) -> dict[str, Any]:
    return {
        "password": where.sentinel_password,
        "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "socket_timeout": SENTINEL_TIMEOUT_S,
    }


def _malformed() -> ConfigurationError:
    return ConfigurationError("the Redis URL is malformed; it is redis://[user:password@]host:port[/db]")


class _MasterClient(Redis):
    """A client of the master that closes its clients of the sentinels too."""

    def close(self) -> None:
        super().close()
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            sentinel.close()


class _AsyncMasterClient(AsyncRedis):
    """A client of the master that closes its clients of the sentinels too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()


class _AsyncClusterClient(AsyncRedisCluster):
    """A RedisCluster for many tasks at a time.

    redis-py cuts off every connection when a server is down, and with `reinitialize_steps` also at every fifth MOVED:
    commands that just then connect find nothing to write to. It takes a client whose last command failed for closed.
    """

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().execute_command(*args, **kwargs)
        except AttributeError as error:
            raise RedisConnectionError("The connection was closed meanwhile") from error

    async def aclose(self) -> None:
        await super().aclose()
        for nodes in ("nodes_cache", "startup_nodes"):
            await self.nodes_manager.aclose(nodes)


class _LazyCluster:
    """A RedisCluster that is made with its first command: making one asks a server, which may be away."""

    def __init__(self, where: RedisUrl, options: dict[str, Any]) -> None:
        self._where = where
        self._options = options
        self._lock = threading.Lock()
        self._cluster: RedisCluster | None = None

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._cluster is None:
                node: Any = ClusterNode
                self._cluster = RedisCluster(
                    startup_nodes=[node(host, port) for host, port in self._where.hosts],
                    dynamic_startup_nodes=False,
                    retry=Retry(NoBackoff(), 0),
                    **_login(self._where),
                    **self._options,
                )
        return getattr(self._cluster, name)

    def close(self) -> None:
        """Close what was made."""
        with self._lock:
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None
