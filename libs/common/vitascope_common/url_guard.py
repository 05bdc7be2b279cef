"""Requests to URLs that somebody else chose: they reach public addresses, what the operator allows, and nothing else.

A name is resolved once for each hop. Every address that came back is judged, and the connection goes to one of those
addresses, so that a second answer of the resolver cannot lead elsewhere; TLS still asks for the name. Neither proxies,
cookies nor credentials of this process take part.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from vitascope_common.errors import UrlFailedError, UrlRefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> addresses as text. Raises OSError: there is no such name."""

MAX_URL_CHARS = 2048
MAX_HOST_CHARS = 253
MAX_ADDRESSES_TRIED = 3
NUM_RESOLVING = 256
"""Lookups at once, in threads of their own: they may be slow on purpose, and go on when nobody waits any more.

Twice the places of the busiest caller, the sender of webhooks: in the 30 s that a resolver takes at most, a place whose
attempts end after 15 s begins two.
"""

FORBIDDEN_NETWORKS: Sequence[Network] = tuple(
    ipaddress.ip_network(one)
    for one in (
        # IANA's special-purpose registries (RFC 6890 and what followed), but for what is anycast and global.
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # a public address that is the host itself in Azure
        "2001::/23",  # with Teredo
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All that is handed out for use in the Internet; whatever lies outside is special, local or nothing yet."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""How networks with IPv6 only show IPv4: judged as that. The like in 64:ff9b:1::/48 is local and refused."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
HARMLESS_HEADERS = frozenset({"accept", "user-agent"})
"""What another origin gets to see after a redirect."""

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.ASCII)
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class UrlPolicy:
    """What URLs may lead to."""

    allowed_schemes: tuple[str, ...] = ("https",)
    """Plain http, if it is one of them, reaches `allowed_networks` only."""
    allowed_networks: Sequence[Network] = ()
    """Addresses that may be reached although they are not public."""
    max_redirects: int = 3
    connect_timeout_s: float = 5.0

    @classmethod
    def allowing(cls, networks: Sequence[str]) -> "UrlPolicy":
        """Return the policy of an operator who allows these networks as well; they may be reached by plain http."""
        allowed = tuple(ipaddress.ip_network(one) for one in networks)
        return cls(("https", "http") if allowed else ("https",), allowed)


@dataclass(frozen=True)
class GuardedResponse:
    """What a server said. `headers` have lower-case names; `content` is as it came, never decompressed."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


class UrlGuard:
    """Makes requests under a policy. Keeps no connection, so that one instance serves any number of callers."""

    def __init__(
        self, policy: UrlPolicy | None = None, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy or UrlPolicy()
        self._resolve = resolve or _system_resolver()
        # It honours SSL_CERT_FILE, by which operators add an authority of their own.
        self._tls = tls or httpx.create_ssl_context()

    def check(self, url: str) -> None:
        """Judge a URL as far as that goes without the network. Raises UrlRefusedError."""
        self._parsed(url)

    async def check_addresses(self, url: str) -> None:
        """Judge a URL and what its name leads to now; takes as long as the resolver does, and sends nothing there.

        Raises: UrlRefusedError; UrlFailedError: the name cannot be found.
        """
        await self._addresses(self._parsed(url))

    async def request(
        self,
        method: str,
        url: str,
        *,
        max_bytes: int,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        follow_redirects: bool = False,
        is_cut: bool = False,
    ) -> GuardedResponse:
        """Send one request and read its answer, whatever its status, all within `timeout_s`.

        Redirects are followed for GET and HEAD only. `is_cut`: of a longer answer the first `max_bytes` are returned.

        Raises:
            UrlRefusedError: this URL, or one that it redirects to, leads where it must not; nothing was sent there.
            UrlFailedError: it cannot be reached, is too slow, or answers with more than `max_bytes`.
        """
        follows = follow_redirects and method in ("GET", "HEAD")
        target, sent = self._parsed(url), httpx.Headers(dict(headers or {}))
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(self._policy.max_redirects + 1):
                    response = await self._hop(method, target, sent, content, max_bytes, is_cut, follows)
                    location = response.headers.get("location")
                    if not follows or response.status not in REDIRECTS or location is None:
                        return response
                    onward = self._redirected(target, location)
                    if _origin(onward) != _origin(target):
                        sent = httpx.Headers({name: sent[name] for name in sent if name in HARMLESS_HEADERS})
                    target = onward
        except TimeoutError:
            raise UrlFailedError(f"The URL did not answer in full within {timeout_s:g} s.") from None
        raise UrlFailedError(f"The URL redirects more than {self._policy.max_redirects} times.")

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            onward = self._parsed(str(url.join(location)))
        except (httpx.InvalidURL, ValueError):
            raise UrlFailedError("The URL redirects to what is no URL.") from None
        except UrlRefusedError as error:
            raise UrlRefusedError(f"The URL redirects to another. {error.message}") from None
        if url.scheme == "https" and onward.scheme != "https":
            raise UrlRefusedError("The URL redirects from https to http, which is not allowed.")
        return onward

    async def _hop(
        self,
        method: str,
        url: httpx.URL,
        headers: httpx.Headers,
        content: bytes,
        max_bytes: int,
        is_cut: bool,
        follows: bool,
    ) -> GuardedResponse:
        """Make one request to one of the addresses of a URL's host."""
        addresses = await self._addresses(url)
        sent = httpx.Headers({"accept": "*/*", "user-agent": "vitascope"})
        sent.update(headers)
        # What is not compressed cannot unfold into more than was counted.
        sent.update({"host": url.netloc.decode("ascii"), "accept-encoding": "identity", "connection": "close"})
        timeouts = httpx.Timeout(None, connect=self._policy.connect_timeout_s).as_dict()
        while True:
            pinned = url.copy_with(host=str(addresses.pop(0)))
            request = httpx.Request(
                method,
                pinned,
                headers=sent,
                content=content,
                extensions={"timeout": timeouts, "sni_hostname": url.raw_host.decode("ascii")},
            )
            # A transport of its own: no connection is ever shared by two names that have one address.
            async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
                try:
                    response = await transport.handle_async_request(request)
                    try:
                        if follows and response.status_code in REDIRECTS:
                            return GuardedResponse(response.status_code, response.headers)
                        body = await _body(response, max_bytes, is_cut)
                        return GuardedResponse(response.status_code, response.headers, body)
                    finally:
                        await response.aclose()
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    if _is_certificate_fault(error):
                        raise UrlFailedError("The server of the URL has no valid certificate for its name.") from error
                    if not addresses:
                        raise UrlFailedError("The server of the URL cannot be reached.") from error
                except (httpx.TransportError, ssl.SSLError) as error:  # httpcore lets the latter through
                    raise UrlFailedError("The server of the URL broke off, or does not speak HTTP/1.1.") from error

    async def _addresses(self, url: httpx.URL) -> list[Address]:
        """Return where a URL's host is, a few at most, if all of it is allowed."""
        host = url.raw_host.decode("ascii")
        literal = _literal(host)
        if literal is not None:
            return [_unmapped(literal)]  # was judged with the URL
        try:
            answers = await self._resolve(host, _port(url))
        except OSError:  # with socket.gaierror
            raise UrlFailedError("The host of the URL cannot be found.") from None
        except UnicodeError:
            raise UrlRefusedError("The URL names no host that can exist.") from None
        addresses = []
        for text in answers:
            address = ipaddress.ip_address(text)
            self._judge(address, url.scheme)
            addresses.append(_unmapped(address))
        if not addresses:
            raise UrlFailedError("The host of the URL has no address.")
        return list(dict.fromkeys(addresses))[:MAX_ADDRESSES_TRIED]

    def _parsed(self, text: str) -> httpx.URL:
        """Return a URL whose every part but the addresses behind its name is allowed."""
        schemes = " or ".join(f"{one}://" for one in self._policy.allowed_schemes)
        if len(text) > MAX_URL_CHARS:
            raise UrlRefusedError(f"The URL has {len(text)} characters; at most {MAX_URL_CHARS} are allowed.")
        try:
            url = httpx.URL(text)
            host = url.raw_host.decode("ascii")
        except (httpx.InvalidURL, ValueError):
            raise UrlRefusedError(f"The URL cannot be read; it must begin with {schemes} and a host.") from None
        if url.scheme not in self._policy.allowed_schemes:
            raise UrlRefusedError(f"The URL must begin with {schemes}.")
        if url.userinfo:
            raise UrlRefusedError("The URL must not hold a user name or a password.")
        port = _port(url)
        if port != _DEFAULT_PORTS[url.scheme] and not 1024 <= port <= 65535:
            raise UrlRefusedError(
                f"The port of the URL must be {_DEFAULT_PORTS[url.scheme]} or one from 1024 to 65535; it is {port}."
            )
        literal = _literal(host)
        if literal is not None:
            self._judge(literal, url.scheme)
        elif len(host) > MAX_HOST_CHARS or not _HOST.fullmatch(host):
            raise UrlRefusedError("The URL names no host that can exist.")
        return url

    def _judge(self, address: Address, scheme: str) -> None:
        """Refuse an address that is neither public nor one of the operator's exceptions."""
        inner = _unmapped(address)
        if isinstance(inner, ipaddress.IPv6Address):
            if inner.scope_id is not None:
                raise _refused()
            if inner in NAT64:
                inner = ipaddress.IPv4Address(int(inner) & 0xFFFFFFFF)
        if any(inner in network for network in self._policy.allowed_networks):
            return
        is_public = isinstance(inner, ipaddress.IPv4Address) or inner in GLOBAL_IPV6
        if scheme != "https" or not is_public or any(inner in network for network in FORBIDDEN_NETWORKS):
            raise _refused()


def _literal(host: str) -> Address | None:
    """Return the address that a host spells, also in the ways that only the C library reads: 2130706433, 0x7f.1."""
    try:
        return ipaddress.ip_address(host.removesuffix("."))
    except ValueError:
        pass
    if ":" in host:  # of IPv6 there is one way, and it was not that
        raise UrlRefusedError("The URL names no host that can exist.")
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.removesuffix(".")))
    except OSError:
        return None


