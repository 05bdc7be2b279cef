"""The same suite over every object store: a folder, and S3 spoken by a moto server."""

import contextlib
import hashlib
import http.server
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from pydantic import SecretStr

from vitascope_common import objectstore_s3
from vitascope_common.errors import (
    ConflictError,
    CorruptObjectError,
    InvalidRequestError,
    ObjectNotFoundError,
    UnavailableError,
)
from vitascope_common.objectstore import CHUNK_BYTES, ObjectStore, open_store

KEY = SecretStr("test")


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    endpoint = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    try:
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
                break
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"moto did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield endpoint
    finally:
        server.terminate()
        server.wait(10)


def s3_client(endpoint: str):
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )


@pytest.fixture(params=["folder", "s3", "s3 without If-None-Match"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    if request.param == "folder":
        return open_store(f"file://{tmp_path}/objects")
    endpoint = request.getfixturevalue("s3_endpoint")
    bucket = f"b-{uuid.uuid4()}"
    s3_client(endpoint).create_bucket(Bucket=bucket)
    monkeypatch.setattr(objectstore_s3, "MULTIPART_BYTES", 5 * 1024 * 1024)  # the smallest part that S3 allows
    store = open_store(f"s3://{bucket}/pre/fix?endpoint={endpoint}&region=us-east-1", KEY, KEY)
    if request.param != "s3":

        def refuse(params, **_):
            if "If-None-Match" in params["headers"]:
                raise objectstore_s3.botocore.exceptions.ClientError(
                    {"Error": {"Code": "NotImplemented", "Message": ""}}, "PutObject"
                )

        for call in ("PutObject", "CompleteMultipartUpload"):
            store._client.meta.events.register(f"before-call.s3.{call}", refuse)  # type: ignore[attr-defined]
    return store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_is_put_is_got(store: ObjectStore, tmp_path: Path) -> None:
    info = store.put_bytes("videos/j/1/video.mp4", b"data", "video/mp4")
    assert (info.key, info.num_bytes, info.media_type) == ("videos/j/1/video.mp4", 4, "video/mp4")
    assert info.sha256 == sha256(b"data")
    assert abs(info.modified_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert store.stat("videos/j/1/video.mp4") == info
    assert store.get_bytes("videos/j/1/video.mp4") == b"data"
    store.get_file("videos/j/1/video.mp4", tmp_path / "new/folder/out.mp4", sha256=info.sha256)
    assert (tmp_path / "new/folder/out.mp4").read_bytes() == b"data"
    assert store.exists("videos/j/1/video.mp4")


@pytest.mark.parametrize("num_bytes", [0, 1, CHUNK_BYTES, 11 * 1024 * 1024 + 7])
def test_files_of_every_size_arrive_whole(store: ObjectStore, tmp_path: Path, num_bytes: int) -> None:
    data = hashlib.shake_128(b"seed").digest(num_bytes)
    (tmp_path / "in").write_bytes(data)
    for _ in range(2):  # the second time changes nothing
        info = store.put_file("a/file", tmp_path / "in", "application/octet-stream")
        assert (info.num_bytes, info.sha256) == (num_bytes, sha256(data))
    store.get_file("a/file", tmp_path / "out", sha256=sha256(data))
    assert (tmp_path / "out").read_bytes() == data
    assert b"".join(store.open_range("a/file")) == data
    with pytest.raises(ConflictError):
        store.put_bytes("a/file", data + b"x", "text/plain")


def test_keys_and_content_may_be_in_any_language(store: ObjectStore) -> None:
    key = "files/t/Grüße an 世界 +%20&?.txt"
    store.put_bytes(key, b"x", "text/plain; charset=utf-8")
    assert store.stat(key).media_type == "text/plain; charset=utf-8"
    assert [info.key for info in store.list("files/t/Grüße")] == [key]


def test_the_same_content_again_is_fine_and_other_content_is_not(store: ObjectStore, tmp_path: Path) -> None:
    first = store.put_bytes("a", b"one", "text/plain")
    assert store.put_bytes("a", b"one", "text/plain") == first
    (tmp_path / "f").write_bytes(b"two")
    for other in (
        lambda: store.put_bytes("a", b"two", "text/plain"),
        lambda: store.put_bytes("a", b"longer", "text/plain"),
        lambda: store.put_file("a", tmp_path / "f", "text/plain"),
    ):
        with pytest.raises(ConflictError):
            other()
    assert store.get_bytes("a") == b"one"


# Servers without If-None-Match promise less; see objectstore_s3.py.
@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_of_several_writers_one_wins(store: ObjectStore) -> None:
    results: list[str] = []
    barrier = threading.Barrier(4)

    def put(number: int) -> None:
        barrier.wait()
        try:
            store.put_bytes("contested", b"%d" % number, "text/plain")
            results.append(f"{number}")
        except ConflictError:
            results.append("conflict")

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [result for result in results if result != "conflict"]
    assert len(winners) == 1
    assert store.get_bytes("contested").decode() == winners[0]


def test_what_is_not_there_is_said(store: ObjectStore, tmp_path: Path) -> None:
    for use in (
        lambda: store.get_bytes("none"),
        lambda: store.get_file("none", tmp_path / "out"),
        lambda: store.stat("none"),
        lambda: store.open_range("none", 0, 10),
        lambda: store.open_range("none"),
    ):
        with pytest.raises(ObjectNotFoundError):
            use()
    assert not store.exists("none")
    assert list(tmp_path.glob("*out*")) == []
    store.delete("none")
    assert store.delete_prefix("none/") == 0
    with pytest.raises(InvalidRequestError):
        store.put_file("a", tmp_path / "absent", "text/plain")


def test_damage_is_found_and_not_delivered(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("a", b"data", "text/plain")
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(CorruptObjectError) as caught:
        store.get_file("a", tmp_path / "out", sha256="0" * 64)
    assert caught.value.detail == {"key": "a", "expected": "0" * 64, "found": sha256(b"data")}
    assert (tmp_path / "out").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out"]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 1, b"0"), (2, 5, b"234"), (5, None, b"56789"), (0, None, b"0123456789"), (8, 99, b"89"), (9, 10, b"9")],
)
def test_a_range_is_what_was_asked_for(store: ObjectStore, start: int, end: int | None, expected: bytes) -> None:
    store.put_bytes("a", b"0123456789", "text/plain")
    assert b"".join(store.open_range("a", start, end)) == expected


@pytest.mark.parametrize(("start", "end"), [(10, 11), (10, None), (99, None), (3, 3), (5, 2), (-1, 4)])
def test_a_range_outside_is_refused_at_once(store: ObjectStore, start: int, end: int | None) -> None:
    store.put_bytes("a", b"0123456789", "text/plain")
    with pytest.raises(InvalidRequestError) as caught:
        store.open_range("a", start, end)
    assert caught.value.param == "range"


def test_an_empty_object_can_be_read(store: ObjectStore) -> None:
    store.put_bytes("a", b"", "text/plain")
    assert store.get_bytes("a") == b""
    assert list(store.open_range("a")) == []
    assert list(store.open_range("a", 0, 10)) == []


def test_a_stream_comes_in_chunks_and_may_be_left(store: ObjectStore) -> None:
    store.put_bytes("a", b"x" * (3 * CHUNK_BYTES), "text/plain")
    stream = store.open_range("a")
    assert 0 < len(next(stream)) <= CHUNK_BYTES
    stream.close()


def test_a_prefix_lists_in_order_and_deletes_no_neighbour(store: ObjectStore) -> None:
    keys = ["work/j1/a", "work/j1/b/c", "work/j1/b-c", "work/j1/b0", "work/j10/a", "work/ä", "x"]
    for key in keys:
        store.put_bytes(key, b"x", "text/plain")
    assert [info.key for info in store.list()] == sorted(keys)
    assert [info.key for info in store.list("work/j1/b")] == ["work/j1/b-c", "work/j1/b/c", "work/j1/b0"]
    assert [info.key for info in store.list("work/j1")] == sorted(keys)[:5]
    assert [info.num_bytes for info in store.list("x")] == [1]
    assert list(store.list("nothing/here")) == []
    assert store.delete_prefix("work/j1/") == 4
    assert [info.key for info in store.list()] == ["work/j10/a", "work/ä", "x"]
    for unsafe in ("", "work/j1", "/", "../"):
        with pytest.raises(InvalidRequestError):
            store.delete_prefix(unsafe)
    store.delete("x")
    store.delete("x")
    assert not store.exists("x")


def test_after_a_delete_the_key_is_free(store: ObjectStore) -> None:
    store.put_bytes("a", b"one", "text/plain")
    store.delete("a")
    assert store.put_bytes("a", b"two", "text/x-two").media_type == "text/x-two"
    assert store.stat("a").sha256 == sha256(b"two")


def test_a_usable_store_passes_its_check(store: ObjectStore) -> None:
    store.check()
    assert list(store.list()) == []


def test_an_object_from_elsewhere_is_compared_by_content(s3_endpoint: str) -> None:
    client = s3_client(s3_endpoint)
    client.create_bucket(Bucket="elsewhere")
    client.put_object(Bucket="elsewhere", Key="a", Body=b"data")
    store = open_store(f"s3://elsewhere?endpoint={s3_endpoint}", KEY, KEY)
    assert store.put_bytes("a", b"data", "text/plain").sha256 is None
    with pytest.raises(ConflictError):
        store.put_bytes("a", b"dato", "text/plain")


def test_more_than_a_page_of_objects_is_listed(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3_client(s3_endpoint)
    client.create_bucket(Bucket="many")
    keys = [f"a/{number}" for number in range(8)]
    for key in keys:
        client.put_object(Bucket="many", Key=key, Body=b"")
    monkeypatch.setattr(objectstore_s3, "PAGE_KEYS", 3)
    store = open_store(f"s3://many?endpoint={s3_endpoint}", KEY, KEY)
    assert [info.key for info in store.list("a/")] == keys
    assert store.delete_prefix("a/") == 8


def test_a_missing_bucket_is_unavailable(s3_endpoint: str) -> None:
    store = open_store(f"s3://absent?endpoint={s3_endpoint}", KEY, KEY)
    for use in (store.check, lambda: list(store.list()), lambda: store.put_bytes("a", b"", "text/plain")):
        with pytest.raises(UnavailableError):
            use()


def test_a_server_that_is_away_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore_s3, "NUM_ATTEMPTS", 1)
    store = open_store("s3://bucket?endpoint=http://127.0.0.1:1", KEY, KEY)
    for use in (
        store.check,
        lambda: store.get_bytes("a"),
        lambda: store.get_file("a", tmp_path / "out"),
        lambda: store.exists("a"),
    ):
        with pytest.raises(UnavailableError) as caught:
            use()
        assert "127.0.0.1" not in caught.value.message


class Truncating(http.server.BaseHTTPRequestHandler):
    """Promises 1000 bytes, sends 10 and hangs up."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in (
            ("Content-Length", "1000"),
            ("ETag", '"0"'),
            ("Last-Modified", "Fri, 20 Nov 2026 10:00:00 GMT"),
        ):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"0123456789")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_connection_that_breaks_delivers_no_half_object(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Truncating) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        store = open_store(f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}", KEY, KEY)
        for use in (
            lambda: store.get_bytes("a"),
            lambda: list(store.open_range("a")),
            lambda: store.get_file("a", tmp_path / "out"),
        ):
            with pytest.raises(UnavailableError):
                use()
        server.shutdown()
    assert list(tmp_path.iterdir()) == []
