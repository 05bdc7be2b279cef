"""`vitascope demo`: start a stack, make one video over the public API, show what happened, stop everything."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from vitascope_cli import jobs, provenance
from vitascope_cli.data_dir import DataDir
from vitascope_cli.progress import duration
from vitascope_cli.stack import GIVEN, current_environment
from vitascope_client import Vitascope
from vitascope_common.errors import InternalError
from vitascope_common.process import dying_with_parent

DEFAULT_PROMPT = "a red ball bouncing on a blue background"
STOP_TIMEOUT_S = 12.0
PHASES: Mapping[str, str] = {
    "queued": "queue",
    "loading": "load",
    "denoising": "denoise",
    "decoding": "decode",
    "postprocessing": "post-process",
}
STATES: Mapping[str, str] = {
    "Trusted": "signed by this stack, unchanged since",
    "Valid": "unchanged since it was signed; the signer is not known",
    "Invalid": "NOT VALID: changed after it was signed",
    "Missing": "NOT SIGNED",
}


def demo(prompt: str, output_dir: Path, models_dir: Path, console: Console) -> int:
    """Make one video with a stack of its own; return the exit status.

    What came of it goes to stdout, what happens meanwhile to `console`.
    """
    signal.signal(signal.SIGTERM, _stop)
    began_s = time.monotonic()
    console.print("Starting the stack: Redis, six services and the webhook sender.", highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="vitascope-demo-") as folder,
        running_stack(Path(folder) / "data", models_dir) as stack,
        Vitascope(base_url=stack["base_url"], api_key=stack["api_key"]) as client,
    ):
        console.print(f"Ready after {duration(time.monotonic() - began_s)}. Asking for: {prompt}", highlight=False)
        followed = jobs.follow(client, client.videos.create(prompt=prompt).id, console)
        if followed.video.status != "completed":
            error = followed.video.error
            console.print(
                f"No video [{error.code}]: {error.message}" if error else "No video.", style="red", markup=False
            )
            return 1
        video, thumbnail = (output_dir / f"{slug(prompt)}{suffix}" for suffix in (".mp4", ".webp"))
        jobs.save(client, followed.video.id, video, thumbnail)
        signed = provenance.check(video, DataDir(Path(stack["data_dir"])).certificates / "root.pem")
        report(Console(), video, thumbnail, followed, signed)
    return 0 if signed.state == "Trusted" else 1


def report(
    console: Console, video: Path, thumbnail: Path, followed: jobs.Followed, signed: provenance.Provenance
) -> None:
    """Print where the files are, how long each phase took and what the C2PA check says."""
    spent = followed.timeline.durations_s
    times = [f"{text} {duration(spent[phase])}" for phase, text in PHASES.items() if phase in spent]
    lines = {
        "video": f"{video} ({video.stat().st_size:,} bytes)",
        "thumbnail": f"{thumbnail} ({thumbnail.stat().st_size:,} bytes)",
        "phases": ", ".join(times),
        "C2PA": f"{signed.state}: {STATES.get(signed.state, '')}",
        "made by": f"{signed.generator}, model {signed.model}",
        "actions": f"{', '.join(signed.actions)} ({signed.source_type.rpartition('/')[2]})",
    }
    console.print()
    for name, text in lines.items():
        console.print(f"  {name:<10} {text}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def slug(prompt: str) -> str:
    """Return a file name for a prompt: its letters and digits, at most 60 characters."""
    return "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:60].strip("-") or "video"


@contextmanager
def running_stack(data_dir: Path, models_dir: Path) -> Iterator[dict[str, Any]]:
    """Run `vitascope up` on any free port and yield what it says of itself; stop it at the end of the block.

    Raises:
        InternalError: it did not start; it has said why on stderr.
    """
    command = [sys.executable, "-m", "vitascope_cli", "up", "--port", "0"]
    command += ["--data-dir", str(data_dir), "--models-dir", str(models_dir)]
    environ = {name: value for name, value in current_environment().items() if name not in GIVEN}
    with subprocess.Popen(
        dying_with_parent(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; we stop it in order
        env=environ,  # all of it is in the folder: nothing stays on a server that the shell happens to name
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise InternalError("the stack did not start; the lines above say why")
            yield dict(json.loads(line))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()


def _stop(signum: int, _: object) -> None:
    """End like any other exit, so that everything that was started is stopped."""
    sys.exit(128 + signum)