def _unmapped(address: Address) -> Address:
    """Return the IPv4 address that is meant by ::ffff:a.b.c.d; a socket of IPv6 would reach it."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _port(url: httpx.URL) -> int:
    return _DEFAULT_PORTS[url.scheme] if url.port is None else url.port


def _origin(url: httpx.URL) -> tuple[str, bytes, int]:
    return url.scheme, url.raw_host, _port(url)


def _refused() -> UrlRefusedError:
    # It says neither which address nor why: nobody learns from it how the network inside looks.
    return UrlRefusedError(
        "The host of the URL is not in the public Internet, or not reachable from here by this scheme."
    )


def _is_certificate_fault(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _body(response: httpx.Response, max_bytes: int, is_cut: bool) -> bytes:
    parts, left = [], max_bytes
    if is_cut and not left:  # nobody waits for what is not wanted
        return b""
    async for part in response.aiter_raw():
        if len(part) > left:
            if not is_cut:
                raise UrlFailedError(f"The URL answers with more than {max_bytes} bytes.")
            parts.append(part[:left])
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _system_resolver() -> Resolve:
    threads = ThreadPoolExecutor(NUM_RESOLVING, thread_name_prefix="resolver")

    def look_up(host: str, port: int) -> list[str]:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(threads, look_up, host, port)

    return resolve
