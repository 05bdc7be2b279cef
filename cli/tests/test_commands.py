"""The commands against a server on loopback that speaks the public API: what they print, save and exit with."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from vitascope_cli.__main__ import _short, app, main
from vitascope_cli.data_dir import DataDir
from vitascope_cli.doctor import Verdict, check_disk, check_models, check_port, check_program, check_python, check_stack
from vitascope_cli.stack import default_models_dir

KEY = "vs_test"
VIDEO: dict[str, Any] = {
    "id": "video_1",
    "object": "video",
    "status": "completed",
    "progress": 100,
    "model": "vita-mini-1",
    "prompt": "a red ball\n[bold]bouncing[/bold]",
    "seconds": "4",
    "size": "64x64",
    "error": None,
    "phase": "completed",
}
CANCELLED = {
    **VIDEO,
    "id": "video_2",
    "status": "failed",
    "error": {"code": "cancelled", "message": "It was cancelled."},
}
EVENTS = [
    ("1000-0", "queued", {}),
    ("2000-0", "started", {}),
    ("3000-0", "progress", {"step": 1, "steps": 2, "phase": "denoising"}),
    ("4000-0", "completed", {}),
]


class Api(BaseHTTPRequestHandler):
    """Answers as the gateway does; `video_hangs` never ends."""

    seen: ClassVar[list[tuple[str, str, Any]]]
    follows: ClassVar[threading.Event]
    url: ClassVar[str]

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null"))

    def answer(self, body: Any) -> None:
        path = self.path.partition("?")[0]
        type(self).seen.append((self.command, self.path, body))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.refuse(401, "invalid_api_key", "The API key is missing or not valid.")
        if (self.command, path) == ("POST", "/v1/videos"):
            if body["prompt"] == "refuse me":
                return self.refuse(400, "moderation_blocked", "The request was blocked by the safety check.")
            if body.get("seconds") == "7":
                return self.refuse(400, "invalid_request", "seconds must be one of 2, 4", "seconds")
            one = "video_hangs" if body["prompt"] == "hang" else "video_2" if body["prompt"] == "cancel" else "video_1"
            return self.send_json(202, {**VIDEO, "id": one, "status": "queued"})
        if path == "/v1/videos":
            return self.send_json(200, {"object": "list", "data": [VIDEO, CANCELLED], "has_more": False})
        if path == "/v1/models":
            model = {"id": "vita-mini-1", "title": "Vita mini 1", "sizes": ["64x64"], "seconds": ["2", "4"]}
            return self.send_json(200, {"object": "list", "data": [{**model, "defaults": {"num_inference_steps": 24}}]})
        if path.endswith("/events"):
            return self.send_events(path)
        if path.endswith("/content"):
            return self.send_bytes(200, b"RIFF" if "thumbnail" in self.path else b"....ftyp")
        if path in ("/v1/videos/video_2", "/v1/videos/video_2/cancel"):
            return self.send_json(200, CANCELLED)
        if path == "/v1/videos/video_1":
            return self.send_json(200, VIDEO)
        return self.refuse(404, "not_found", "There is no such video.")

    def send_events(self, path: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        is_endless = "video_hangs" in path
        for event_id, kind, data in EVENTS[:2] if is_endless else EVENTS:
            self.wfile.write(f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()
        if is_endless:
            self.follows.wait(30)

    def refuse(self, status: int, code: str, message: str, param: str | None = None) -> None:
        self.send_json(status, {"error": {"message": message, "type": "x", "param": param, "code": code}})

    def send_json(self, status: int, body: Any) -> None:
        self.send_bytes(status, json.dumps(body).encode())

    def send_bytes(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[type[Api]]:
    class Mine(Api):
        seen: ClassVar[list[tuple[str, str, Any]]] = []
        follows: ClassVar[threading.Event] = threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        Mine.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Mine
        Mine.follows.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def data_dir(tmp_path: Path, api: type[Api]) -> DataDir:
    one = DataDir(tmp_path / "data")
    one.prepare()
    one.write_state({"base_url": api.url, "api_key": KEY})
    return one


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process, as the shell would."""

    def run_it(*arguments: str, env: dict[str, str] | None = None) -> Done:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("VITASCOPE_")]:
                patch.delenv(name)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["vitascope", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run_it


def test_generate_saves_the_video_and_its_thumbnail(
    run: Run, data_dir: DataDir, api: type[Api], tmp_path: Path
) -> None:
    out, thumbnail = tmp_path / "new" / "x.mp4", tmp_path / "x.webp"
    arguments = [
        "a ball",
        "-o",
        str(out),
        "--thumbnail",
        str(thumbnail),
        "--seed",
        "7",
        "--steps",
        "2",
        "--seconds",
        "4",
    ]
    arguments += ["--size", "64x64", "--negative", "stripes", "--data-dir", str(data_dir.path)]
    done = run("generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert (out.read_bytes(), thumbnail.read_bytes()) == (b"....ftyp", b"RIFF")
    assert "denoising, step 1/2" in done.stderr
    assert f"Saved {out}" in done.stderr
    assert api.seen[0][2] == {
        "prompt": "a ball",
        "seed": 7,
        "num_inference_steps": 2,
        "seconds": "4",
        "size": "64x64",
        "negative_prompt": "stripes",
    }


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["generate", "refuse me"], 4, "error [moderation_blocked]: The request was blocked by the safety check."),
        (["generate", "a ball", "--seconds", "7"], 4, "error [invalid_request]: seconds must be one of 2, 4"),
        (["generate", "cancel"], 1, "error [cancelled]: It was cancelled."),
        (["follow", "video_9"], 4, "error [not_found]: There is no such video."),
        (["cancel", "video_9"], 4, "error [not_found]: There is no such video."),
        (["jobs", "--api-key", "vs_wrong"], 4, "error [invalid_api_key]"),
        (["generate"], 2, "Missing argument"),
        (["jobs", "--limit", "0"], 2, "--limit"),
    ],
)
def test_a_failure_is_one_line_with_its_code(
    run: Run, data_dir: DataDir, arguments: list[str], status: int, line: str, tmp_path: Path
) -> None:
    options = ["--output", str(tmp_path / "x.mp4")] if arguments[0] in ("generate", "follow") else []
    done = run(*arguments, *options, "--data-dir", str(data_dir.path))
    assert (done.returncode, done.stdout) == (status, "")
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.mp4").exists()


