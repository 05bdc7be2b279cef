import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from vitascope_common.errors import (
    ConfigurationError,
    ConflictError,
    InvalidRequestError,
    ObjectNotFoundError,
    UnavailableError,
)
from vitascope_common.objectstore import check_key, open_store
from vitascope_common.objectstore_folder import FolderStore


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "objects")


GOOD = [
    "a",
    "a/b.mp4",
    "videos/job_1/2/hls/v0/init.mp4",
    "ä/世界",
    "a b/c",
    "a..b",
    "-",
    "x" * 200,
    "/".join(["ab"] * 341),
]
BAD = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    ".hidden",
    "a/.tmp/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "\ud800",
    "x" * 201,
    "/".join(["ab"] * 342),
    "世" * 67,
]


@pytest.mark.parametrize("key", GOOD)
def test_a_good_key_holds_an_object(store, key):
    store.put_bytes(key, b"data", "text/plain")
    assert store.get_bytes(key) == b"data"
    assert [info.key for info in store.list()] == [key]


@pytest.mark.parametrize("key", BAD)
def test_a_bad_key_is_refused_everywhere(store, tmp_path, key):
    (tmp_path / "file").write_bytes(b"x")
    for use in (
        lambda: store.put_bytes(key, b"", "text/plain"),
        lambda: store.put_file(key, tmp_path / "file", "text/plain"),
        lambda: store.get_bytes(key),
        lambda: store.get_file(key, tmp_path / "out"),
        lambda: store.open_range(key, 0, 1),
        lambda: store.stat(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            use()
        assert caught.value.param == "key"


@given(st.text(st.sampled_from("ab./\\\0 ä~"), max_size=12) | st.text())
def test_no_key_leads_outside(tmp_path_factory, key):
    try:
        check_key(key)
    except InvalidRequestError:
        return
    root = tmp_path_factory.getbasetemp() / "root"
    path = os.path.normpath(root / key)
    assert path == str(root / key)
    assert path.startswith(f"{root}/")


def test_a_crash_while_writing_leaves_no_object_and_its_rest_is_swept(tmp_path):
    root = tmp_path / "objects"
    program = """
import os, pathlib, sys
from vitascope_common.objectstore_folder import FolderStore
store = FolderStore(pathlib.Path(sys.argv[1]))
store.put_bytes("work/whole", b"whole", "text/plain")
def dying():
    yield b"x" * 100_000
    os._exit(9)
store._put("work/half", dying(), "text/plain")
"""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, str(root)], env=environ, check=False)
    assert done.returncode == 9
    (rest,) = (root / ".tmp").iterdir()

    store = FolderStore(root)
    assert [info.key for info in store.list()] == ["work/whole"]
    assert not store.exists("work/half")
    assert rest.exists()  # it may belong to a writer that is alive
    store.put_bytes("work/half", b"now whole", "text/plain")

    yesterday = time.time() - 25 * 3600
    os.utime(rest, (yesterday, yesterday))
    FolderStore(root)
    assert list((root / ".tmp").iterdir()) == []


def test_a_failed_write_leaves_nothing(store, tmp_path):
    def failing():
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(UnavailableError, match="No space left"):
        store._put("a", failing(), "text/plain")
    assert not store.exists("a")
    assert list((tmp_path / "objects/.tmp").iterdir()) == []


def test_without_its_description_an_object_is_still_served(store, tmp_path):
    info = store.put_bytes("a/video.mp4", b"data", "video/x-special")
    assert store.stat("a/video.mp4") == info
    description = tmp_path / "objects/.meta/a/.video.mp4"
    for damage in (b"", b"{", b"[]", b'{"num_bytes": 5}'):
        description.write_bytes(damage)
        found = store.stat("a/video.mp4")
        assert (found.num_bytes, found.media_type, found.sha256) == (4, "video/mp4", None)
        assert store.put_bytes("a/video.mp4", b"data", "video/mp4").num_bytes == 4
        with pytest.raises(ConflictError):
            store.put_bytes("a/video.mp4", b"dato", "video/mp4")


def test_a_description_of_another_file_is_not_believed(store, tmp_path):
    store.put_bytes("a.mp4", b"data", "video/x-special")
    (tmp_path / "objects/a.mp4").write_bytes(b"tampered")
    assert store.stat("a.mp4").sha256 is None


