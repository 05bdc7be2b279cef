"""The training loop that every stage shares: steps, checkpoints, measurements, and an orderly end.

All randomness of a task derives from (seed, step, micro-batch), so a run that is interrupted anywhere and resumed from
its checkpoint ends in the same weights, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from vitascope_common.errors import ConfigurationError, ConflictError, InternalError, UnavailableError
from vitascope_trainer.checkpoints import (
    disk_error,
    is_disk_full,
    read_account,
    read_state,
    remove_unfinished,
    write_state,
)
from vitascope_trainer.config import Running, differences
from vitascope_trainer.optimiser import Optimiser, Rates
from vitascope_trainer.processes import Group
from vitascope_trainer.progress import Metrics, Reporter

MAX_SKIPPED = 20
"""So many gradients in a row that are not finite end the run."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and everything worth keeping has been written."""

    def __init__(self, signum: int, stage: str, step: int | None) -> None:
        self.status = 128 + signum
        where = "" if step is None else f" at step {step}; the checkpoint is written"
        super().__init__(f"{stage} stopped{where}.")


class Signals:
    """Notes Ctrl-C and SIGTERM instead of dying of them; a second one kills at once."""

    def __init__(self) -> None:
        self.received = 0

    @contextlib.contextmanager
    def noted(self) -> Iterator[Signals]:
        """Note signals while the block runs."""
        before = {signum: signal.signal(signum, self._note) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.received:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.received = signum


class Task(Protocol):
    """What a stage trains."""

    name: str
    module: nn.Module
    """On its device, in fp32 until the loop has taken its masters from it."""
    dtype: torch.dtype
    matrices: Sequence[nn.Parameter]
    rates: Rates
    num_steps: int
    num_micro_batches: int

    def scale(self, step: int) -> float:
        """Give what multiplies the learning rates."""
        ...

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, int]:
        """Give a micro-batch's loss and how many samples it had."""
        ...

    def measure(self) -> dict[str, float]:
        """Measure the module as it is on what training never sees."""
        ...

    def sheet(self, averages: Mapping[str, Tensor], num_clips: int) -> Image.Image | None:
        """Show what the averaged weights do; None if there is nothing to show it on."""
        ...


@dataclass(frozen=True)
class Trained:
    """What came out: the averaged weights by name, and figures for the card."""

    averages: dict[str, Tensor]
    figures: dict[str, Any]


def train(
    task: Task, settings: Mapping[str, Any], out: Path, run: Running, group: Group, reporter: Reporter
) -> Trained:
    """Train until `task.num_steps`, from the checkpoint in `out` if there is one.

    `settings` decide what the run makes; a checkpoint made under others is refused.

    Raises:
        ConfigurationError: the processes do not find the same checkpoint.
        ConflictError: the checkpoint belongs to another configuration, of which it lists what differs, or to a later
            step than the last.
        InternalError: the gradient was not finite for too many steps in a row.
        Interrupted: after Ctrl-C or SIGTERM, with a checkpoint written.
        UnavailableError: the disk is full; says which step the last checkpoint is of.
    """
    share = group.share(task.num_micro_batches)
    state = _State(task, settings, out, group)
    metrics = Metrics(out / "metrics.jsonl", state.optimiser.num_steps, group.is_first)
    try:
        with Signals().noted() as signals, reporter.stage(task.name, task.num_steps, state.optimiser.num_steps):
            _steps(task, state, out, run, group, share, metrics, reporter, signals)
    except OSError as error:
        if not is_disk_full(error):
            raise
        with contextlib.suppress(UnavailableError):  # there may be room for this and not for that
            state.save()
        raise UnavailableError(f"{disk_error(out, error).message} {state.last_saved()}") from error
    except UnavailableError as error:
        raise UnavailableError(f"{error.message} {state.last_saved()}") from error
    took = {"elapsed_s": round(state.elapsed_s), "num_samples": state.num_samples}
    return Trained(state.averages(), state.figures | took)


