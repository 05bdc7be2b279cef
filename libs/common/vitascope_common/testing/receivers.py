"""A server that webhooks are sent to: remembers what came, and answers as it is told."""

import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 20.0


@dataclass(frozen=True)
class Received:
    """One request; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Receiver:
    """Answers 200, unless `answers` of the path says something else: one after the other, the last for ever."""

    def __init__(self, url: str) -> None:
        self.base_url = url
        self.answers: dict[str, deque[Answer]] = defaultdict(deque)
        self.held: set[str] = set()
        """Paths that get no answer until `release` is called."""
        self._received: list[Received] = []
        self._changed = threading.Condition()
        self._released = threading.Event()

    def url(self, path: str = "/hook") -> str:
        """Return the URL of a path here."""
        return self.base_url + path

    def answer(self, path: str, *statuses: int, **headers: str) -> None:
        """Have a path answer so, in this order."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = deque(Answer(status, named) for status in statuses)

    def received(self, path: str | None = None) -> list[Received]:
        """Return what has come so far, to one path or to all."""
        with self._changed:
            return [one for one in self._received if path in (None, one.path)]

    def wait(self, number: int, path: str | None = None) -> list[Received]:
        """Return what has come, once it is so many. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._of(path)) >= number, WAIT_S):
                raise TimeoutError(f"{len(self._of(path))} requests came to {path}, not {number}")
            return self._of(path)

    def release(self) -> None:
        """Let the requests that are held have their answers."""
        self._released.set()

    def _of(self, path: str | None) -> list[Received]:
        return [one for one in self._received if path in (None, one.path)]

    def _take(self, request: Received) -> Answer:
        with self._changed:
            self._received.append(request)
            self._changed.notify_all()
            answers = self.answers[request.path]
            answer = answers.popleft() if len(answers) > 1 else answers[0] if answers else Answer()
        if request.path in self.held:
            self._released.wait(WAIT_S)
        return answer


@contextmanager
def webhook_receiver() -> Iterator[Receiver]:
    """Serve on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver._take(Received(self.path, headers, body))
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")
            except OSError:  # the sender did not wait
                self.close_connection = True

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield receiver
        finally:
            receiver.release()
            server.shutdown()
            thread.join()