def test_descriptions_never_collide(store):
    keys = ["a", "a.json/b", "b/a", "b/a.json"]
    infos = [store.put_bytes(key, key.encode(), f"text/x-{number}") for number, key in enumerate(keys)]
    assert [store.stat(key) for key in keys] == infos


def test_an_object_cannot_lie_below_another(store):
    store.put_bytes("a/b", b"x", "text/plain")
    with pytest.raises(ConflictError):
        store.put_bytes("a/b/c", b"x", "text/plain")
    with pytest.raises(ConflictError):
        store.put_bytes("a", b"x", "text/plain")
    with pytest.raises(ObjectNotFoundError):
        store.stat("a")
    with pytest.raises(ObjectNotFoundError):
        store.get_bytes("a")
    assert not store.exists("a/b/c")
    store.delete("a/b/c")
    store.delete("a")
    assert store.get_bytes("a/b") == b"x"


def test_deleting_leaves_no_empty_folders(store, tmp_path):
    store.put_bytes("work/job/1/a", b"x", "text/plain")
    store.put_bytes("work/other", b"x", "text/plain")
    assert store.delete_prefix("work/job/") == 1
    left = {str(path.relative_to(tmp_path / "objects")) for path in (tmp_path / "objects").rglob("*")}
    assert left == {".tmp", ".meta", ".meta/work", ".meta/work/.other", "work", "work/other"}


def test_writers_and_deleters_do_not_trip_over_each_other(store):
    failures = []

    def run(number):
        try:
            for _ in range(40):
                store.put_bytes(f"a/b/{number}", b"x", "text/plain")
                assert store.stat(f"a/b/{number}").sha256 is not None
                store.delete(f"a/b/{number}")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_stream_that_is_never_read_can_be_closed(store):
    store.put_bytes("a", b"data", "text/plain")
    stream = store.open_range("a")
    stream.close()
    assert list(stream) == []


def test_a_target_that_cannot_be_written_is_reported(store, tmp_path):
    store.put_bytes("a", b"data", "text/plain")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="Cannot write"):
        store.get_file("a", tmp_path / "file/below")


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a file"])
def test_objects_are_not_missing_when_the_whole_store_is(store, tmp_path, left):
    store.put_bytes("a/b.bin", b"1", "application/octet-stream")
    root = next(path for path in tmp_path.rglob("a") if path.is_dir()).parent
    away = tmp_path / "elsewhere"
    root.rename(away)
    if left == "a file":
        root.touch()
    elif left == "an empty folder":  # where it was mounted
        root.mkdir()
    for call in (
        lambda: store.get_bytes("a/b.bin"),
        lambda: store.stat("a/b.bin"),
        lambda: store.put_bytes("a/c.bin", b"2", "application/octet-stream"),
    ):
        with pytest.raises(UnavailableError):
            call()
    if left == "a file":
        root.unlink()
    elif left == "an empty folder":
        root.rmdir()
    away.rename(root)
    assert store.get_bytes("a/b.bin") == b"1"


def test_a_store_whose_folder_is_gone_says_so(store, tmp_path):
    store.check()
    (tmp_path / "objects/.tmp").rmdir()
    with pytest.raises(UnavailableError):
        store.check()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "objects",
        "/objects",
        "file://",
        "file:///",
        "file://host/x",
        "file:///x?a=1",
        "s3://",
        "s3:///x",
        "ftp://x/y",
        "s3://bucket/x?region=eu&colour=blue",
        "s3://bucket?endpoint=nonsense",
    ],
)
def test_a_url_that_names_no_store_is_refused(url):
    with pytest.raises(ConfigurationError):
        open_store(url)


def test_keys_to_s3_come_in_pairs():
    with pytest.raises(ConfigurationError, match="together"):
        open_store("s3://bucket?endpoint=http://127.0.0.1:1", SecretStr("x"))


def test_a_file_url_names_a_folder(tmp_path):
    open_store(f"file://{tmp_path}/a%20b").put_bytes("x", b"1", "text/plain")
    assert (tmp_path / "a b/x").read_bytes() == b"1"
