"""The edge of the worker: what the inbox says becomes claims and wishes; one task at a time."""

import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import structlog

from vitascope_common.errors import DeadlineError, UnavailableError, VitascopeError
from vitascope_common.executor import Action, HeldTask
from vitascope_common.telemetry import continued, current_traceparent, span

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

CLAIM_BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
"""A hand-over is worth its lease, ten seconds; after that somebody else gets it."""

_ACTIONS = {"yield": Action.YIELD, "run": Action.RUN, "stop": Action.STOP}


@dataclass(frozen=True)
class Assignment:
    """A task that the scheduler hands to this worker: a hint until the claim is won."""

    task_id: str
    traceparent: str = ""


@dataclass(frozen=True)
class Command:
    """What the scheduler wants of one attempt: "yield", "run" (never mind) or "stop"; heartbeat answers repeat it."""

    name: str
    task_id: str
    attempt: int


class Claims(Protocol):
    """The part of the executor that wins tasks."""

    def claim(self, task_id: str) -> HeldTask | None: ...


class Work(Protocol):
    """What is done with a task that was won."""

    is_broken: bool
    """No other task can be taken: the process has to start anew."""

    def run(self, held: HeldTask) -> None: ...
    def drain(self) -> None: ...


class Consumer:
    """Claims assigned tasks in turn and runs each to its report. `run` belongs to one thread, the rest to any."""

    def __init__(self, claims: Claims, work: Work) -> None:
        self._claims = claims
        self._work = work
        self._queue: SimpleQueue[Assignment | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._current: HeldTask | None = None
        self._early: Command | None = None
        self._is_draining = False

    def assign(self, assignment: Assignment) -> None:
        """Queue a task; knowing it twice costs a refused claim."""
        self._queue.put(assignment)

    def command(self, command: Command) -> None:
        """Pass a wish on to the attempt that it names; one for an attempt that is gone is dropped."""
        action = _ACTIONS.get(command.name)
        if action is None:
            log.warning("inbox.unknown_command", command=command.name)
            return
        with self._lock:
            held = self._current
            if held is None or held.task.task_id != command.task_id:
                self._early = command  # a claim may be under way
            elif held.task.attempt == command.attempt and not held.is_over:
                held.action = action

    def drain(self) -> None:
        """Take no more work and give back what runs. Safe in a signal handler: takes no lock."""
        self._is_draining = True
        self._work.drain()
        self._queue.put(None)

    def run(self) -> None:
        """Work until drained, or until a task has broken what it ran on."""
        while not self._is_draining and not self._work.is_broken:
            assignment = self._queue.get()
            if assignment is None or self._is_draining:
                return
            self._take(assignment)

    def _take(self, assignment: Assignment) -> None:
        with span("generate.attempt", parent=assignment.traceparent, task=assignment.task_id) as current:
            held = self._claim(assignment.task_id)
            current.set_attribute("claimed", held is not None)
            if held is None:
                return
            task = held.task
            current.set_attributes({"job": task.job_id, "attempt": task.attempt, "tenant": task.tenant_id})
            attempt = current_traceparent()
        with self._lock:
            self._current, early, self._early = held, self._early, None
        if early is not None:
            self.command(early)
        try:
            bound = structlog.contextvars.bound_contextvars(job=task.job_id, tenant=task.tenant_id)
            with continued(attempt), bound:  # not inside the span: a killed process would take it with it
                self._work.run(held)
        finally:
            with self._lock:
                self._current = None

    def _claim(self, task_id: str) -> HeldTask | None:
        for backoff_s in (*CLAIM_BACKOFF_S, None):
            try:
                return self._claims.claim(task_id)
            except (UnavailableError, DeadlineError) as error:
                if backoff_s is None or self._is_draining:
                    log.warning("task.claim_given_up", task=task_id, error=error.message)
                    return None
                time.sleep(backoff_s)
            except VitascopeError as error:
                log.error("task.claim_failed", task=task_id, code=error.code, error=error.message)
                return None
        return None