def test_a_stack_that_is_not_there_is_told(run: Run, tmp_path: Path) -> None:
    none = run("jobs", "--data-dir", str(tmp_path / "nothing"))
    assert none.returncode == 1
    assert "No stack runs on" in none.stderr
    gone = run("models", env={"VITASCOPE_BASE_URL": "http://127.0.0.1:9", "VITASCOPE_API_KEY": KEY})
    assert gone.returncode == 3
    assert "error [unreachable]" in gone.stderr
    keyless = run("models", "--base-url", "http://127.0.0.1:9", "--data-dir", str(tmp_path / "nothing"))
    assert "No API key for http://127.0.0.1:9" in keyless.stderr


def test_the_local_key_is_never_sent_elsewhere(run: Run, data_dir: DataDir, api: type[Api]) -> None:
    done = run("jobs", "--base-url", api.url.replace("127.0.0.1", "localhost"), "--data-dir", str(data_dir.path))
    assert "No API key for" in done.stderr
    assert api.seen == []


def test_ctrl_c_says_how_to_follow_the_job(data_dir: DataDir, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitascope_cli", "generate", "hang", "-o", str(tmp_path / "x.mp4")]
    command += ["--data-dir", str(data_dir.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while "loading the model" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 130
    assert f"The job goes on. To follow it: vitascope follow video_hangs -o {tmp_path / 'x.mp4'}" in rest


def test_tables(run: Run, data_dir: DataDir) -> None:
    listed = run("jobs", "--data-dir", str(data_dir.path))
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["job", "status", "progress", "length", "size", "prompt"]
    assert lines[1].split(maxsplit=7)[:3] == ["video_1", "completed", "100"]
    assert "a red ball [bold]bouncing[/bold]" in lines[1]
    assert lines[2].split()[:2] == ["video_2", "cancelled"]
    found = run("models", "--data-dir", str(data_dir.path)).stdout.splitlines()
    assert found[1].split() == ["vita-mini-1", "Vita", "mini", "1", "64x64", "2,", "4", "24"]
    assert "cancelled" in run("cancel", "video_2", "--data-dir", str(data_dir.path)).stderr


@pytest.mark.parametrize("command", ["up", "demo", "generate", "follow", "jobs", "cancel", "models", "doctor"])
def test_help_reads_like_a_manual(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    if command in ("up", "demo", "generate", "follow"):
        assert "Example" in shown.output
        assert f"vitascope {command}" in shown.output
    assert "Exit status: 0 done" in CliRunner().invoke(app, ["--help"]).output


def test_up_refuses_a_bad_thread_count(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitascope_cli", "up", "--data-dir", str(tmp_path / "d")]
    environ = {**os.environ, "VITASCOPE_GPU_WORKER_NUM_THREADS": "many"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert "VITASCOPE_GPU_WORKER_NUM_THREADS must be a number of threads" in done.stderr


def test_doctor_says_what_to_do(tmp_path: Path, data_dir: DataDir) -> None:
    assert check_python((3, 11, 0)).verdict is Verdict.OK
    assert "3.11 or newer" in check_python((3, 9, 1)).advice
    assert check_program("sh", lambda: "/bin/sh", "-c").verdict is Verdict.PROBLEM
    assert check_program("echo", lambda: "/bin/echo", "hello").found == "hello"
    assert check_disk(tmp_path / "not" / "yet").name == "disk"
    assert check_port(is_up=True).verdict is Verdict.OK
    assert check_models(default_models_dir()).verdict is Verdict.OK
    assert check_models(tmp_path).verdict is Verdict.PROBLEM
    assert check_stack(DataDir(tmp_path / "none")).verdict is Verdict.NOTE
    assert check_stack(data_dir).verdict is Verdict.PROBLEM  # it answers /readyz with 401
    damaged = tmp_path / "models" / "vita-mini-1"
    damaged.mkdir(parents=True)
    for source in (default_models_dir() / "vita-mini-1").iterdir():
        (damaged / source.name).write_bytes(
            source.read_bytes()[:-1] + b"?" if source.suffix == ".txt" else source.read_bytes()
        )
    finding = check_models(tmp_path / "models")
    assert (finding.verdict, "vocabulary.txt" in finding.found) == (Verdict.PROBLEM, True)


def test_doctor_prints_every_finding(run: Run, tmp_path: Path) -> None:
    done = run("doctor", "--data-dir", str(tmp_path / "d"))
    names = [line.split()[1] for line in done.stdout.splitlines() if line.split()[0] in list(Verdict)]
    assert names == ["python", "services", "torch", "ffmpeg", "redis", "cores", "disk", "port", "models", "stack"]


def test_a_folder_as_output_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["generate", "a red ball", "-o", str(tmp_path)])
    assert shown.exit_code == 2
    assert "directory" in shown.output


def test_a_prompt_cannot_speak_to_the_terminal() -> None:
    assert _short("a\x1b[31m red\x07 ball\u202e") == "a [31m red ball"
