"""The policy as a file that may change under us."""

import threading
from pathlib import Path

import structlog

from vitascope_common.errors import UnavailableError
from vitascope_prompt.metrics import POLICY_READABLE
from vitascope_prompt.policy import Policy, PolicyError

_log = structlog.stdlib.get_logger("vitascope.prompt")


class PolicyFile:
    """Gives the policy that the file holds at this moment, or none. Safe to share between threads.

    The file is read each time (it is small) and compiled when its content differs: modification times miss changes.
    An older policy never stands in for one that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._content: bytes | None = None
        self._policy: Policy | None = None
        self._problem = ""

    def current(self) -> Policy:
        """Return the policy in the file. Raises: UnavailableError: it is missing, unreadable or invalid."""
        with self._lock:
            try:
                content = self._path.read_bytes()
            except OSError as error:
                self._forget(None, f"it cannot be read ({error.strerror})")
            else:
                if content != self._content:
                    self._compile(content)
            POLICY_READABLE.set(self._policy is not None)
            if self._policy is None:
                raise UnavailableError("The safety check is not available at the moment; try again later.")
            return self._policy

    def _compile(self, content: bytes) -> None:
        try:
            self._policy = Policy.from_yaml(content.decode("utf-8"))
        except (PolicyError, UnicodeDecodeError) as error:
            self._forget(content, str(error))
            return
        self._content, self._problem = content, ""
        _log.info("policy.read", path=str(self._path), version=self._policy.version)

    def _forget(self, content: bytes | None, problem: str) -> None:
        if problem != self._problem:
            _log.error("policy.unusable", path=str(self._path), problem=problem)
        self._content, self._policy, self._problem = content, None, problem
