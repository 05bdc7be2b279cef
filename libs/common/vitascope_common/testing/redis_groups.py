"""Several Redis servers that belong together: a master with its replica and Sentinel, and a Cluster."""

import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from vitascope_common.process import dying_with_parent
from vitascope_common.testing.processes import free_port, wait_until
from vitascope_common.testing.redis_servers import RedisServer, wait_for_redis

MASTER_NAME = "vitascope"
NUM_MASTERS = 3

_SENTINEL_DOWN_AFTER_MS = 1000  # it promotes no replica that was cut off ten times as long
_CLUSTER_DOWN_AFTER_MS = 500
_TIMEOUT_S = 30.0
_CLUSTER_BUS = 10_000  # the bus listens this far above the port
_SYNC_AT_ONCE = ("--repl-diskless-sync-delay", "0")


class _Replicated:
    """A replica that can be kept from hearing of writes, so that a failover to it loses them."""

    def __init__(self, master: RedisServer, replica: RedisServer) -> None:
        self.master = master
        self.replica = replica

    def wait_in_sync(self) -> None:
        """Return once the replica is connected and has everything."""

        def is_in_sync() -> bool:
            mine, its = self.replica.info("replication"), self.master.info("replication")
            is_up = mine.get("master_link_status") == "up"
            return is_up and mine.get("slave_repl_offset") == its.get("master_repl_offset")

        wait_until("the replica to be in sync", is_in_sync, _TIMEOUT_S)

    def hold_back_replica(self) -> None:
        """Cut the replica off: the master goes on, and what it is told from now on the replica never hears.

        Sentinel promotes it only within the next ten seconds.
        """
        self.wait_in_sync()
        self.replica.run("CONFIG", "SET", "masterauth", "wrong")
        self.master.run("CLIENT", "KILL", "TYPE", "replica")
        wait_until(
            "the replica to lose its master",
            lambda: self.replica.info("replication").get("master_link_status") == "down",
            _TIMEOUT_S,
        )

    def wait_promoted(self) -> None:
        """Return once the replica is the master."""
        wait_until(
            "the replica to be promoted", lambda: self.replica.info("replication")["role"] == "master", _TIMEOUT_S
        )


class SentinelServers(_Replicated):
    """A master, its replica, and one Sentinel that decides alone."""

    def __init__(self, url: str, sentinel_url: str, master: RedisServer, replica: RedisServer) -> None:
        super().__init__(master, replica)
        self.url = url
        self._sentinel_url = sentinel_url

    def fail_over(self) -> None:
        """Kill -9 the master; return when Sentinel names the replica instead."""
        self.master.kill()
        sentinel: Any = Redis.from_url(self._sentinel_url, decode_responses=True)

        def is_named() -> bool:
            state = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
            return int(state[1]) == self.replica.port

        try:
            wait_until("Sentinel to promote the replica", is_named, _TIMEOUT_S)
        finally:
            sentinel.close()
        self.wait_promoted()


@contextmanager
def redis_sentinel(folder: Path, *, executable: Path | None = None) -> Iterator[SentinelServers]:
    """Run a master with a replica and a Sentinel that takes a master for dead after a second of silence."""
    password, sentinel_password, port = secrets.token_hex(8), secrets.token_hex(8), free_port()
    with ExitStack() as stack:
        master = _started(stack, RedisServer(folder / "a", *_SYNC_AT_ONCE, executable=executable, password=password))
        following = ("--replicaof", "127.0.0.1", str(master.port), *_SYNC_AT_ONCE)
        replica = _started(stack, RedisServer(folder / "b", *following, executable=executable, password=password))
        url = f"redis+sentinel://:{password}@127.0.0.1:{port}/{MASTER_NAME}?sentinel_password={sentinel_password}"
        sentinel_url = f"redis://:{sentinel_password}@127.0.0.1:{port}"
        servers = SentinelServers(url, sentinel_url, master, replica)
        servers.wait_in_sync()  # Sentinel asks the master for its replicas at once, and then every ten seconds
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nrequirepass {sentinel_password}\n"
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {master.port} 1\n"
            f"sentinel auth-pass {MASTER_NAME} {password}\n"
            f"sentinel down-after-milliseconds {MASTER_NAME} {_SENTINEL_DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {MASTER_NAME} 5000\n"
        )
        command = dying_with_parent([str(master.program), str(configuration), "--sentinel"])
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        stack.callback(process.kill)
        wait_for_redis(sentinel_url, process)
        sentinel: Any = Redis.from_url(sentinel_url, decode_responses=True)
        stack.callback(sentinel.close)

        def knows_the_replica() -> bool:
            found = sentinel.execute_command("SENTINEL", "MASTER", MASTER_NAME)
            state = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
            return int(state["num-slaves"]) == 1

        wait_until("Sentinel to find the replica", knows_the_replica, _TIMEOUT_S)
        yield servers


