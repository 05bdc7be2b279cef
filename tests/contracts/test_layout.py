"""Every service folder has the same rooms, and each room's habits are kept."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitascope_common.settings import SERVICES

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README_LINES = 60
NO_ROOM_FOR = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}


def package_of(service: str) -> Path:
    return ROOT / "services" / service / f"vitascope_{service.replace('-', '_')}"


def modules_below(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder), ast.parse(path.read_text(encoding="utf-8"))


def imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reads_environment(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "getenv")
        for node in ast.walk(tree)
    )


def test_the_services_are_the_folders() -> None:
    assert {path.name for path in (ROOT / "services").iterdir() if path.is_dir()} == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_its_rooms(service: str) -> None:
    package = package_of(service)
    missing = [
        name for name in ("__init__.py", "__main__.py", "settings.py", "service.py") if not (package / name).is_file()
    ]
    if not (package / "api.py").is_file() and not (package / "consumer.py").is_file():
        missing.append("api.py or consumer.py")
    if not list((package / "adapters").glob("[!_]*.py")):
        missing.append("adapters/")
    if not list((package.parent / "tests").glob("test_*.py")):
        missing.append("tests/")
    assert not missing, f"services/{service} lacks {', '.join(missing)}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_explains_itself_on_one_screen(service: str) -> None:
    readme = (ROOT / "services" / service / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {service}\n")
    assert len(readme.splitlines()) <= README_LINES
    for word in ("owns", "consumes", "produces|serves"):
        assert re.search(word, readme, re.IGNORECASE), f"services/{service}/README.md does not say what it {word}"
    assert f"vitascope_{service.replace('-', '_')}" in readme, "the README does not say how to run it alone"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_its_extra_and_is_packaged(service: str) -> None:
    extras: dict[str, Any] = PYPROJECT["project"]["optional-dependencies"]
    assert service in extras
    assert re.search(rf"[\[,]{service}[,\]]", extras["all"][0])
    assert f"services/{service}" in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["where"]
    assert f"services/{service}" in PYPROJECT["tool"]["mypy"]["mypy_path"]


@pytest.mark.parametrize("service", SERVICES)
def test_only_main_reads_the_environment(service: str) -> None:
    allowed = {"__main__.py", "testing.py"}
    found = [str(path) for path, tree in modules_below(package_of(service)) if reads_environment(tree)]
    assert set(found) <= allowed


@pytest.mark.parametrize("service", SERVICES)
def test_protobuf_stays_at_the_edges(service: str) -> None:
    """wire.py translates messages; api.py and adapters hold the stubs; nothing further inside sees either."""
    found = [
        str(path)
        for path, tree in modules_below(package_of(service))
        if any(name.startswith("vitascope_proto") for name in imports_of(tree))
        and path.name not in ("wire.py", "api.py", "testing.py")
        and path.parts[0] != "adapters"
    ]
    assert found == []


@pytest.mark.parametrize("service", SERVICES)
def test_only_keys_py_spells_a_key(service: str) -> None:
    kinds = set(re.findall(r'return f"([a-z_]+):', (ROOT / "libs/common/vitascope_common/keys.py").read_text()))
    assert len(kinds) > 10
    spelt = re.compile(rf"^({'|'.join(kinds)}):(\{{|$)")
    found = [
        f"{path}:{node.lineno}"
        for path, tree in modules_below(package_of(service))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and spelt.match(node.value)
    ]
    assert found == []


def test_there_is_no_room_for_leftovers() -> None:
    folders = [ROOT / name for name in ("libs", "services", "cli", "sdk", "trainer")]
    assert [
        str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*.py") if path.name in NO_ROOM_FOR
    ] == []
