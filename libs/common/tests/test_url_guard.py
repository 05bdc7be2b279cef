"""What the guard refuses never leaves this process: an audit hook sees every connection that Python begins."""

import asyncio
import datetime
import ipaddress
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from vitascope_common.errors import UrlFailedError, UrlRefusedError
from vitascope_common.url_guard import UrlGuard, UrlPolicy

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
INSIDE = UrlPolicy(allowed_schemes=("https", "http"), allowed_networks=LOOPBACK)

_connected: list[Any] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        _connected.append(arguments[1])


sys.addaudithook(_watch)


@pytest.fixture
def connected() -> list[Any]:
    """Where this process has begun to connect to since the test began."""
    _connected.clear()
    return _connected


class Names:
    """A resolver: each name has a list of answers, and the last of them for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._answers:
            raise OSError("no such name")
        answers = self._answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Handler(BaseHTTPRequestHandler):
    """Answers by path and remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self.server.answers.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/slow":
            self.server.gone.wait(10)

    def do_POST(self) -> None:
        self.server.posted.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server on loopback."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.posted: list[bytes] = []
        self.gone = threading.Event()
        self.num_connections = 0
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.num_connections += 1
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no error here."""

    def close(self) -> None:
        self.gone.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


async def get(guard: UrlGuard, url: str, **options: Any) -> Any:
    return await guard.request("GET", url, **({"max_bytes": 1000, "timeout_s": 5.0} | options))


FORBIDDEN = {
    "this host": "0.0.0.0",
    "this network": "0.1.2.3",
    "private 10": "10.0.0.1",
    "private 172": "172.31.255.255",
    "private 192": "192.168.1.1",
    "shared with the provider": "100.64.0.1",
    "metadata in shared space": "100.100.100.200",
    "loopback": "127.0.0.1",
    "any loopback": "127.255.0.9",
    "link-local": "169.254.1.1",
    "metadata": "169.254.169.254",
    "metadata in protocol space": "192.0.0.192",
    "host of Azure": "168.63.129.16",
    "documentation 1": "192.0.2.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "benchmarks": "198.18.0.1",
    "relay of 6to4": "192.88.99.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "v6 unspecified": "::",
    "v6 loopback": "::1",
    "v6 link-local": "fe80::1",
    "v6 site-local": "fec0::1",
    "v6 unique local": "fd00:ec2::254",
    "v6 multicast": "ff02::1",
    "v6 documentation": "2001:db8::1",
    "v6 documentation 2": "3fff::1",
    "v6 discard": "100::1",
    "v6 benchmarks": "2001:2::1",
    "v6 orchid": "2001:20::1",
    "v6 segment routing": "5f00::1",
    "v6 not handed out": "4000::1",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped metadata": "::ffff:a9fe:a9fe",
    "translated loopback": "::ffff:0:127.0.0.1",
    "compatible loopback": "::127.0.0.1",
    "compatible public": "::8.8.8.8",
    "NAT64 of private": "64:ff9b::10.0.0.1",
    "NAT64 of metadata": "64:ff9b::169.254.169.254",
    "local NAT64": "64:ff9b:1::8.8.8.8",
    "6to4 of private": "2002:a00:1::",
    "6to4 of public": "2002:808:808::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
}

PUBLIC = {
    "v4": "8.8.8.8",
    "v4 beside a private network": "172.32.0.1",
    "v4 beside shared space": "100.128.0.1",
    "v4 highest": "223.255.255.254",
    "v6": "2606:4700:4700::1111",
    "v6 beside 6to4": "2003::1",
    "v6 of a registry": "2001:4860:4860::8888",
    "mapped public": "::ffff:8.8.8.8",
    "NAT64 of public": "64:ff9b::8.8.8.8",
}


def literal(address: str) -> str:
    return f"https://[{address}]/x" if ":" in address else f"https://{address}/x"


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_a_forbidden_address_is_refused_as_it_is_and_behind_a_name(address: str, connected: list[Any]):
    guard = UrlGuard(resolve=Names(example_test=[[address]]))
    with pytest.raises(UrlRefusedError):
        guard.check(literal(address))
    for url in (literal(address), "https://example.test/x"):
        with pytest.raises(UrlRefusedError) as refused:
            await get(guard, url)
        assert address not in refused.value.message
    assert connected == []


@pytest.mark.parametrize("address", PUBLIC.values(), ids=PUBLIC)
async def test_a_public_address_passes(address: str):
    guard = UrlGuard(resolve=Names(example_test=[[address]]))
    guard.check(literal(address))
    guard.check("https://example.test/x")
    reached: list[Any] = []

    async def dial(*arguments: Any) -> None:
        reached.append(arguments)
        raise OSError

    # The last step only: nothing of a test leaves the machine, whatever network it stands in.
    loop = asyncio.get_running_loop()
    original, loop.sock_connect = loop.sock_connect, dial  # type: ignore[method-assign]
    try:
        for url in (literal(address), "https://example.test/x"):
            with pytest.raises(UrlFailedError, match="cannot be reached"):
                await get(guard, url)
    finally:
        loop.sock_connect = original  # type: ignore[method-assign]
    inner = address.removeprefix("::ffff:")  # a mapped address is dialled as what it means
    assert [ipaddress.ip_address(where[0]) for _, where in reached] == [ipaddress.ip_address(inner)] * 2


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "127。0。0。1",
        "0",
        "0x0a.0.0.1",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::7f00:1]",
        "[::]",
        "[::1]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[2606:4700::1%251]",
        "localhost",
        "localhost.",
        "LOCALHOST",
    ],
)
async def test_no_spelling_of_an_address_inside_reaches_it(host: str, server: Server, connected: list[Any]):
    with pytest.raises((UrlRefusedError, UrlFailedError)):  # the machine may know no localhost with a dot
        await get(UrlGuard(), f"https://{host}:{server.port}/")
    assert (connected, server.num_connections) == ([], 0)
    answer = await get(UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}/")
    assert (answer.status, server.num_connections) == (404, 1)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.test/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with"),
        ("gopher://example.test/", "must begin with"),
        ("ftp://example.test/", "must begin with"),
        ("data:text/plain,x", "must begin with"),
        ("unix:/run/docker.sock", "must begin with"),
        ("//example.test/", "must begin with"),
        ("example.test", "must begin with"),
        ("", "must begin with"),
        ("https://user@example.test/", "user name"),
        ("https://user:secret@example.test/", "user name"),
        ("https://example.test\\@127.0.0.1/", "user name"),
        ("https://example.test:0/", "port"),
        ("https://example.test:22/", "port"),
        ("https://example.test:80/", "port"),
        ("https://example.test:65536/", "port"),
        ("https://example.test:x/", "cannot be read"),
        ("https:///x", "no host"),
        ("https:example.test", "no host"),
        ("https://a b/", "no host"),
        ("https://a%2eb/", "no host"),
        ("https://a..b/", "no host"),
        ("https://-a.test/", "no host"),
        ("https://a_\u00ad.test/", "cannot be read"),
        ("https://①②⑦.⓪.⓪.①/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
        ("https://[v1.x]/", "cannot be read"),
        ("https://example.test/\r\nX: y", "cannot be read"),
        ("https://example.test\t/", "cannot be read"),
        ("https://\ud800.test/", "cannot be read"),
        (f"https://{'a' * 64}.test/", "no host"),
        (f"https://{'a.' * 130}test/", "no host"),
        (f"https://example.test/{'a' * 2048}", "at most 2048"),
        (f"https://example.test/{'a' * 100_000}", "at most 2048"),
    ],
)
async def test_a_url_of_another_form_is_refused(url: str, why: str, connected: list[Any]):
    names = Names(example_test=[["8.8.8.8"]])
    guard = UrlGuard(resolve=names)
    with pytest.raises(UrlRefusedError, match=why):
        guard.check(url)
    with pytest.raises(UrlRefusedError, match=why):
        await get(guard, url)
    assert (names.asked, connected) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "https://example.test",
        "HTTPS://EXAMPLE.TEST:443/a%20b?c=d#e",
        "https://example.test:8443/",
        "https://bücher.test/ä?ö",
        "https://xn--bcher-kva.test/",
        "https://a_b.example.test/",
        "https://0x7f.example.test/",
        f"https://{'a' * 63}.test/",
        f"https://example.test/{'a' * 2000}",
    ],
)
def test_a_url_of_the_usual_form_passes(url: str):
    UrlGuard().check(url)


async def test_one_forbidden_address_among_several_is_enough(connected: list[Any]):
    answers = ["8.8.8.8", "2606:4700:4700::1111", "1.1.1.1", "9.9.9.9", "10.0.0.1"]
    for some in (answers, answers[::-1]):
        with pytest.raises(UrlRefusedError):
            await get(UrlGuard(resolve=Names(example_test=[some])), "https://example.test/")
    assert connected == []


async def test_what_is_dialled_is_what_was_judged(server: Server):
    """Rebinding: whoever asks twice would get another address the second time."""
    server.answers["/"] = (200, {}, b"well")
    policy = UrlPolicy(("http",), (ipaddress.ip_network("127.0.0.1/32"),))
    names = Names(example_test=[["127.0.0.1"], ["127.0.0.2"]])
    guard = UrlGuard(policy, names)
    url = f"http://example.test:{server.port}/"
    assert (await get(guard, url)).content == b"well"
    assert names.asked == ["example.test"]
    assert server.asked[0][1]["host"] == f"example.test:{server.port}"
    with pytest.raises(UrlRefusedError):  # and the next request believes nothing of the last
        await get(guard, url)
    assert server.num_connections == 1


async def test_another_address_is_tried_when_one_does_not_answer(server: Server):
    server.answers["/"] = (200, {}, b"well")
    guard = UrlGuard(INSIDE, Names(example_test=[["127.0.0.9", "127.0.0.1"]]))
    assert (await get(guard, f"http://example.test:{server.port}/")).content == b"well"


async def test_plain_http_reaches_the_operators_networks_only(connected: list[Any]):
    guard = UrlGuard(INSIDE, Names(example_test=[["8.8.8.8"]]))
    for url in ("http://example.test/", "http://8.8.8.8/"):
        with pytest.raises(UrlRefusedError):
            await get(guard, url)
    assert connected == []
    guard.check("https://8.8.8.8/")


async def test_proxies_of_the_environment_are_left_alone(server: Server, monkeypatch: pytest.MonkeyPatch):
    server.answers["/"] = (200, {}, b"well")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await get(UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}/")).content == b"well"


# Redirects


async def test_a_redirect_is_judged_like_the_first_url(server: Server, connected: list[Any]):
    guard = UrlGuard(
        UrlPolicy(("http",), (ipaddress.ip_network("127.0.0.1/32"),)),
        Names(good_test=[["127.0.0.1"]], evil_test=[["127.0.0.2"]]),
    )
    for onward in (
        "http://169.254.169.254/latest",
        f"http://127.0.0.2:{server.port}/",
        f"http://evil.test:{server.port}/",
        f"//evil.test:{server.port}/",
        "file:///etc/passwd",
        f"http://user:pass@good.test:{server.port}/",
        f"gopher://good.test:{server.port}/",
        "http://good.test:25/",
        "http://[::1",
    ):
        server.answers["/"] = (302, {"Location": onward}, b"")
        with pytest.raises((UrlRefusedError, UrlFailedError)):
            await get(guard, f"http://good.test:{server.port}/", follow_redirects=True)
    assert {where[0] for where in connected} == {"127.0.0.1"}
    assert server.num_connections == 9


async def test_a_redirect_is_followed_when_asked_for(server: Server):
    server.answers |= {"/a": (301, {"Location": "/b"}, b"long" * 1000), "/b": (307, {"Location": "?c"}, b"")}
    server.answers["/b?c"] = (200, {}, b"well")
    url = f"http://127.0.0.1:{server.port}/a"
    answer = await get(UrlGuard(INSIDE), url, follow_redirects=True)
    assert (answer.status, answer.content) == (200, b"well")
    assert (await get(UrlGuard(INSIDE), url, max_bytes=4000)).status == 301


async def test_a_post_is_sent_once_and_never_redirected(server: Server):
    server.answers["/"] = (307, {"Location": "/"}, b"")
    guard, url = UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}/"
    answer = await guard.request("POST", url, content=b"event", max_bytes=10, timeout_s=5, follow_redirects=True)
    assert (answer.status, server.posted) == (307, [b"event"])


async def test_redirects_in_a_circle_come_to_an_end(server: Server):
    server.answers["/"] = (302, {"Location": "/"}, b"")
    with pytest.raises(UrlFailedError, match="more than 3 times"):
        await get(UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}/", follow_redirects=True)
    assert server.num_connections == 4


async def test_another_origin_gets_no_secrets(server: Server):
    guard = UrlGuard(INSIDE, Names(a_test=[["127.0.0.1"]], b_test=[["127.0.0.1"]]))
    server.answers |= {"/a": (302, {"Location": "/b"}, b""), "/c": (200, {}, b"")}
    server.answers["/b"] = (302, {"Location": f"http://b.test:{server.port}/c"}, b"")
    secrets = {"Authorization": "Bearer x", "Cookie": "x=y", "X-Api-Key": "z", "Accept": "image/png", "Host": "evil"}
    await get(guard, f"http://a.test:{server.port}/a", headers=secrets, follow_redirects=True)
    first, second, third = (headers for _, headers in server.asked)
    for headers in (first, second):
        assert (headers["authorization"], headers["x-api-key"]) == ("Bearer x", "z")
        assert headers["host"] == f"a.test:{server.port}"
    assert third.keys() == {"host", "accept", "user-agent", "accept-encoding", "connection"}
    assert (third["host"], third["accept"]) == (f"b.test:{server.port}", "image/png")


# Limits


async def test_a_body_ends_at_its_limit(server: Server):
    guard, url = UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}"
    server.answers |= {"/1000": (200, {}, b"x" * 1000), "/1001": (200, {}, b"x" * 1001)}
    assert len((await get(guard, f"{url}/1000")).content) == 1000
    with pytest.raises(UrlFailedError, match="more than 1000 bytes"):
        await get(guard, f"{url}/1001")
    cut = await get(guard, f"{url}/1001", is_cut=True)
    assert (cut.status, len(cut.content)) == (200, 1000)


async def test_nothing_is_decompressed(server: Server):
    server.answers["/"] = (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b bomb")
    answer = await get(UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}/", headers={"Accept-Encoding": "gzip"})
    assert (answer.content, answer.headers["content-encoding"]) == (b"\x1f\x8b bomb", "gzip")
    assert server.asked[0][1]["accept-encoding"] == "identity"


async def test_endless_headers_are_refused(server: Server):
    server.answers["/"] = (200, {f"X-{number}": "x" * 1000 for number in range(150)}, b"")
    with pytest.raises(UrlFailedError, match="broke off"):
        await get(UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}/")


async def test_the_deadline_is_of_all_together(server: Server):
    server.answers["/slow"] = (200, {"Content-Length": "100"}, b"half")
    begun_s = time.monotonic()
    with pytest.raises(UrlFailedError, match=r"within 0\.3 s"):
        await get(UrlGuard(INSIDE), f"http://127.0.0.1:{server.port}/slow", timeout_s=0.3)
    assert time.monotonic() - begun_s < 5

    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(UrlFailedError, match=r"within 0\.3 s"):
        await get(UrlGuard(resolve=never), "https://example.test/", timeout_s=0.3)


async def test_lookups_that_linger_delay_nobody_elses(server: Server, monkeypatch: pytest.MonkeyPatch):
    answered, is_over = [], threading.Event()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if host.startswith("slow"):
            is_over.wait(30)
        answered.append(host)
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr("vitascope_common.url_guard.socket.getaddrinfo", look_up)
    guard, num_slow = UrlGuard(INSIDE), 2 * 7 * 16  # of seven tenants, whose places have been used again meanwhile
    try:
        slow = [get(guard, f"http://slow-{number}.test:{server.port}/", timeout_s=0.3) for number in range(num_slow)]
        failed = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(one) for one in failed} == {UrlFailedError}
        server.answers["/"] = (200, {}, b"well")
        assert (await get(guard, f"http://quick.test:{server.port}/")).content == b"well"
        assert answered == ["quick.test"]
    finally:
        is_over.set()


async def test_what_cannot_be_reached_is_said(server: Server):
    guard = UrlGuard(INSIDE, Names(nowhere_test=[[]], closed_test=[["127.0.0.1"]]))
    for url, why in (
        ("https://unknown.test/", "cannot be found"),
        ("https://nowhere.test/", "no address"),
        (f"https://closed.test:{server.port}/", "cannot be reached"),  # it speaks no TLS
    ):
        with pytest.raises(UrlFailedError, match=why):
            await get(guard, url)


# TLS


class Authority:
    """A certificate authority of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        self._certificate = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(True, 0))
        self.trusted = ssl.create_default_context(
            cadata=self._certificate.public_bytes(serialization.Encoding.PEM).decode()
        )

    def server(self, *names: x509.GeneralName) -> ssl.SSLContext:
        """Return what a server with these names is."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = self._sign(subject, key.public_key(), x509.SubjectAlternativeName(names))
        path = self._folder / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(self, subject: x509.Name, key: Any, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        return builder.add_extension(extension, critical=True).sign(self._key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_the_certificate_is_asked_for_the_name_and_not_for_the_address(authority: Authority):
    server = Server(authority.server(x509.DNSName("good.test")))
    try:
        server.answers["/"] = (200, {}, b"well")
        names = Names(good_test=[["127.0.0.1"]], evil_test=[["127.0.0.1"]])
        guard = UrlGuard(INSIDE, names, authority.trusted)
        assert (await get(guard, f"https://good.test:{server.port}/")).content == b"well"
        for host in ("evil.test", "127.0.0.1"):
            with pytest.raises(UrlFailedError, match="certificate"):
                await get(guard, f"https://{host}:{server.port}/")
        with pytest.raises(UrlFailedError, match="certificate"):  # of an authority that nobody trusts
            await get(UrlGuard(INSIDE, names), f"https://good.test:{server.port}/")
        assert len(server.asked) == 1
    finally:
        server.close()


async def test_a_server_that_wants_a_certificate_of_ours_has_failed(authority: Authority):
    strict = authority.server(x509.DNSName("good.test"))
    strict.verify_mode = ssl.CERT_REQUIRED  # which TLS 1.3 says after the handshake
    server = Server(strict)
    try:
        guard = UrlGuard(INSIDE, Names(good_test=[["127.0.0.1"]]), authority.trusted)
        with pytest.raises(UrlFailedError, match="broke off"):
            await get(guard, f"https://good.test:{server.port}/")
    finally:
        server.close()


async def test_a_certificate_may_name_an_address(authority: Authority):
    server = Server(authority.server(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))))
    try:
        server.answers["/"] = (200, {}, b"well")
        guard = UrlGuard(INSIDE, tls=authority.trusted)
        assert (await get(guard, f"https://127.0.0.1:{server.port}/")).content == b"well"
    finally:
        server.close()


async def test_https_is_never_left_for_http(authority: Authority, server: Server):
    secure = Server(authority.server(x509.DNSName("good.test")))
    try:
        secure.answers["/"] = (302, {"Location": f"http://good.test:{server.port}/"}, b"")
        guard = UrlGuard(INSIDE, Names(good_test=[["127.0.0.1"]]), authority.trusted)
        with pytest.raises(UrlRefusedError, match="from https to http"):
            await get(guard, f"https://good.test:{secure.port}/", follow_redirects=True)
        assert server.num_connections == 0
    finally:
        secure.close()


@given(st.ip_addresses())  # which draws from the special networks more often than from the rest
@settings(max_examples=500, deadline=None)
def test_what_passes_is_global_to_the_standard_library_too(address: ipaddress.IPv4Address | ipaddress.IPv6Address):
    try:
        _GUARD.check(literal(str(address)))
    except UrlRefusedError:
        return
    inner = getattr(address, "ipv4_mapped", None) or address
    if inner in ipaddress.ip_network("64:ff9b::/96"):
        inner = ipaddress.IPv4Address(int(inner) & 0xFFFFFFFF)
    assert (inner.is_global, inner.is_multicast, inner.is_reserved) == (True, False, False)


_GUARD = UrlGuard()
