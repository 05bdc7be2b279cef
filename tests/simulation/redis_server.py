"""One real redis-server, asked synchronously, whose keys expire by the simulated clock.

Every script is wrapped before it is loaded: its PEXPIRE, EXPIRE and SET PX set no timer in the server but are handed
back with the answer, and the keys are deleted here when the simulated clock says so. Nothing else of a script changes.
"""

import hashlib
import socket
from collections.abc import Callable
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import NoScriptError, ResponseError

from vitascope_common.events import APPEND_EVENT

_BEFORE = """
local sim_notes, sim_server = {}, redis
local redis = {call = function(command, key, ...)
  if command == 'PEXPIRE' or command == 'EXPIRE' then
    sim_notes[#sim_notes + 1] = {command, key, tostring((...))}
    return sim_server.call('EXISTS', key)
  elseif command == 'SET' and select('#', ...) == 3 then
    local value, unit, ttl = ...
    sim_notes[#sim_notes + 1] = {unit, key, tostring(ttl)}
    return sim_server.call('SET', key, value)
  elseif command == 'DEL' then
    for _, one in ipairs({key, ...}) do sim_notes[#sim_notes + 1] = {'DEL', one, '0'} end
  elseif command == 'XADD' then
    sim_notes[#sim_notes + 1] = {'XADD', key, '0'}
  end
  return sim_server.call(command, key, ...)
end}
local sim_answer = (function()
"""
_AFTER = """
end)()
if sim_answer == nil then sim_answer = false end
return {sim_answer, sim_notes}
"""

Snapshot = tuple[list[tuple[str, bytes]], dict[str, float]]


class Connection:
    """The protocol of Redis, version 2, asked synchronously; redis-py would take most of the time of a simulation."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb", buffering=65536)
        self.ask(("AUTH", where.password), ("CONFIG", "SET", "appendonly", "no"))

    def ask(self, *commands: tuple[Any, ...], raw: bool = False) -> list[Any]:
        """Send commands in one go; return their answers, errors among them. `raw`: bytes stay bytes."""
        parts: list[bytes] = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            for argument in command:
                data = argument if isinstance(argument, bytes) else str(argument).encode()
                parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        self._socket.sendall(b"".join(parts))
        return [self._read(raw) for _ in commands]

    def _read(self, raw: bool) -> Any:
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            length = int(rest)
            if length < 0:
                return None
            data = self._file.read(length + 2)[:-2]
            return data if raw else data.decode()
        if kind == b":":
            return int(rest)
        if kind == b"*":
            length = int(rest)
            return None if length < 0 else [self._read(raw) for _ in range(length)]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            text = rest.decode()
            return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
        raise ConnectionError(f"redis-server ended the connection: {line!r}")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Server:
    """A redis-server with a simulated clock, snapshots, and a run_id that changes when it "restarts"."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(url)
        self._wrapped: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._first_lines = _known_scripts()
        self._expires_at_s: dict[str, float] = {}
        self.now_s: Callable[[], float] = lambda: 0.0
        self.run_id = "run-0"
        self.on_xadd: Callable[[str], None] = lambda _key: None

    def begin(self, now_s: Callable[[], float], on_xadd: Callable[[str], None]) -> None:
        """Start over, empty, for another simulation."""
        self.now_s, self.on_xadd, self.run_id = now_s, on_xadd, "run-0"
        self._wrapped.clear()
        self.wipe()

    def wipe(self) -> None:
        """Forget everything, without a restart."""
        self._connection.ask(("FLUSHALL",))
        self._expires_at_s.clear()

    def snapshot(self) -> Snapshot:
        """Copy every key."""
        self._expire()
        (names,) = self._connection.ask(("KEYS", "*"))
        names.sort()
        dumps = self._connection.ask(*(("DUMP", name) for name in names), raw=True) if names else []
        return list(zip(names, dumps, strict=True)), dict(self._expires_at_s)

    def restore(self, snapshot: Snapshot) -> None:
        """Have again what an earlier moment had: everything since is lost."""
        dumps, expires_at_s = snapshot
        commands = [("RESTORE", name, 0, dump) for name, dump in dumps]
        for answer in self._connection.ask(("FLUSHALL",), *commands):
            if isinstance(answer, Exception):
                raise answer
        self._expires_at_s = dict(expires_at_s)

    def restart(self) -> None:
        """Be another process from now on: another run_id, no scripts loaded."""
        self._wrapped.clear()
        self.run_id = f"run-{int(self.run_id[4:]) + 1}"

    def script_name(self, command: tuple[Any, ...]) -> str:
        """Name the script that a command runs; "" for a command that runs none."""
        if command[0] == "EVALSHA":
            return self._names.get(str(command[1]), "?")
        return self._name_of(str(command[1])) if command[0] == "EVAL" else ""

    def ask(self, command: tuple[Any, ...], *looks: tuple[Any, ...]) -> list[Any]:
        """Run a command as a client sends it, and then those of whoever looks at what it did; return all answers."""
        self._expire()
        name = command[0]
        if name == "EVALSHA" and str(command[1]) not in self._wrapped:
            return [NoScriptError("NOSCRIPT No matching script."), *looks]
        if name in ("EVALSHA", "EVAL"):
            sha = str(command[1]) if name == "EVALSHA" else self._load(str(command[1]))
            answer, *seen = self._connection.ask(("EVALSHA", self._wrapped[sha], *command[2:]), *looks)
            return [self._unwrap(answer), *seen]
        if name == "SCRIPT LOAD":
            return [self._load(str(command[1]))]
        if name == "INFO":
            return [f"# Server\r\nredis_version:6.2.14\r\nrun_id:{self.run_id}\r\n"]
        return self._connection.ask((*str(name).split(), *command[1:]))

    def ask_unseen(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Look at what there is, for those who check."""
        self._expire()
        return self._connection.ask(*commands)

    def _load(self, text: str) -> str:
        sha = hashlib.sha1(text.encode()).hexdigest()
        if sha not in self._wrapped:
            (answer,) = self._connection.ask(("SCRIPT", "LOAD", _BEFORE + text + _AFTER))
            if isinstance(answer, Exception):
                raise answer
            self._wrapped[sha] = answer
            self._names[sha] = self._name_of(text)
        return sha

    def _unwrap(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            return answer
        result, notes = answer
        for what, key, ttl in notes:
            if what == "DEL":
                self._expires_at_s.pop(key, None)
            elif what == "XADD":
                self.on_xadd(key)
            else:
                factor = 1.0 if what in ("EXPIRE", "EX") else 0.001
                self._expires_at_s[key] = self.now_s() + float(ttl) * factor
        return result

    def _expire(self) -> None:
        now_s = self.now_s()
        due = [key for key, at_s in self._expires_at_s.items() if at_s <= now_s]
        if due:
            self._connection.ask(("DEL", *due))
            for key in due:
                del self._expires_at_s[key]

    def _name_of(self, text: str) -> str:
        return next((name for name, first_line in self._first_lines.items() if first_line in text), "script")

    def close(self) -> None:
        self._connection.close()


def _known_scripts() -> dict[str, str]:
    """Return the first line of every shipped script, which is a comment that no other has, by name."""
    folder = resources.files("vitascope_scheduler").joinpath("scripts")
    texts = {one.name.removesuffix(".lua"): one.read_text(encoding="utf-8") for one in folder.iterdir()}
    texts = {"append_event": APPEND_EVENT.lstrip(), **dict(sorted(texts.items()))}
    return {name: text.splitlines()[0] for name, text in texts.items() if name != "sfq"}
