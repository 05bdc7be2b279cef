"""The forms of URL that say where Redis is; reads no more than text, so that settings can check them.

    redis://[user:password@]host:port[/db]                                  one server; rediss:// with TLS
    unix://[user:password@]/path/to/socket[?db=db]
    redis+sentinel://[user:password@]host:port,host:port/MASTER_NAME[/db][?sentinel_password=password]
    redis+cluster://[user:password@]host:port,host:port

User and password are the data servers'. Ports may be left out: 6379, and 26379 for Sentinel.
"""

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from urllib.parse import parse_qsl, unquote

from vitascope_common.errors import ConfigurationError

_DEFAULT_PORTS = {"redis+sentinel": 26379, "redis+cluster": 6379}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\],]+)(?::([0-9]{1,5}))?", re.ASCII)


class Topology(StrEnum):
    """How the servers behind a URL belong together."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True)
class RedisUrl:
    """What a URL says. For STANDALONE only `topology` is filled: redis-py reads that form itself."""

    topology: Topology
    hosts: tuple[tuple[str, int], ...] = ()
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    master_name: str = ""
    db: int = 0
    sentinel_password: str | None = field(default=None, repr=False)


def parse(url: str) -> RedisUrl:
    """Read a URL. Raises ConfigurationError, whose text holds nothing of the URL: it may hold a password."""
    scheme, separator, rest = url.partition("://")
    if scheme in ("redis", "rediss", "unix") and separator:
        return RedisUrl(Topology.STANDALONE)
    if scheme not in _DEFAULT_PORTS or not separator:
        raise ConfigurationError(
            "a Redis URL begins with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        )
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    credentials, _, names = authority.rpartition("@")
    username, _, password = credentials.partition(":")
    where = RedisUrl(
        Topology.CLUSTER,
        _hosts(names, scheme),
        username=unquote(username) or None,
        password=unquote(password) or None,
    )
    if scheme == "redis+cluster":
        if path or query:
            raise ConfigurationError("a redis+cluster:// URL ends after its hosts: a cluster has one database")
        return where
    master_name, _, db = path.partition("/")
    options = dict(parse_qsl(query))
    sentinel_password = options.pop("sentinel_password", None)
    if not master_name or not (db or "0").isdecimal() or options:
        raise ConfigurationError("a redis+sentinel:// URL ends with /MASTER_NAME[/db][?sentinel_password=…]")
    return replace(
        where,
        topology=Topology.SENTINEL,
        master_name=unquote(master_name),
        db=int(db or 0),
        sentinel_password=sentinel_password,
    )


def _hosts(names: str, scheme: str) -> tuple[tuple[str, int], ...]:
    hosts = []
    for name in names.split(","):
        found = _HOST.fullmatch(name)
        port = int(found[2] or _DEFAULT_PORTS[scheme]) if found else 0
        if not found or not 0 < port < 65536:
            raise ConfigurationError(
                f"a {scheme}:// URL names its hosts as host:port,host:port; @ and / in a password are %40 and %2F"
            )
        hosts.append((found[1].strip("[]"), port))
    return tuple(hosts)
