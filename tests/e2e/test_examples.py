"""The examples do what they say, when they are run as their first line says."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Stack

ROOT = Path(__file__).parents[2]
SAVED = {
    "batch.py": ["video-1.mp4", "video-2.mp4"],
    "generate.py": ["video.mp4"],
    "generate_async.py": ["video-1.mp4", "video-2.mp4"],
    "same_seed.py": [],
}


def test_every_example_is_run() -> None:
    elsewhere = {"watch_grpc.py"}  # test_grpc.py
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*SAVED, *elsewhere}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_an_example_runs(stack: Stack, tmp_path: Path, name: str) -> None:
    first_line = (ROOT / "examples" / name).read_text().partition("\n")[0]
    python, script, *prompts = shlex.split(first_line.removeprefix("# "))
    assert (python, script) == (".venv/bin/python", f"examples/{name}")
    environ = os.environ | {"VITASCOPE_BASE_URL": stack.base_url, "VITASCOPE_API_KEY": stack.api_key}
    command = [sys.executable, ROOT / script, *prompts]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == SAVED[name]
    assert all((tmp_path / saved).read_bytes()[4:8] == b"ftyp" for saved in SAVED[name])
    if name == "same_seed.py":
        (first, second) = (line.split()[1:] for line in done.stdout.splitlines())
        assert first == second
        assert first[0] == "completed"
