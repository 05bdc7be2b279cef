"""The client as others install it: alone, from its own folder."""

import ast
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parents[1]


def test_the_client_installs_alone_and_needs_httpx_only(tmp_path: Path) -> None:
    copy, site = tmp_path / "python", tmp_path / "site"  # pip builds in the folder that it is given
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--no-compile", "--target", site, copy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = distributions(path=[str(site)])
    said = [found.metadata[name] for name in ("Name", "License-Expression", "Requires-Python")]
    assert said == ["vitascope-client", "Apache-2.0", ">=3.11"]
    assert found.requires == ["httpx"]
    assert found.version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert found.read_text("licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    ours = {path.relative_to(FOLDER) for path in (FOLDER / "vitascope_client").rglob("*.py")}
    here = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    assert here >= {*ours, Path("vitascope_client/py.typed")}
    assert {path.parts[0] for path in here} == {"vitascope_client", f"vitascope_client-{found.version}.dist-info"}


def test_nothing_else_is_imported() -> None:
    imported = set()
    for path in (FOLDER / "vitascope_client").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"httpx", "vitascope_client"}