class ClusterServers:
    """Three masters; each with a replica, when asked for."""

    def __init__(self, url: str, masters: Sequence[RedisServer], replicas: Sequence[RedisServer]) -> None:
        self.url = url
        self.masters = masters
        self.replicas = replicas

    def master(self, key: str) -> RedisServer:
        """Return the server that had the key's slot at the start."""
        return self.masters[key_slot(key.encode()) * NUM_MASTERS // REDIS_CLUSTER_HASH_SLOTS]

    def shard(self, key: str) -> _Replicated:
        """Return that server with its replica."""
        master = self.master(key)
        return _Replicated(master, self.replicas[self.masters.index(master)])

    def fail_over(self, key: str) -> None:
        """Kill -9 the master of a key; return when its replica has taken over and all are content."""
        shard = self.shard(key)
        shard.master.kill()
        shard.wait_promoted()
        self.wait_ok()

    def wait_ok(self) -> None:
        """Return once every server that runs says that all slots are covered."""
        running = [server for server in (*self.masters, *self.replicas) if server.is_running]
        wait_until("the cluster", lambda: all(_cluster_state(server) == "ok" for server in running), _TIMEOUT_S)


@contextmanager
def redis_cluster(
    folder: Path, *, executable: Path | None = None, with_replicas: bool = False
) -> Iterator[ClusterServers]:
    """Run a Cluster of three masters; a node is taken for dead after half a second."""
    password = secrets.token_hex(8)
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(_CLUSTER_DOWN_AFTER_MS), *_SYNC_AT_ONCE]
    options += ["--cluster-replica-validity-factor", "0"]  # one that was cut off may take over all the same
    with ExitStack() as stack:

        def start(name: str) -> RedisServer:
            port = _port_with_bus()
            server = RedisServer(folder / name, *options, executable=executable, port=port, password=password)
            return _started(stack, server)

        masters = [start(f"m{index}") for index in range(NUM_MASTERS)]
        replicas = [start(f"r{index}") for index in range(NUM_MASTERS)] if with_replicas else []
        for index, server in enumerate(masters):
            first = -(-index * REDIS_CLUSTER_HASH_SLOTS // NUM_MASTERS)
            last = -(-(index + 1) * REDIS_CLUSTER_HASH_SLOTS // NUM_MASTERS)
            server.run("CLUSTER", "ADDSLOTS", *map(str, range(first, last)))
            server.run("CLUSTER", "SET-CONFIG-EPOCH", str(index + 1))
        for server in (*masters[1:], *replicas):
            server.run("CLUSTER", "MEET", "127.0.0.1", str(masters[0].port))
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in masters)
        cluster = ClusterServers(f"redis+cluster://:{password}@{hosts}", masters, replicas)
        cluster.wait_ok()
        for master, replica in zip(masters, replicas, strict=False):
            name = str(master.run("CLUSTER", "MYID"))
            wait_until("all to meet", _knows(replica, name), _TIMEOUT_S)
            replica.run("CLUSTER", "REPLICATE", name)
        for master, replica in zip(masters, replicas, strict=False):
            _Replicated(master, replica).wait_in_sync()
        cluster.wait_ok()
        yield cluster


def _started(stack: ExitStack, server: RedisServer) -> RedisServer:
    stack.callback(server.kill)
    server.start()
    return server


def _knows(server: RedisServer, name: str) -> Callable[[], bool]:
    return lambda: name in str(server.run("CLUSTER", "NODES"))


def _cluster_state(server: RedisServer) -> str:
    answer: Any = server.run("CLUSTER", "INFO")
    if isinstance(answer, str):
        answer = dict(line.split(":", 1) for line in answer.split())
    return str(answer["cluster_state"])


def _port_with_bus() -> int:
    while (port := free_port()) + _CLUSTER_BUS > 65_535:
        pass
    return port
