"""The repository as others receive it: no traces of one machine, every version pinned."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_BYTES = 500_000
FORBIDDEN = {
    "a path of one machine": re.compile("/(?:work|home|Users)/" + r"[A-Za-z0-9_.-]+/|(?<![\w.$}-])/root" + "/"),
    "a folder beside the repository": re.compile(r"\.\./" + "shared"),
    "a merge marker": re.compile(r"^(?:<{7} |>{7} |={7}$)", re.MULTILINE),
    "a test that tests nothing": re.compile(r"\bassert " + "True\\b"),
    "a note to self": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X:)"),
}


def files() -> Iterator[tuple[str, str]]:
    """Yield the text files that are or would be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        for name, text in files()
        for match in FORBIDDEN[what].finditer(text)
    ]
    assert found == []


def test_every_version_is_pinned() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    names = {_canonical(name) for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    needed = {_canonical(re.split(r"[\[<>=!~; ]", one)[0]) for one in wanted} - {"vitascope"}
    assert needed - names == set()
    assert pins["torch"] == "2.13.0"  # spelled so everywhere: another spelling resolves to other builds


def test_what_is_installed_is_what_is_pinned() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {_canonical(name): version for name, version in (line.split("==") for line in lines if line)}
    installed = {_canonical(one.name): one.version.partition("+")[0] for one in distributions()}
    wrong = {name: version for name, version in installed.items() if pins.get(name) != version}
    assert set(wrong) <= {"vitascope", "pip"}, wrong


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
