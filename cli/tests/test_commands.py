"""The commands against a server on loopback that speaks the public API: what they print, save and exit with."""

import io
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
from rich.console import Console
from typer.testing import CliRunner

from vitascope_cli import queue_view
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
    "model": "vita-mini-6",
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
POOL: dict[str, Any] = {
    "pool": "default",
    "is_draining": True,
    "num_waiting": 3,
    "num_in_flight": 1,
    "backlog_s": 30.5,
    "virtual_time": 2.5,
    "classes": [
        {
            "class_name": "standard",
            "weight": 4.0,
            "virtual_time": 1.25,
            "start_tag": 2.5,
            "num_waiting": 3,
            "num_in_flight": 1,
            "backlog_s": 30.5,
            "served_s": 12.0,
            "entitled_s": 9.5,
            "flows": [
                {
                    "tenant_id": "[bold]acme",
                    "weight": 2.0,
                    "cap": 4,
                    "start_tag": 1.5,
                    "num_waiting": 3,
                    "num_in_flight": 1,
                    "backlog_s": 30.5,
                    "served_s": 12.0,
                    "entitled_s": 9.5,
                }
            ],
        }
    ],
    "workers": [
        {
            "worker_id": "gpu-worker-1",
            "device": "cpu",
            "group_size": 2,
            "num_slots": 4,
            "num_free_slots": 3,
            "warm_models": ["vita-mini-6"],
            "expires_in_ms": 9000,
            "is_draining": True,
            "task_ids": ["video_1.generate.0"],
        }
    ],
    "leases": [
        {
            "task_id": "video_1.generate.0",
            "tenant_id": "acme",
            "class_name": "standard",
            "worker_id": "gpu-worker-1",
            "state": "handed_over",
            "expires_in_ms": 8000,
            "charged_s": 10.0,
            "attempt": 2,
        }
    ],
}
EVENTS = [
    ("1000-0", "queued", {}),
    ("", "queued", {"position": 2, "eta_s": 40.0}),
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
            model = {"id": "vita-mini-6", "title": "Vita mini 6", "sizes": ["64x64"], "seconds": ["2", "4"]}
            return self.send_json(200, {"object": "list", "data": [{**model, "defaults": {"num_inference_steps": 24}}]})
        if path.endswith("/events"):
            return self.send_events(path)
        if path.endswith("/content"):
            return self.send_bytes(200, b"RIFF" if "thumbnail" in self.path else b"....ftyp")
        if path in ("/v1/videos/video_2", "/v1/videos/video_2/cancel"):
            return self.send_json(200, CANCELLED)
        if (self.command, path) == ("POST", "/v1/videos/video_2/retry"):
            return self.send_json(202, {**VIDEO, "status": "queued", "retry_of": "video_2"})
        if path.endswith("/retry"):
            return self.refuse(409, "not_finished", "This video is still being made.")
        if path == "/admin/v1/queue":
            pools = [POOL, {**POOL, "pool": "postproc", "workers": [], "leases": [], "is_draining": False}]
            return self.send_json(200, {"object": "queue", "pools": pools})
        if path == "/admin/v1/queue/drain":
            return self.send_json(200, {**body, "object": "queue.drain", "num_workers": 1})
        if path == "/v1/videos/video_1":
            return self.send_json(200, VIDEO)
        return self.refuse(404, "not_found", "There is no such video.")

    def send_events(self, path: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        is_endless = "video_hangs" in path
        for event_id, kind, data in EVENTS[:3] if is_endless else EVENTS:
            self.wfile.write(f"id: {event_id}\n".encode() if event_id else b"")
            self.wfile.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())
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
        (["generate", "a ball", "--image", "no-such.png"], 2, "'no-such.png' does not exist"),
        (["generate", "a ball", "--last-image", __file__], 2, "needs --image"),
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
    found = run("models", "--base-url", data_dir.read_state()["base_url"], "--data-dir", str(data_dir.path))
    found = found.stdout.splitlines()
    assert found[1].split() == ["vita-mini-6", "Vita", "mini", "6", "64x64", "2,", "4", "24"]
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
    damaged = tmp_path / "models" / "vita-mini-6"
    damaged.mkdir(parents=True)
    for source in (default_models_dir() / "vita-mini-6").iterdir():
        (damaged / source.name).write_bytes(
            source.read_bytes()[:-1] + b"?" if source.name == "vae.safetensors" else source.read_bytes()
        )
    finding = check_models(tmp_path / "models")
    assert (finding.verdict, "vae.safetensors" in finding.found) == (Verdict.PROBLEM, True)


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


def test_generate_sends_solver_and_temporal_attention(
    run: Run, data_dir: DataDir, api: type[Api], tmp_path: Path
) -> None:
    options = ["--solver", "heun", "--temporal-attention", "window", "-o", str(tmp_path / "x.mp4")]
    done = run("generate", "a ball", *options, "--data-dir", str(data_dir.path))
    assert done.returncode == 0, done.stderr
    assert api.seen[0][2] == {"prompt": "a ball", "solver": "heun", "temporal_attention": "window"}


def test_generate_says_how_the_job_waits_and_shows_where(
    run: Run, data_dir: DataDir, api: type[Api], tmp_path: Path
) -> None:
    options = ["--priority", "-5", "--class", "batch", "--deadline", "90.5", "-o", str(tmp_path / "x.mp4")]
    done = run("generate", "a ball", *options, "--data-dir", str(data_dir.path))
    assert done.returncode == 0, done.stderr
    assert api.seen[0][2] == {"prompt": "a ball", "priority": -5, "service_class": "batch", "deadline_s": 90.5}
    lines = [line.strip() for line in done.stderr.splitlines()]
    assert lines[:3] == [
        "waiting in the queue",
        "waiting in the queue, 2 before it, finished in about 40 s",
        "loading the model",
    ]


def test_generate_sends_the_pictures_that_it_is_given(
    run: Run, data_dir: DataDir, api: type[Api], tmp_path: Path
) -> None:
    first, last = tmp_path / "first.png", tmp_path / "last.jpg"
    first.write_bytes(b"one")
    last.write_bytes(b"two")
    options = ["--image", str(first), "--last-image", str(last), "-o", str(tmp_path / "x.mp4")]
    done = run("generate", "a ball", *options, "--data-dir", str(data_dir.path))
    assert done.returncode == 0, done.stderr
    assert api.seen[0][2] == {
        "prompt": "a ball",
        "input_reference": "data:image/png;base64,b25l",
        "last_frame": "data:image/jpeg;base64,dHdv",
    }


def test_a_retry_prints_the_new_id_and_follows_on_request(
    run: Run, data_dir: DataDir, api: type[Api], tmp_path: Path
) -> None:
    where = ["--data-dir", str(data_dir.path)]
    done = run("jobs", "retry", "video_2", *where)
    assert (done.returncode, done.stdout) == (0, "video_1\n")
    assert api.seen == [("POST", "/v1/videos/video_2/retry", None)]
    done = run("jobs", "retry", "video_2", "--follow", "-o", str(tmp_path / "x.mp4"), *where)
    assert (done.returncode, done.stdout) == (0, "video_1\n")
    assert (tmp_path / "x.mp4").read_bytes() == b"....ftyp"
    done = run("jobs", "retry", "video_1", *where)
    assert done.returncode == 4
    assert done.stderr == "vitascope: error [not_finished]: This video is still being made.\n"


def test_the_queue_shows_shares_workers_and_leases(run: Run, data_dir: DataDir) -> None:
    done = run("queue", "--data-dir", str(data_dir.path))
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "Pool default: 3 waiting (30.5 GPU-s), 1 in flight, virtual time 2.50 draining"
    assert "standard V 1.25 4 3 1 30.5 GPU-s 12.0 GPU-s 9.5 GPU-s 2.50" in lines
    assert "[bold]acme 2 3 1 of 4 30.5 GPU-s 12.0 GPU-s 9.5 GPU-s 1.50" in lines
    assert "gpu-worker-1 cpu x 2 3 of 4 vita-mini-6 9.0 s draining" in lines
    assert "video_1.generate.0 acme, standard gpu-worker-1 handed over 2 10.0 8.0 s" in lines
    assert any(line.startswith("Pool postproc: ") for line in lines)


def test_the_queue_as_json_is_what_the_api_says(run: Run, data_dir: DataDir, api: type[Api]) -> None:
    done = run("queue", "--json", "--pool", "default", "--data-dir", str(data_dir.path))
    assert json.loads(done.stdout)[0] == POOL
    assert api.seen == [("GET", "/admin/v1/queue?pool=default", None)]


@pytest.mark.parametrize(
    ("arguments", "sent", "said"),
    [
        (
            [],
            {"pool": "default", "worker_id": None, "is_draining": True},
            "Pool default gets no more work; it concerns 1",
        ),
        (["--undo"], {"pool": "default", "worker_id": None, "is_draining": False}, "Pool default gets work again"),
        (["--pool", "p"], {"pool": "p", "worker_id": None, "is_draining": True}, "Pool p gets no more work"),
        (
            ["--worker", "gpu-worker-1"],
            {"pool": "default", "worker_id": "gpu-worker-1", "is_draining": True},
            "Worker gpu-worker-1 of pool default gets no more work",
        ),
    ],
)
def test_a_drain_finds_its_pool_and_says_what_it_did(
    run: Run, data_dir: DataDir, api: type[Api], arguments: list[str], sent: dict[str, Any], said: str
) -> None:
    done = run("queue", "drain", *arguments, "--data-dir", str(data_dir.path))
    assert done.returncode == 0, done.stderr
    assert api.seen[-1] == ("POST", "/admin/v1/queue/drain", sent)
    assert said in done.stderr


def test_a_drain_of_a_worker_that_is_not_there_changes_nothing(run: Run, data_dir: DataDir, api: type[Api]) -> None:
    done = run("queue", "drain", "--worker", "nobody", "--data-dir", str(data_dir.path))
    assert done.returncode == 1
    assert "No pool has a worker nobody; name it with --pool (default, postproc)." in done.stderr
    assert [method for method, _, _ in api.seen] == ["GET"]


@pytest.mark.parametrize(("group", "command"), [("queue", ["drain"]), ("jobs", ["retry", "video_2"])])
def test_an_option_before_the_command_that_would_not_see_it_is_refused(
    run: Run, data_dir: DataDir, api: type[Api], group: str, command: list[str]
) -> None:
    done = run(group, "--data-dir", str(data_dir.path), *command)
    assert done.returncode == 2
    assert "--data-dir comes after" in " ".join(done.stderr.split())
    assert api.seen == []


def test_watching_the_queue_shows_it_again_until_it_is_interrupted(data_dir: DataDir, api: type[Api]) -> None:
    command = [sys.executable, "-m", "vitascope_cli", "queue", "--watch", "--json", "--data-dir", str(data_dir.path)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout
        assert [json.loads(process.stdout.readline())[0]["pool"] for _ in range(2)] == ["default"] * 2
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_a_terminal_shows_the_queue_again_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[POOL], [{**POOL, "num_waiting": 2}]])

    def read() -> list[dict[str, Any]]:
        pools = next(answers, None)
        if pools is None:
            raise KeyboardInterrupt
        return pools

    monkeypatch.setattr(queue_view, "REFRESH_S", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=30)
    with pytest.raises(KeyboardInterrupt):
        queue_view.show(read, console, is_json=False, is_watching=True)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.index("3 waiting") < shown.index("2 waiting")


def test_what_the_api_does_not_list_is_counted() -> None:
    console = Console(file=io.StringIO(), width=120)
    (class_,) = POOL["classes"]
    long = {**POOL, "num_in_flight": 1001, "classes": [{**class_, "num_waiting": 1503}]}
    console.print(queue_view.render([long]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "… 1000 more in flight" in shown
    assert "… 1500 more waiting" in shown
    console.file = io.StringIO()
    console.print(queue_view.render([POOL]))
    assert "more" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_empty_queue_says_so() -> None:
    console = Console(file=io.StringIO())
    console.print(queue_view.render([]))
    assert "no pools yet" in console.file.getvalue()  # type: ignore[attr-defined]
