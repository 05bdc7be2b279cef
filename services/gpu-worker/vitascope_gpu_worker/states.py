"""The worker's own states: one enum, one table, one machine. An illegal transition raises."""

from collections.abc import Callable, Mapping
from enum import StrEnum

from vitascope_gpu_worker import metrics
from vitascope_gpu_worker.errors import IllegalTransitionError


class WorkerState(StrEnum):
    """What the worker is doing."""

    IDLE = "idle"
    LOADING = "loading"  # weights, unless they are loaded already
    READY = "ready"  # the model is loaded
    INITIALIZING = "initializing"  # conditioning, noise
    GENERATING = "generating"
    CHECKPOINTING = "checkpointing"
    DECODING = "decoding"
    AUDIO_SYNC = "audio_sync"
    SAFETY_CHECK = "safety_check"
    UPLOADING = "uploading"
    COMPLETE = "complete"
    FAILED = "failed"
    RECOVERING = "recovering"


_S = WorkerState

_SEED: Mapping[WorkerState, frozenset[WorkerState]] = {
    _S.IDLE: frozenset({_S.LOADING}),
    _S.LOADING: frozenset({_S.READY, _S.IDLE}),
    _S.READY: frozenset({_S.INITIALIZING}),
    _S.INITIALIZING: frozenset({_S.GENERATING}),
    _S.GENERATING: frozenset({_S.GENERATING, _S.CHECKPOINTING, _S.DECODING, _S.RECOVERING}),
    _S.CHECKPOINTING: frozenset({_S.GENERATING}),
    _S.RECOVERING: frozenset({_S.GENERATING, _S.FAILED}),
    _S.DECODING: frozenset({_S.AUDIO_SYNC}),
    _S.AUDIO_SYNC: frozenset({_S.SAFETY_CHECK}),
    _S.SAFETY_CHECK: frozenset({_S.UPLOADING, _S.FAILED}),
    _S.UPLOADING: frozenset({_S.COMPLETE, _S.FAILED}),
    _S.COMPLETE: frozenset({_S.IDLE}),
    _S.FAILED: frozenset({_S.IDLE}),
}
"""The machine as the platform's high-level design draws it."""

_ADDED: Mapping[WorkerState, frozenset[WorkerState]] = {
    # A process that died moves nowhere: the one that takes over reads the checkpoint before its first step.
    _S.INITIALIZING: frozenset({_S.RECOVERING}),
    # Work is taken away (stop, stale, yield, SIGTERM) wherever it can wait for something; nothing has failed then.
    **{
        state: frozenset({_S.IDLE})
        for state in (_S.READY, _S.RECOVERING, _S.GENERATING, _S.CHECKPOINTING, _S.DECODING, _S.UPLOADING)
    },
}
_CAN_FAIL = (_S.READY, _S.INITIALIZING, _S.GENERATING, _S.CHECKPOINTING, _S.DECODING)
"""An error is reported from wherever it happens: no prompt service, no memory, no space. A failed load goes to idle."""

TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = {
    state: after
    | _ADDED.get(state, frozenset())
    | (frozenset({_S.FAILED}) if state in _CAN_FAIL else frozenset())
    | (frozenset({_S.IDLE}) if state is _S.INITIALIZING else frozenset())
    for state, after in _SEED.items()
}


class WorkerMachine:
    """The state of this worker; shown as the gauge `vitascope_worker_state` and told to `on_change`."""

    def __init__(self, on_change: Callable[[WorkerState], None] | None = None) -> None:
        self._on_change = on_change
        self._state = WorkerState.IDLE
        self._show()

    @property
    def state(self) -> WorkerState:
        """The present state."""
        return self._state

    def to(self, state: WorkerState) -> None:
        """Move on. Raises: IllegalTransitionError: the table has no such transition; the state stays."""
        if state not in TRANSITIONS[self._state]:
            raise IllegalTransitionError(f"the worker cannot go from {self._state} to {state}")
        self._state = state
        self._show()

    def fail(self) -> None:
        """Go to `failed`; from where the table knows no failing (a load), to idle."""
        self.to(WorkerState.FAILED if WorkerState.FAILED in TRANSITIONS[self._state] else WorkerState.IDLE)

    def end(self) -> None:
        """Return to idle from wherever the work stopped."""
        if self._state is not WorkerState.IDLE:
            self.to(WorkerState.IDLE)

    def _show(self) -> None:
        for state in WorkerState:
            metrics.WORKER_STATE.labels(state.value).set(state is self._state)
        if self._on_change is not None:
            self._on_change(self._state)
