"""What every executor shares: claim a task, keep its lease alive, report its end.

An executor that reaches nobody computes on: heartbeats fail quietly, Report repeats until it is answered, and SQL
decides then whether the attempt still counts.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc
import structlog

from vitascope_common import rpc, telemetry, wire
from vitascope_common.errors import ErrorKind, UnavailableError, VitascopeError
from vitascope_common.grpc_errors import from_rpc_error
from vitascope_common.jobs import Artifact, Checkpoint, Progress, Task
from vitascope_proto.v1 import scheduler_pb2, scheduler_pb2_grpc

log = structlog.get_logger()

CALL_TIMEOUT_S = 5.0
REPORT_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # then the last one again
BEAT_BACKOFF_S = (0.1, 0.3, 1.0)  # sooner than usual: who slept must hear soon, and a restart must not cost a lease
REPORT_INTERNAL_S = 60.0  # a report that the scheduler has failed on for this long is left to the lease
DEFAULT_HEARTBEAT_S = 2.0


class Action(StrEnum):
    """What the scheduler wants of a task that is held."""

    RUN = "run"
    YIELD = "yield"
    STOP = "stop"
    STALE = "stale"


class Outcome(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    FAILED = "failed"
    YIELDED = "yielded"
    CANCELLED = "cancelled"


_ACTIONS: Mapping[int, Action] = {
    scheduler_pb2.ACTION_RUN: Action.RUN,
    scheduler_pb2.ACTION_YIELD: Action.YIELD,
    scheduler_pb2.ACTION_STOP: Action.STOP,
    scheduler_pb2.ACTION_STALE: Action.STALE,
}
_OUTCOMES: Mapping[Outcome, scheduler_pb2.Outcome] = {
    Outcome.DONE: scheduler_pb2.OUTCOME_DONE,
    Outcome.FAILED: scheduler_pb2.OUTCOME_FAILED,
    Outcome.YIELDED: scheduler_pb2.OUTCOME_YIELDED,
    Outcome.CANCELLED: scheduler_pb2.OUTCOME_CANCELLED,
}


@dataclass(frozen=True)
class WorkerIdentity:
    """Who an executor is, as it registers. `num_slots` 0: it is not handed work over an inbox (postproc)."""

    worker_id: str
    executor: str
    pool: str
    device: str = "cpu"
    group_size: int = 1
    num_slots: int = 1
    warm_models: tuple[str, ...] = ()


@dataclass
class HeldTask:
    """A claimed task: what its owner says about it, and what the scheduler wants of it. Thread-safe by assignment."""

    task: Task
    progress: Progress = field(default_factory=Progress)
    used_s: float = 0.0
    meters: Mapping[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None  # newest uploaded one; sent with every heartbeat, recorded once
    action: Action = Action.RUN

    @property
    def is_over(self) -> bool:
        """Tell whether the work is to be dropped."""
        return self.action in (Action.STOP, Action.STALE)


class Executor:
    """The executor's side of the four calls, with one heartbeat thread for all tasks that it holds."""

    def __init__(self, address: str, identity: WorkerIdentity) -> None:
        self.identity = identity
        self.worker_state = "idle"
        self.is_draining = False  # set it before the last task ends, and poke: no more work is handed to this one
        channel = grpc.insecure_channel(address, options=rpc.CHANNEL_OPTIONS)
        self._channel = channel
        self._stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(
            grpc.intercept_channel(channel, *telemetry.sync_client_interceptors())
        )
        self._held: dict[str, HeldTask] = {}
        self._claiming: set[str] = set()
        self._lock = threading.Lock()
        self._poke = threading.Event()
        self._is_stopping = threading.Event()
        self._is_closing = False
        self._is_closed = False  # no call begins any more: gRPC crashes the process for one on a closed channel
        self._num_calls = 0
        self._call_ended = threading.Condition(self._lock)
        self._is_registered = False
        self._heartbeat_s = DEFAULT_HEARTBEAT_S
        self._thread = threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register (when it has slots) and begin to send heartbeats; both repeat until the scheduler answers."""
        self._thread.start()

    def close(self) -> None:
        """Stop the heartbeats. Held tasks are left to their leases; report them first. A second call does nothing."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
        self._is_stopping.set()
        self._poke.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CALL_TIMEOUT_S + 1)
        if self.is_draining:
            with suppress(VitascopeError):
                self._beat()  # what was handed to it meanwhile goes back at once
        with self._call_ended:
            self._is_closed = True
            self._call_ended.wait_for(lambda: not self._num_calls, CALL_TIMEOUT_S + 1)
        self._channel.close()

    def give_up(self) -> None:
        """Wait for nobody any more: heartbeats end, and a report that fails is not repeated. For who has to leave soon.

        Other threads may go on using this executor, unlike after `close`: gRPC crashes on calls on a closed channel.
        """
        self._is_stopping.set()
        self._poke.set()

    def poke(self) -> None:
        """Send a heartbeat now: a checkpoint is uploaded, a slot is free."""
        self._poke.set()

    def claim(self, task_id: str) -> HeldTask | None:
        """Try to win a task. None when it is refused: it is done, cancelled, somebody else's, or held here already.

        May be repeated when the answer was lost: the scheduler grants a worker the attempt that it has. That is why a
        task that is held, or claimed by another thread, is refused here: no attempt runs twice in one process.

        Raises VitascopeError when the scheduler cannot be asked; the hand-over then expires like any lease.
        """
        with self._lock:
            is_known = task_id in self._held or task_id in self._claiming
            if not is_known:
                self._claiming.add(task_id)
        if is_known:
            log.info("task.claim_refused", task=task_id, reason="held")
            return None
        try:
            me = self.identity
            request = scheduler_pb2.ClaimRequest(task_id=task_id, worker_id=me.worker_id, group_size=me.group_size)
            answer = self._call("Claim", request)
            if not answer.granted:
                log.info("task.claim_refused", task=task_id, reason=answer.reason)
                return None
            held = HeldTask(wire.task_from_proto(answer.task))
            with self._lock:
                self._held[task_id] = held
        finally:
            with self._lock:
                self._claiming.discard(task_id)
        self._keep_beat(answer.heartbeat_ms)
        log.info("task.claimed", task=task_id, attempt=held.task.attempt)
        return held

    def report(
        self,
        held: HeldTask,
        outcome: Outcome,
        *,
        outputs: Sequence[Artifact] = (),
        error: VitascopeError | None = None,
        is_retryable: bool = False,
    ) -> bool:
        """Report the end of an attempt, repeated until it is answered. False: the attempt was stale.

        Returns False as well when the report was refused for good, or failed inside the scheduler for a minute (its
        lease then expires), or when this executor is closed.
        """
        request = scheduler_pb2.ReportRequest(
            worker_id=self.identity.worker_id,
            task_id=held.task.task_id,
            attempt=held.task.attempt,
            outcome=_OUTCOMES[outcome],
            outputs=[wire.artifact_to_proto(artifact) for artifact in outputs],
            error_code=error.code if error else "",
            error_message=error.message if error else "",
            is_retryable=is_retryable,
            used_s=held.used_s,
            meters=held.meters,
            checkpoint=wire.checkpoint_to_proto(held.checkpoint) if held.checkpoint else None,
        )
        num_tries = 0
        internal_since_s: float | None = None
        while True:
            try:
                answer = self._call("Report", request)
            except VitascopeError as error_:
                now_s = time.monotonic()
                if error_.kind is not ErrorKind.INTERNAL:
                    internal_since_s = None
                elif internal_since_s is None:
                    internal_since_s = now_s
                is_hopeless = internal_since_s is not None and now_s - internal_since_s >= REPORT_INTERNAL_S
                if is_hopeless or error_.kind in (ErrorKind.INVALID, ErrorKind.NOT_FOUND, ErrorKind.DENIED):
                    log.error("task.report_refused", task=held.task.task_id, code=error_.code, error=error_.message)
                    self.release(held)
                    return False
                log.warning("task.report_retry", task=held.task.task_id, error=error_.message)
                backoff_s = REPORT_BACKOFF_S[min(num_tries, len(REPORT_BACKOFF_S) - 1)]
                num_tries += 1
                if self._is_stopping.wait(backoff_s):
                    return False
                continue
            self.release(held)
            log.info("task.reported", task=held.task.task_id, outcome=outcome.value, accepted=answer.accepted)
            return bool(answer.accepted)

    def release(self, held: HeldTask) -> None:
        """Forget a task without a report: the scheduler said stop or stale. The next heartbeat frees its slot."""
        with self._lock:
            self._held.pop(held.task.task_id, None)
        self.poke()

    def _held_now(self) -> Sequence[HeldTask]:
        with self._lock:
            return list(self._held.values())

    def _call(self, method: str, request: Any) -> Any:
        with self._lock:
            if self._is_closed:
                raise UnavailableError("This executor is closed.")
            self._num_calls += 1
        try:
            return getattr(self._stub, method)(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            with self._call_ended:
                self._num_calls -= 1
                self._call_ended.notify_all()

    def _beat_forever(self) -> None:
        num_failures = 0
        while not self._is_stopping.is_set():
            try:
                if self.identity.num_slots and not self._is_registered:
                    self._register()
                self._beat()
            except VitascopeError as error:
                log.warning("executor.heartbeat_failed", error=error.message)
                backoff_s = BEAT_BACKOFF_S[min(num_failures, len(BEAT_BACKOFF_S) - 1)]
                num_failures += 1
                self._poke.wait(min(backoff_s, self._heartbeat_s))
            else:
                num_failures = 0
                self._poke.wait(self._heartbeat_s)
            self._poke.clear()

    def _register(self) -> None:
        me = self.identity
        answer = self._call(
            "Register",
            scheduler_pb2.RegisterRequest(
                worker_id=me.worker_id,
                executor=me.executor,
                pool=me.pool,
                device=me.device,
                group_size=me.group_size,
                num_slots=me.num_slots,
                warm_models=me.warm_models,
            ),
        )
        self._keep_beat(answer.heartbeat_ms)
        self._is_registered = True
        log.info("executor.registered", worker=me.worker_id, pool=me.pool)

    def _keep_beat(self, heartbeat_ms: int) -> None:
        """Beat as often as the scheduler asks, at once when that is news; 0: it does not say."""
        heartbeat_s = heartbeat_ms / 1000 or self._heartbeat_s
        if heartbeat_s != self._heartbeat_s:
            self._heartbeat_s = heartbeat_s
            self.poke()

    def _beat(self) -> None:
        me, held = self.identity, self._held_now()
        if not me.num_slots and not held:
            return
        answer = self._call(
            "Heartbeat",
            scheduler_pb2.HeartbeatRequest(
                worker_id=me.worker_id,
                executor=me.executor,
                pool=me.pool,
                num_free_slots=max(0, me.num_slots - len(held)),
                worker_state=self.worker_state,
                tasks=[_status(one) for one in held],
                warm_models=me.warm_models,
                is_draining=self.is_draining,
            ),
        )
        if answer.must_register:
            self._is_registered = False
            self.poke()
        self._take(held, answer.actions)

    def _take(self, held: Iterable[HeldTask], actions: Iterable[scheduler_pb2.TaskAction]) -> None:
        by_attempt = {(one.task.task_id, one.task.attempt): one for one in held}
        for answer in actions:
            one = by_attempt.get((answer.task_id, int(answer.attempt)))
            action = _ACTIONS.get(answer.action)
            if one is not None and action is not None and not one.is_over:
                one.action = action


def _status(held: HeldTask) -> scheduler_pb2.TaskStatus:
    checkpoint = held.checkpoint
    return scheduler_pb2.TaskStatus(
        task_id=held.task.task_id,
        attempt=held.task.attempt,
        progress=wire.progress_to_proto(held.progress),
        used_s=held.used_s,
        meters=held.meters,
        checkpoint=wire.checkpoint_to_proto(checkpoint) if checkpoint else None,
    )
