"""Models are pulled from real folders and a real S3 server, by processes that are killed on the way."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
import uuid

import boto3
import pytest
import yaml
from pydantic import SecretStr

from vitascope_common.errors import (
    ConfigurationError,
    ConflictError,
    CorruptObjectError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from vitascope_common.registry import Registry
from vitascope_common.registry_cards import load_card
from vitascope_common.registry_files import CheckRecord, FileState, verify
from vitascope_common.registry_pull import open_source, pull
from vitascope_common.testing import free_port

KEY = SecretStr("test")
SMALL, LARGE = b"words\n" * 10, os.urandom(5 << 20)
WEIGHTS = {"words.txt": SMALL, "weights/net.safetensors": LARGE}


def described(model_id="shapes-1", weights=WEIGHTS, **changes):
    files = {
        f"file-{number}": {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        for number, (path, data) in enumerate(weights.items())
    }
    return {
        "id": model_id,
        "kind": "classifier",
        "engine": "native",
        "title": "Shapes",
        "description": "For tests.",
        "licence": "Apache-2.0",
        "created": 1_790_000_000,
        "architecture": {},
        "files": files,
        "preprocessing": {"num_frames": 4, "size": "64x64", "mean": [0, 0, 0], "std": [1, 1, 1]},
        "classes": {"shape": ["circle", "square"]},
        **changes,
    }


def write(folder, card, weights=WEIGHTS):
    for path, data in {**weights, "card.yaml": yaml.safe_dump(card).encode()}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


class Watch:
    """Remembers what it was told."""

    def __init__(self):
        self.waited = threading.Event()
        self.begun = []
        self.done_bytes = 0

    def waits(self, model_id):
        self.waited.set()

    def begins(self, phase, done_bytes, total_bytes):
        self.begun.append((phase, done_bytes, total_bytes))
        self.done_bytes = done_bytes

    def moves(self, done_bytes):
        self.done_bytes = done_bytes


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory):
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    endpoint = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 100  # it imports for a while on a busy machine
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


@pytest.fixture(params=["folder", "s3"])
def publish(request, tmp_path):
    """Return a function that puts a folder where models are pulled from, and says where that is."""

    def to_folder(folder):
        return [str(shutil.copytree(folder, tmp_path / f"source-{uuid.uuid4()}"))]

    def to_s3(folder):
        endpoint = request.getfixturevalue("s3_endpoint")
        bucket = f"b-{uuid.uuid4()}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket=bucket)
        for path in folder.rglob("*"):
            if path.is_file():
                client.put_object(Bucket=bucket, Key=f"my/models/{path.relative_to(folder)}", Body=path.read_bytes())
        return [f"s3://{bucket}/my/models", f"s3://other/objects?endpoint={endpoint}&region=us-east-1", KEY, KEY]

    return to_folder if request.param == "folder" else to_s3


def here(models_dir, model_id="shapes-1"):
    folder = models_dir / model_id
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pulled_model_is_the_one_of_the_source_and_nothing_else_is_left(tmp_path, publish):
    where = publish(write(tmp_path / "one", described()))
    models_dir, watch = tmp_path / "models", Watch()
    pulled = pull(open_source(*where), None, models_dir, watch)
    assert here(models_dir) == {**WEIGHTS, "card.yaml": (tmp_path / "one/card.yaml").read_bytes()}
    assert [path.name for path in models_dir.iterdir()] == ["shapes-1"]
    assert (pulled.card.id, pulled.folder, pulled.num_bytes) == (
        "shapes-1",
        models_dir / "shapes-1",
        pulled.card.num_bytes,
    )
    assert watch.begun == [("pulling", 0, pulled.card.num_bytes)]
    assert watch.done_bytes == pulled.card.num_bytes

    again = Watch()
    assert pull(open_source(*where), "shapes-1", models_dir, again).num_bytes == 0
    assert [phase for phase, _, _ in again.begun] == ["checking"]
    assert [path.name for path in models_dir.iterdir()] == ["shapes-1"]


def test_of_several_models_one_is_named(tmp_path, publish):
    for model_id in ("shapes-1", "shapes-2"):
        write(tmp_path / "many" / model_id, described(model_id))
    source = open_source(*publish(tmp_path / "many"))
    with pytest.raises(InvalidRequestError, match="several models; name one of shapes-1, shapes-2"):
        pull(source, None, tmp_path / "models", Watch())
    for wrong in ("shapes-3", "../many/shapes-1", ""):
        with pytest.raises(NotFoundError, match="it has shapes-1, shapes-2"):
            pull(source, wrong, tmp_path / "models", Watch())
    assert not (tmp_path / "models").exists()
    assert pull(source, "shapes-2", tmp_path / "models", Watch()).card.id == "shapes-2"
    assert [card.id for card in Registry(tmp_path / "models").classifiers()] == ["shapes-2"]


DYING = """
import os, signal, sys
from pathlib import Path
from pydantic import SecretStr
from vitascope_common.registry_pull import open_source, pull

