"""Both clients, used in one way: what a test says of one must hold for the other."""

import asyncio
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from vitascope_client import AsyncVitascope, Vitascope, _runtime


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Remember how long the client would have waited, and do not."""
    waited: list[float] = []

    async def async_sleep(seconds: float) -> None:
        waited.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(_runtime, "sleep", waited.append)
    monkeypatch.setattr(_runtime, "async_sleep", async_sleep)
    return waited


class Server:
    """Answers in turn with what it was given; the last answer stays."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(request)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


class Driven:
    """Something asynchronous, used as if it were not."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, {"close": "aclose"}.get(name, name))
        if name in ("videos", "admin"):
            return Driven(found, self._runner)
        return functools.partial(self._call, found) if callable(found) else found

    def _call(self, method: Any, *args: Any, **options: Any) -> Any:
        answer = method(*args, **options)
        if inspect.isawaitable(answer):
            return self._runner.run(self._wait(answer))
        return Driven(answer, self._runner) if hasattr(answer, "__anext__") else answer

    async def _wait(self, answer: Any) -> Any:
        return await answer

    def __enter__(self) -> "Driven":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> "Driven":
        return self

    def __next__(self) -> Any:
        try:
            return self._runner.run(self._wait(anext(self._target)))
        except StopAsyncIteration:
            raise StopIteration from None


class Clients:
    """Makes clients of one kind."""

    def __init__(self, kind: type[Vitascope] | type[AsyncVitascope], runner: asyncio.Runner) -> None:
        self._kind = kind
        self._runner = runner
        self._opened: list[Any] = []

    def __call__(self, *answers: Any, **options: Any) -> tuple[Any, Server]:
        """Return a client, and the server that gives it these answers."""
        server = Server(*answers)
        options = {"base_url": "http://gateway.test", "api_key": "vs_key"} | options
        return self.open(transport=httpx.MockTransport(server), **options), server

    def open(self, **options: Any) -> Any:
        """Return a client."""
        client: Any = self._kind(**options)
        self._opened.append(client if self._kind is Vitascope else Driven(client, self._runner))
        return self._opened[-1]

    def close(self) -> None:
        for client in self._opened:
            client.close()


@pytest.fixture(params=[Vitascope, AsyncVitascope], ids=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Iterator[Clients]:
    """Make clients of either kind."""
    with asyncio.Runner() as runner:
        clients = Clients(request.param, runner)
        yield clients
        clients.close()
