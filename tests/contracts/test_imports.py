"""Imports run one way: `.importlinter` says which, import-linter proves it, and would notice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".importlinter"
LINT = "import sys; from importlinter.cli import lint_imports as lint; sys.exit(lint(sys.argv[1], no_cache=True))"
PACKAGES = re.findall(r"^    (vitascope\w*)$", CONFIG.read_text().split("include_external")[0], re.MULTILINE)


def lint(folder: Path, python_path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ if python_path is None else os.environ | {"PYTHONPATH": python_path}
    command = [sys.executable, "-P", "-c", LINT, str(CONFIG)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_imports_keep_the_contracts() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_of_ours_is_looked_at() -> None:
    roots = [ROOT / "libs", ROOT / "services", ROOT / "sdk", ROOT / "cli", ROOT / "trainer"]
    found = {path.parent.name for root in roots for path in root.rglob("vitascope*/__init__.py")}
    assert {name for name in found if "egg-info" not in name} == set(PACKAGES)


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("vitascope_gateway", "vitascope_scheduler", "No service imports another service"),
        ("vitascope_common", "vitascope_gateway", "Imports run one way"),
        ("vitascope_common", "vitascope_models", "Imports run one way"),
        ("vitascope_proto", "vitascope_common", "Imports run one way"),
        ("vitascope_common", "torch", "What all services share needs neither"),
        ("vitascope_common", "fastapi", "What all services share needs neither"),
        ("vitascope_gateway", "torch", "Only gpu-worker, prompt and trainer see torch"),
        ("vitascope_postproc", "vitascope_models", "Only gpu-worker, prompt and trainer see torch"),
        ("vitascope_client", "vitascope_common", "The SDK knows the public API only"),
        ("vitascope_cli", "vitascope_gateway", "The command line imports no service"),
        ("vitascope_trainer", "vitascope_prompt", "The trainer and the services stay apart"),
    ],
)
def test_a_planted_violation_is_noticed(tmp_path: Path, importer: str, imported: str, contract: str) -> None:
    plant(tmp_path)
    (tmp_path / importer / "planted.py").write_text(f"def late():\n    import {imported}\n")
    done = lint(tmp_path, str(tmp_path))
    assert done.returncode == 1
    assert re.search(rf"^{re.escape(contract)}.* BROKEN", done.stdout, re.MULTILINE), done.stdout


def test_empty_packages_break_nothing(tmp_path: Path) -> None:
    plant(tmp_path)
    done = lint(tmp_path, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def plant(folder: Path) -> None:
    for package in PACKAGES:
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
