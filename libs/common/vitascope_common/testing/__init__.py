"""Real servers for tests: free ports on loopback, gone with their block."""

from vitascope_common.testing.postgres import postgres_server
from vitascope_common.testing.processes import free_port, is_alive
from vitascope_common.testing.receivers import Received, Receiver, webhook_receiver
from vitascope_common.testing.redis_groups import (
    MASTER_NAME,
    ClusterServers,
    SentinelServers,
    redis_cluster,
    redis_sentinel,
)
from vitascope_common.testing.redis_servers import RedisServer, debian_redis, redis_server, wait_for_redis
from vitascope_common.testing.sqlite import sqlite_database

__all__ = [
    "MASTER_NAME",
    "ClusterServers",
    "Received",
    "Receiver",
    "RedisServer",
    "SentinelServers",
    "debian_redis",
    "free_port",
    "is_alive",
    "postgres_server",
    "redis_cluster",
    "redis_sentinel",
    "redis_server",
    "sqlite_database",
    "wait_for_redis",
    "webhook_receiver",
]