class _State:
    """The optimiser and the account of the run so far, as a checkpoint holds them."""

    def __init__(self, task: Task, settings: Mapping[str, Any], out: Path, group: Group) -> None:
        self._task = task
        self._group = group
        self._settings = settings
        self._path = out / "checkpoint.safetensors"
        self.optimiser = Optimiser(
            (each for each in task.module.parameters() if each.requires_grad), task.matrices, task.rates
        )
        task.module.to(task.dtype)
        self.elapsed_s = 0.0
        self.num_samples = 0
        self.figures: dict[str, Any] = {}
        self._saved_step: int | None = None
        if group.is_first:
            remove_unfinished(out)
        if self._path.exists():
            self._load()
        steps = group.gathered(self.optimiser.num_steps)
        if len(set(steps)) > 1:
            raise ConfigurationError(
                f"The processes would go on from different steps, {', '.join(map(str, steps))}: {out} must be one "
                "folder that all of them see."
            )
        if self.optimiser.num_steps > task.num_steps:
            raise ConflictError(
                f"{self._path} is of step {self.optimiser.num_steps} already, and {task.num_steps} steps are asked "
                "for: ask for at least as many, or start anew in another folder."
            )

    def _load(self) -> None:
        account = read_account(self._path)
        different = differences(account["settings"], self._settings)
        if different:
            raise ConflictError(
                f"{self._path} is of a run with another configuration; start anew in another folder, or undo: "
                + "; ".join(different)
                + "."
            )
        self.optimiser.load(read_state(self._path))
        self._saved_step = self.optimiser.num_steps
        self.elapsed_s, self.num_samples = account["elapsed_s"], account["num_samples"]
        self.figures = account["figures"]

    def save(self) -> None:
        """Write the checkpoint, unless this step's is written or another process writes it."""
        if self._saved_step == self.optimiser.num_steps or not self._group.is_first:
            return
        account = {
            "settings": self._settings,
            "elapsed_s": self.elapsed_s,
            "num_samples": self.num_samples,
            "figures": self.figures,
        }
        write_state(self._path, self.optimiser.state(), account)
        self._saved_step = self.optimiser.num_steps

    def last_saved(self) -> str:
        """Say what a resumed run would start from."""
        if self._saved_step is None:
            return "There is no checkpoint yet."
        return f"The last checkpoint is of step {self._saved_step}."

    def averages(self) -> dict[str, Tensor]:
        """Give the averaged weights by name."""
        return self.optimiser.averages(self._task.module.named_parameters())


def _steps(
    task: Task,
    state: _State,
    out: Path,
    run: Running,
    group: Group,
    share: range,
    metrics: Metrics,
    reporter: Reporter,
    signals: Signals,
) -> None:
    optimiser = state.optimiser
    began_s = saved_s = logged_s = time.monotonic()
    elapsed_before_s, samples_logged = state.elapsed_s, state.num_samples
    losses: list[float] = []
    num_skipped = 0
    while optimiser.num_steps < task.num_steps:
        scale = task.scale(optimiser.num_steps)
        total, num_samples = 0.0, 0
        for micro_batch in share:
            loss, count = task.loss(optimiser.num_steps, micro_batch)
            loss = loss / task.num_micro_batches
            loss.backward()
            optimiser.accumulate()
            total, num_samples = total + float(loss.detach()), num_samples + count
        update = optimiser.step(scale, (total, num_samples, float(signals.received > 0)))
        loss_mean, samples, num_stopped = update.shared
        step, now_s = optimiser.num_steps, time.monotonic()
        state.elapsed_s, state.num_samples = elapsed_before_s + now_s - began_s, state.num_samples + round(samples)
        losses.append(loss_mean)
        num_skipped = num_skipped + 1 if update.is_skipped else 0
        is_last = step == task.num_steps
        if group.is_first:
            if is_last or step % run.log_steps == 0:
                row = {
                    "step": step,
                    "loss": _mean(losses),
                    "lr": task.rates.adam * scale,
                    "grad_norm": update.gradient_norm,
                    "samples_per_s": (state.num_samples - samples_logged) / max(now_s - logged_s, 1e-9),
                    "elapsed_s": state.elapsed_s,
                }
                losses, samples_logged, logged_s = [], state.num_samples, now_s
                if run.validate_steps and (is_last or _passed(step, run.validate_steps, run.log_steps)):
                    measured = task.measure()
                    row |= measured
                    state.figures = state.figures | measured
                state.figures = state.figures | {"loss": row["loss"]}
                metrics.write(row)
                reporter.row(task.name, row)
            if run.sheet_steps and (is_last or step % run.sheet_steps == 0):
                _draw(task, state, out, run)
            is_due = step % run.checkpoint_steps == 0 or time.monotonic() - saved_s > run.checkpoint_s
            if is_last or is_due or num_stopped or num_skipped == MAX_SKIPPED:
                state.save()
                saved_s = time.monotonic()
                reporter.checkpoint(task.name, step)
        reporter.advance(step)
        if num_skipped == MAX_SKIPPED:
            raise InternalError(
                f"{task.name}: the gradient was not finite for {MAX_SKIPPED} steps in a row, up to step {step}; the "
                "weights are those of before. Look at the data, or start anew with a lower learning rate."
            )
        if num_stopped:
            group.wait()
            raise Interrupted(signals.received or signal.SIGTERM, task.name, step)
    group.wait()


def _draw(task: Task, state: _State, out: Path, run: Running) -> None:
    picture = task.sheet(state.averages(), run.sheet_clips)
    if picture is not None:
        path = out / "sheets" / f"{state.optimiser.num_steps:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def _passed(step: int, interval: int, since: int) -> bool:
    """Say whether a multiple of `interval` lies in the last `since` steps."""
    return step // interval > (step - since) // interval


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
