"""The loop that every stage shares, with a task of two numbers: how a run ends, resumes and refuses to."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from vitascope_common.errors import ConfigurationError, ConflictError, InternalError, UnavailableError
from vitascope_trainer import checkpoints
from vitascope_trainer.checkpoints import read_state
from vitascope_trainer.config import Running
from vitascope_trainer.loop import MAX_SKIPPED, Interrupted, Trained, train
from vitascope_trainer.optimiser import Rates
from vitascope_trainer.processes import Group
from vitascope_trainer.progress import Reporter
from vitascope_trainer.seeds import noise_generator

CPU = torch.device("cpu")
SETTINGS = {"seed": 1, "task": {"width": 4}}


class Line:
    """Fits a line to noisy points; `events` happen while the loss of their step is taken."""

    name = "line"
    dtype = torch.float32
    matrices: Sequence[nn.Parameter] = ()
    rates = Rates(adam=0.05)
    num_micro_batches = 2

    def __init__(self, num_steps: int, events: Mapping[int, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Linear(4, 1)
        self.num_steps = num_steps
        self.events = events or {}

    def scale(self, step: int) -> float:
        return 1.0

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, int]:
        x = torch.randn(8, 4, generator=noise_generator(CPU, step, micro_batch))
        loss = (self.module(x)[:, 0] - x.sum(dim=1)).square().mean()
        event = self.events.get(step) if micro_batch == 0 else None
        return (event(loss) if event else loss), 8

    def measure(self) -> dict[str, float]:
        return {"held_out_loss": sum(float(each.detach().square().sum()) for each in self.module.parameters())}

    def sheet(self, averages: Mapping[str, Tensor], num_clips: int) -> Image.Image | None:
        return Image.new("RGB", (num_clips, 1))


def broken(loss: Tensor) -> Tensor:
    return loss * float("nan")


def sent(signum: int) -> Any:
    def event(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), signum)
        return loss

    return event


def run(task: Line, out: Path, settings: Mapping[str, Any] = SETTINGS, **running: Any) -> Trained:
    reporter = Reporter(Console(quiet=True))
    return train(task, settings, out, Running(log_steps=1, **running), Group(0, 1, CPU), reporter)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def state(out: Path) -> dict[str, Tensor]:
    return read_state(out / "checkpoint.safetensors")


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_writes_what_it_measured(tmp_path: Path) -> None:
    trained = run(Line(80), tmp_path, validate_steps=40, sheet_steps=40, sheet_clips=3)
    measured = rows(tmp_path)
    assert [row["step"] for row in measured] == list(range(1, 81))
    assert measured[-1]["loss"] < 0.1 * measured[0]["loss"]
    assert set(measured[0]) == {"step", "loss", "lr", "grad_norm", "samples_per_s", "elapsed_s"}
    assert [row["step"] for row in measured if "held_out_loss" in row] == [40, 80]
    assert len({row["loss"] for row in measured}) == 80, "no row repeats another's loss"
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["0000040.png", "0000080.png"]
    assert set(trained.averages) == {"weight", "bias"}
    assert {"loss", "held_out_loss"} <= set(trained.figures)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_the_resumed_run_ends_in_the_same_bits(tmp_path: Path, signum: int) -> None:
    run(Line(6), tmp_path / "straight")
    with pytest.raises(Interrupted, match="at step 3") as caught:
        run(Line(6, {2: sent(signum)}), tmp_path / "resumed")
    assert caught.value.status == 128 + signum
    run(Line(6), tmp_path / "resumed")
    assert_same(state(tmp_path / "straight"), state(tmp_path / "resumed"))
    assert [row["step"] for row in rows(tmp_path / "resumed")] == [1, 2, 3, 4, 5, 6]


def test_what_was_measured_after_the_checkpoint_is_measured_anew(tmp_path: Path) -> None:
    run(Line(3), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 99}\n{"step": 5, "lo')
    (tmp_path / ".tmp-0123").write_bytes(b"half a checkpoint")
    run(Line(5), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert rows(tmp_path)[3]["loss"] != 99
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    run(Line(3), tmp_path / "extended")
    run(Line(5), tmp_path / "extended")
    run(Line(5), tmp_path / "straight")
    assert_same(state(tmp_path / "straight"), state(tmp_path / "extended"))


def test_fewer_steps_than_the_checkpoint_has_are_refused(tmp_path: Path) -> None:
    run(Line(5), tmp_path)
    with pytest.raises(ConflictError, match="is of step 5 already, and 3 steps are asked for"):
        run(Line(3), tmp_path)


def test_processes_that_find_different_checkpoints_are_refused(tmp_path: Path) -> None:
    class Apart(Group):
        """The first of two processes, the other of which sees a folder with a checkpoint of step 3."""

        def wait(self) -> None:
            pass

        def gathered(self, value: int) -> list[int]:
            return [value, 3]

    reporter = Reporter(Console(quiet=True))
    with pytest.raises(ConfigurationError, match=r"different steps, 0, 3: .* must be one folder"):
        train(Line(5), SETTINGS, tmp_path, Running(), Apart(0, 2, CPU), reporter)


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = """
import os, signal
from vitascope_trainer.loop import Signals
with Signals().noted():
    os.kill(os.getpid(), signal.SIGINT)
    print("noted", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still there", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    assert ended.stdout == "noted\n"
    assert ended.returncode == -signal.SIGTERM


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    run(Line(3), tmp_path)
    with pytest.raises(ConflictError) as caught:
        run(Line(5), tmp_path, {"seed": 2, "task": {"width": 4, "depth": 1}})
    assert "seed: 1 -> 2" in caught.value.message
    assert "task.depth: (not there) -> 1" in caught.value.message
    assert "width" not in caught.value.message


def test_checkpoints_come_by_steps_and_by_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Reporter):
        def __init__(self) -> None:
            super().__init__(Console(quiet=True))
            self.steps: list[int] = []

        def checkpoint(self, name: str, step: int) -> None:
            self.steps.append(step)

    told = Told()
    train(Line(7), SETTINGS, tmp_path / "a", Running(checkpoint_steps=3), Group(0, 1, CPU), told)
    assert told.steps == [3, 6, 7]
    told = Told()
    train(Line(3), SETTINGS, tmp_path / "b", Running(checkpoint_s=1e-9), Group(0, 1, CPU), told)
    assert told.steps == [1, 2, 3]


def test_single_broken_gradients_are_passed_over(tmp_path: Path) -> None:
    run(Line(60, {5: broken, 6: broken}), tmp_path)
    measured = rows(tmp_path)
    assert measured[5]["grad_norm"] is None
    assert measured[-1]["loss"] < 0.2 * measured[0]["loss"]


def test_too_many_broken_gradients_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=f"not finite for {MAX_SKIPPED} steps in a row, up to step 23"):
        run(Line(100, {step: broken for step in range(3, 100)}), tmp_path)
    assert all(bool(tensor.isfinite().all()) for tensor in state(tmp_path).values())
    assert int(state(tmp_path)["num_steps"]) == 23


def test_a_full_disk_leaves_the_last_checkpoint_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checkpoints.atomic_writer
    num_calls = 0

    def filling(path: Path) -> AbstractContextManager[Any]:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path)

    monkeypatch.setattr(checkpoints, "atomic_writer", filling)
    with pytest.raises(UnavailableError, match=r"the disk is full\. The last checkpoint is of step 2"):
        run(Line(6), tmp_path, checkpoint_steps=2)
    monkeypatch.undo()
    run(Line(6), tmp_path / "straight")
    run(Line(6), tmp_path)
    assert_same(state(tmp_path), state(tmp_path / "straight"))
