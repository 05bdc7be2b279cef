"""`vitascope models`: what it shows of a models folder, what it finds wrong there, and how it brings more."""

import fcntl
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from vitascope_cli.__main__ import main
from vitascope_cli.data_dir import DataDir
from vitascope_cli.doctor import Verdict, check_models
from vitascope_cli.models import Folder, size, source_of

WEIGHTS = b"w" * 3_000_000
WORDS = b"red\n"
CARD: dict[str, Any] = {
    "id": "tiny-1",
    "kind": "generate",
    "engine": "native",
    "title": "Tiny",
    "description": "For tests.",
    "licence": "Apache-2.0",
    "created": 1_790_000_000,
    "architecture": {"vae": {}, "text_encoder": {}, "dit": {}},
    "capabilities": ["text_to_video", "keyframes"],
    "files": {
        name: {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        for name, data in (("dit.bin", WEIGHTS), ("words.txt", WORDS))
    },
    "sizes": ["64x64", "96x64"],
    "seconds": ["2"],
    "num_frames": {"2": 17},
    "defaults": {
        "size": "64x64",
        "seconds": "2",
        "fps": 8,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "shift": 2.0,
        "solver": "euler",
    },
    "limits": {"num_inference_steps": [1, 100], "guidance_scale": [0, 10], "prompt_max_chars": 500},
    "pool": "default",
    "group_size": 1,
    "cost": {"fixed_s": 0.5, "per_step_frame_s": 0.001},
    "price": {"usd_micros_per_second": 1000},
}

Run = Callable[..., tuple[int, str, str]]


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "dit.bin").write_bytes(WEIGHTS)
    (folder / "words.txt").write_bytes(WORDS)
    (folder / "card.yaml").write_text(yaml.safe_dump({**CARD, **changes}))
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `vitascope models …` on a models folder of its own."""
    for name in [name for name in os.environ if name.startswith("VITASCOPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VITASCOPE_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("VITASCOPE_CLI_DATA_DIR", str(tmp_path / "data"))

    def run_it(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitascope", "models", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run_it


def test_a_list_says_what_each_model_can_do_and_whether_it_was_verified(run: Run, tmp_path: Path) -> None:
    assert run() == (0, "", "There are no models.\n")
    write(tmp_path / "models/tiny-1")
    _, listed, _ = run()
    assert listed.splitlines()[0].split() == [
        "model",
        "kind",
        "capabilities",
        "sizes",
        "seconds",
        "on",
        "disk",
        "state",
    ]
    row = "tiny-1 generate text_to_video, keyframes 64x64, 96x64 2 3.0 MB"
    assert listed.splitlines()[1].split() == f"{row} unchecked".split()
    status, _, said = run("verify")
    assert (status, "tiny-1: 2 files, 3.0 MB, every sha256 is right" in said) == (0, True)
    assert run()[1].splitlines()[1].split() == f"{row} verified".split()
    (shown,) = json.loads(run("--json")[1])
    assert (shown["id"], shown["capabilities"], shown["num_bytes"], shown["state"]) == (
        "tiny-1",
        ["text_to_video", "keyframes"],
        len(WEIGHTS) + len(WORDS),
        "verified",
    )


def test_verify_names_what_is_wrong_and_fails(run: Run, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (write(models / "tiny-1") / "dit.bin").write_bytes(WEIGHTS[:-1] + b"?")
    (write(models / "tiny-2", id="tiny-2") / "words.txt").unlink()
    (write(models / "tiny-3", id="tiny-3") / "card.yaml").write_text("id: [")
    write(models / "tiny-4", id="tiny-4")
    status, out, said = run("verify")
    assert (status, out) == (1, "")
    assert "error [corrupt_object]: Model file" in said
    for problem in ("tiny-1/dit.bin is damaged: sha256", "tiny-2/words.txt is missing", "tiny-3/card.yaml: not valid"):
        assert problem in said
    assert "tiny-4: 2 files, 3.0 MB, every sha256 is right" in said
    assert run("verify", "tiny-4")[0] == 0
    assert run("verify", "tiny-1")[0] == 1
    assert "no model 'tiny-9' in" in run("verify", "tiny-9")[2]
    _, listed, said = run()
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["tiny-1", "tiny-2", "tiny-3", "tiny-4"]
    assert ("damaged: Model file" in listed, "broken: Model card" in listed, said) == (True, True, "")
    assert [row["state"] for row in json.loads(run("--json")[1])] == ["unchecked", "damaged", "broken", "verified"]


def test_verify_names_every_wrong_file_and_goes_on(run: Run, tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder = write(models / "tiny-1")
    (folder / "dit.bin").write_bytes(WEIGHTS[:-1] + b"?")
    (folder / "words.txt").unlink()
    unreadable = write(models / "tiny-2", id="tiny-2") / "words.txt"
    unreadable.unlink()
    unreadable.symlink_to(unreadable)  # no user can open it, root included
    write(models / "tiny-3", id="tiny-3")
    status, _, said = run("verify")
    assert status == 1
    for problem in ("tiny-1/dit.bin is damaged: sha256", "tiny-1/words.txt is missing", "tiny-2/words.txt cannot be"):
        assert problem in said
    assert "tiny-3: 2 files, 3.0 MB, every sha256 is right" in said
    finding = check_models(models)
    assert finding.verdict is Verdict.PROBLEM
    for name in ("dit.bin", "words.txt"):
        assert name in finding.found


def test_a_file_that_was_damaged_unseen_is_not_verified_any_more(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "models/tiny-1") / "words.txt"
    assert run("verify")[0] == 0
    before = path.stat()
    path.write_bytes(WORDS[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "verified" in run()[1]
    assert run("verify")[0] == 1
    assert "unchecked" in run()[1]


def test_the_folder_is_that_of_the_stack_which_runs_here(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITASCOPE_MODELS_DIR")
    write(tmp_path / "of-the-stack/tiny-1")
    data_dir = DataDir(tmp_path / "data")
    data_dir.prepare()
    stack = {"base_url": "http://127.0.0.1:9", "api_key": "vs_x"}
    data_dir.write_state({**stack, "models_dir": str(tmp_path / "of-the-stack")})
    assert [row["id"] for row in json.loads(run("--json")[1])] == ["tiny-1"]
    data_dir.write_state(stack)  # of a stack that does not say
    assert "tiny-1" not in run("--json")[1]


def test_pull_brings_a_model_and_says_so_once_more_when_it_is_here(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    status, out, said = run("pull", str(source))
    assert (status, out) == (0, "tiny-1\n")
    assert "pulling: 0 B of 3.0 MB" in said
    assert "pulling: 3.0 MB of 3.0 MB" in said
    assert f"tiny-1 is in {tmp_path / 'models/tiny-1'}: 2 files, 3.0 MB, 3.0 MB of it new" in said
    assert "verified" in run()[1]
    status, out, said = run("pull", str(source), "tiny-1")
    assert (status, out, "nothing to do" in said) == (0, "tiny-1\n", True)
    status, out, said = run("pull", str(tmp_path / "nowhere"))
    assert (status, out) == (1, "")
    assert "error [not_found]: source: There is no folder" in said


def test_a_terminal_gets_a_bar_with_speed_and_remaining_time(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    folder = Folder(tmp_path / "models", DataDir(tmp_path / "data"))
    folder.pull(source_of(str(write(tmp_path / "source")), {}), None, console)
    assert folder.verify(None, console) == []
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("pulling", "3.0/3.0 MB", "MB/s", "0:00:00", "checking tiny-1", "every sha256 is right"):
        assert text in shown


def test_who_waits_for_another_pull_is_told(tmp_path: Path) -> None:
    class Said(io.StringIO):
        is_told = threading.Event()

        def write(self, text: str) -> int:
            if "Another pull of tiny-1 is under way" in text:
                self.is_told.set()
            return super().write(text)

    said, folder = Said(), Folder(tmp_path / "models", DataDir(tmp_path / "data"))
    lock = tmp_path / "models/.pull/tiny-1/lock"
    lock.parent.mkdir(parents=True)
    source = source_of(str(write(tmp_path / "source")), {})
    waiting = threading.Thread(target=folder.pull, args=(source, None, Console(file=said)))
    with lock.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting.start()
        assert said.is_told.wait(30)
        assert folder.rows() == []
    waiting.join(30)
    assert [row.state for row in folder.rows()] == ["verified"]


def test_a_bucket_is_looked_for_where_the_environment_says() -> None:
    store = {"VITASCOPE_OBJECT_STORE_URL": "s3://x/y?endpoint=http://127.0.0.1:9&region=us-east-1"}
    keys = {"VITASCOPE_S3_ACCESS_KEY": "a", "VITASCOPE_S3_SECRET_KEY": "b"}
    opened: Any = source_of("s3://bucket/models", store | keys)
    assert opened.name == "s3://bucket/models"
    client = opened._store._client
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://127.0.0.1:9", "us-east-1")


def test_doctor_tells_of_a_broken_card(tmp_path: Path) -> None:
    write(tmp_path / "models/tiny-1")
    assert check_models(tmp_path / "models").verdict is Verdict.OK
    (write(tmp_path / "models/tiny-2") / "card.yaml").write_text("id: [")
    finding = check_models(tmp_path / "models")
    assert (finding.verdict, "tiny-2/card.yaml" in finding.found) == (Verdict.PROBLEM, True)


def test_sizes_for_people() -> None:
    assert [size(one) for one in (0, 999, 1320, 22_434_104, 28_100_000_000)] == [
        "0 B",
        "999 B",
        "1.3 kB",
        "22.4 MB",
        "28.1 GB",
    ]