class Killed:
    def waits(self, model_id): ...
    def begins(self, phase, done_bytes, total_bytes): ...
    def moves(self, done_bytes):
        if done_bytes > 2 << 20:
            os.kill(os.getpid(), signal.SIGKILL)

models_dir, where, *keys = sys.argv[1:]
usual, *keys = keys or [None]
pull(open_source(where, usual, *map(SecretStr, keys)), None, Path(models_dir), Killed())
"""


def kill_half_way(models_dir, where):
    arguments = [one.get_secret_value() if isinstance(one, SecretStr) else one for one in where]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(DYING), str(models_dir), *arguments]
    assert subprocess.run(command, env=environ, check=False).returncode == -signal.SIGKILL
    (part,) = (models_dir / ".pull/shapes-1").glob("*.part")
    return part


def test_a_pull_that_was_killed_goes_on_where_it_was_and_its_model_was_never_seen(tmp_path, publish):
    where, models_dir = publish(write(tmp_path / "one", described())), tmp_path / "models"
    part = kill_half_way(models_dir, where)
    brought = part.stat().st_size
    assert 0 < brought < len(LARGE)
    assert Registry(models_dir).entries() == {}

    starts, source = [], open_source(*where)
    read = source.read
    source.read = lambda key, start: starts.append((key, start)) or read(key, start)
    watch = Watch()
    pull(source, None, models_dir, watch)  # its lock has gone with the process
    assert not watch.waited.is_set()
    assert starts[1:] == [("weights/net.safetensors", brought)]
    assert watch.begun[-1] == ("pulling", brought, len(LARGE))
    assert here(models_dir)["weights/net.safetensors"] == LARGE
    assert [path.name for path in models_dir.iterdir()] == ["shapes-1"]


@pytest.mark.parametrize("damage", ["other bytes", "too long"])
def test_a_wrong_part_is_thrown_away_and_begun_anew(tmp_path, publish, damage):
    where, models_dir = publish(write(tmp_path / "one", described())), tmp_path / "models"
    part = kill_half_way(models_dir, where)
    part.write_bytes(b"?" * (1000 if damage == "other bytes" else len(LARGE) + 1))
    watch = Watch()
    pull(open_source(*where), None, models_dir, watch)
    assert here(models_dir)["weights/net.safetensors"] == LARGE
    assert watch.done_bytes == watch.begun[-1][2]


def test_a_part_of_an_older_version_is_never_continued(tmp_path):
    models_dir = tmp_path / "models"
    kill_half_way(models_dir, [str(write(tmp_path / "one", described()))])
    newer = {**WEIGHTS, "weights/net.safetensors": LARGE[::-1]}
    pull(open_source(str(write(tmp_path / "two", described(weights=newer), newer))), None, models_dir, Watch())
    assert here(models_dir)["weights/net.safetensors"] == LARGE[::-1]
    assert [path.name for path in models_dir.iterdir()] == ["shapes-1"]


@pytest.mark.parametrize("damage", [LARGE[::-1], LARGE[:-1], None])
def test_a_damaged_source_is_named_and_its_model_does_not_appear(tmp_path, publish, damage):
    folder = write(tmp_path / "one", described())
    path = folder / "weights/net.safetensors"
    path.unlink() if damage is None else path.write_bytes(damage)
    source = open_source(*publish(folder))
    for _ in range(2):
        with pytest.raises((CorruptObjectError, NotFoundError), match=rf"{source.name}/weights/net\.safetensors is "):
            pull(source, None, tmp_path / "models", Watch())
        assert not (tmp_path / "models/shapes-1/card.yaml").exists()
    assert list((tmp_path / "models").rglob("*.part")) == []
    assert not (tmp_path / "models/.pull").exists()


def test_a_connection_that_breaks_off_is_taken_up_again(tmp_path):
    source = open_source(str(write(tmp_path / "one", described())))
    read = source.read

    def flaky(key, start):
        for number, chunk in enumerate(read(key, start)):
            if number == 2:
                raise UnavailableError("The connection broke off.")
            yield chunk

    source.read = flaky
    pull(source, None, tmp_path / "models", Watch())
    assert here(tmp_path / "models")["weights/net.safetensors"] == LARGE

    def dead(key, start):
        if start or key != "card.yaml":
            raise UnavailableError("It is away.")
        return read(key, start)

    source.read = dead
    with pytest.raises(UnavailableError, match="It is away"):
        pull(source, None, tmp_path / "elsewhere", Watch())


def test_of_two_pulls_one_waits_for_the_other_and_has_nothing_to_do(tmp_path):
    where, models_dir = str(write(tmp_path / "one", described())), tmp_path / "models"
    is_under_way, may_go_on = threading.Event(), threading.Event()
    first, second, results = Watch(), Watch(), {}

    def hold(done_bytes):
        is_under_way.set()
        assert may_go_on.wait(30)

    first.moves = hold

    def run(name, watch):
        results[name] = pull(open_source(where), None, models_dir, watch)

    threads = [threading.Thread(target=run, args=args) for args in (("first", first), ("second", second))]
    threads[0].start()
    assert is_under_way.wait(30)
    threads[1].start()
    assert second.waited.wait(30)
    assert not first.waited.is_set()
    assert not (models_dir / "shapes-1/card.yaml").exists()
    may_go_on.set()
    for thread in threads:
        thread.join(30)
    assert (results["first"].num_bytes, results["second"].num_bytes) == (len(LARGE) + len(SMALL), 0)
    assert [path.name for path in models_dir.iterdir()] == ["shapes-1"]


def test_what_does_not_fit_is_not_begun(tmp_path):
    card = described()
    card["files"]["file-1"]["num_bytes"] = num_bytes = shutil.disk_usage(tmp_path).total + (1 << 30)
    folder = write(tmp_path / "one", card)
    os.truncate(folder / "weights/net.safetensors", num_bytes)  # a hole: takes no space
    says = rf"Model shapes-1 needs {num_bytes / 1e9:.1f} GB in .*, which has [0-9.]+ [GM]B free"
    with pytest.raises(UnavailableError, match=says):
        pull(open_source(str(folder)), None, tmp_path / "models", Watch())
    assert not (tmp_path / "models/shapes-1").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_on_the_way_loses_nothing_of_what_was_brought(tmp_path, small_disk):
    source = open_source(str(write(tmp_path / "source", described())))
    filler, models = small_disk / "filler", small_disk / "models"

    class Filling(Watch):
        def begins(self, phase, done_bytes, total_bytes):
            super().begins(phase, done_bytes, total_bytes)
            if phase == "pulling":
                filler.write_bytes(bytes(5 << 20))

    with pytest.raises(UnavailableError, match=r"(?i:no space left)"):
        pull(source, None, models, Filling())
    assert not (models / "shapes-1" / "card.yaml").exists()
    filler.unlink()
    again = Watch()
    pull(source, None, models, again)
    done = {phase: done_bytes for phase, done_bytes, _ in again.begun}
    assert done["pulling"] >= 1 << 20, "it begins anew"
    assert verify(load_card(models / "shapes-1/card.yaml"), models / "shapes-1")[1] == []


def test_a_damaged_model_is_mended_and_only_what_is_wrong_is_brought(tmp_path):
    where, models_dir = str(write(tmp_path / "one", described())), tmp_path / "models"
    pull(open_source(where), None, models_dir, Watch())
    (models_dir / "shapes-1/words.txt").write_bytes(SMALL[::-1])
    assert pull(open_source(where), None, models_dir, Watch()).num_bytes == len(SMALL)
    assert here(models_dir)["words.txt"] == SMALL
    (models_dir / "shapes-1/card.yaml").write_text("id: [")
    pull(open_source(where), None, models_dir, Watch())
    assert Registry(models_dir).classifier("shapes-1").title == "Shapes"


def test_new_words_are_taken_and_other_weights_are_refused(tmp_path):
    models_dir = tmp_path / "models"
    pull(open_source(str(write(tmp_path / "one", described()))), None, models_dir, Watch())
    registry = Registry(models_dir)
    pull(open_source(str(write(tmp_path / "two", described(title="Better words")))), None, models_dir, Watch())
    assert registry.classifier("shapes-1").title == "Better words"
    other = {**WEIGHTS, "words.txt": b"other"}
    with pytest.raises(ConflictError, match="has other weights"):
        pull(open_source(str(write(tmp_path / "three", described(weights=other), other))), None, models_dir, Watch())
    deeper = described(architecture={"net": {"num_layers": 9}})
    with pytest.raises(ConflictError, match="runs in another way"):
        pull(open_source(str(write(tmp_path / "four", deeper))), None, models_dir, Watch())
    assert here(models_dir)["words.txt"] == SMALL
    assert [path.name for path in models_dir.iterdir()] == ["shapes-1"]


def test_a_model_that_arrives_while_a_registry_runs_is_seen_and_fetched(tmp_path):
    models_dir = tmp_path / "models"
    registry = Registry(models_dir)
    assert registry.classifiers() == ()
    pull(open_source(str(write(tmp_path / "one", described()))), None, models_dir, Watch())
    (card,) = registry.classifiers()
    assert (registry.fetch(card) / "weights/net.safetensors").read_bytes() == LARGE


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="There is no folder"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(InvalidRequestError, match="from a folder or from s3://"):
        open_source("https://example.org/model")
    with pytest.raises(ConfigurationError, match="must be file:///folder or s3://"):
        open_source("s3://bucket/x?colour=blue")
    with pytest.raises(NotFoundError, match="There is no model in"):
        pull(open_source(str(tmp_path)), None, tmp_path / "models", Watch())
    with pytest.raises(NotFoundError, match="is the model shapes-1, not 'shapes-2'"):
        pull(open_source(str(write(tmp_path / "one", described()))), "shapes-2", tmp_path / "models", Watch())
    evil = described()
    evil["files"]["file-0"]["path"] = "../../evil"
    with pytest.raises(ConfigurationError, match="must be a path inside"):
        pull(open_source(str(write(tmp_path / "two", evil))), None, tmp_path / "models", Watch())
    moved = write(tmp_path / "many" / "other", described())
    with pytest.raises(ConfigurationError, match="differs from its folder"):
        pull(open_source(str(moved.parent)), "other", tmp_path / "models", Watch())


def test_what_was_verified_is_remembered_until_it_changes(tmp_path):
    folder = write(tmp_path / "shapes-1", described())
    card, record = load_card(folder / "card.yaml"), CheckRecord(tmp_path / "kept/checks.json")
    assert record.state(card, folder) == (FileState.UNCHECKED, "")
    done = []
    looks, problems = verify(card, folder, done.append)
    assert (sum(done), problems) == (card.num_bytes, [])
    record.replace(card, folder, looks)
    assert CheckRecord(tmp_path / "kept/checks.json").state(card, folder) == (FileState.VERIFIED, "")
    (folder / "words.txt").write_bytes(SMALL[::-1])
    assert record.state(card, folder) == (FileState.UNCHECKED, "")
    record.replace(card, folder, looks)  # of before the change
    assert record.state(card, folder) == (FileState.UNCHECKED, "")
    looks, (problem,) = verify(card, folder)
    assert isinstance(problem, CorruptObjectError)
    assert "words.txt is damaged: sha256" in problem.message
    assert list(looks) == [folder / "weights/net.safetensors"]
    (folder / "words.txt").unlink()
    state, problem = record.state(card, folder)
    assert (state, "words.txt is missing" in problem) == (FileState.DAMAGED, True)
    (tmp_path / "kept/checks.json").write_text("[")
    write(folder, described())
    assert record.state(card, folder) == (FileState.UNCHECKED, "")
