"""The optimiser: it learns, continues exactly, adds gradients up in fp32, and lets no broken gradient in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vitascope_trainer.checkpoints import read_state, write_state
from vitascope_trainer.config import Schedule
from vitascope_trainer.optimiser import Optimiser, Rates, orthogonalised


def _start(muon: float = 0.0) -> tuple[nn.Linear, Optimiser]:
    torch.manual_seed(1)
    layer = nn.Linear(16, 8)
    optimiser = Optimiser(layer.parameters(), list(layer.parameters())[:1], Rates(adam=0.02, muon=muon))
    return layer.bfloat16(), optimiser


def _fit(optimiser: Optimiser, layer: nn.Linear, num_steps: int) -> float:
    torch.manual_seed(3)
    x = torch.randn(64, 16).bfloat16()
    target = x.float() @ torch.randn(16, 8) * 0.2
    loss = torch.zeros(())
    for _ in range(num_steps):
        loss = (layer(x).float() - target).square().mean()
        loss.backward()
        optimiser.accumulate()
        optimiser.step(1.0)
    return float(loss.detach())


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_it_learns_and_continues_exactly(muon: float, tmp_path: Path) -> None:
    layer, optimiser = _start(muon)
    first = _fit(optimiser, layer, 1)
    assert _fit(optimiser, layer, 59) < 0.3 * first
    interrupted, before = _start(muon)
    _fit(before, interrupted, 1)
    write_state(tmp_path / "state.safetensors", before.state())
    resumed, after = _start(muon)
    after.load(read_state(tmp_path / "state.safetensors"))
    _fit(after, resumed, 59)
    assert after.num_steps == 60
    assert torch.equal(resumed.weight, layer.weight)
    assert all(torch.equal(after.state()[name], value) for name, value in optimiser.state().items())


def test_the_masters_are_finer_than_the_weights() -> None:
    torch.manual_seed(1)
    exact = nn.Linear(16, 8)
    layer, optimiser = _start()
    assert torch.equal(optimiser.master[: 8 * 16].view(8, 16), exact.weight)
    assert not torch.equal(layer.weight.float(), exact.weight)


def test_gradients_of_several_micro_batches_are_added_up() -> None:
    (one, whole), (other, parts) = _start(), _start()
    x = torch.randn(8, 16).bfloat16()
    (one(x).float().square().sum() * 2).backward()
    whole.accumulate()
    for _ in range(2):
        other(x).float().square().sum().backward()
        parts.accumulate()
    assert parts.step(1.0).gradient_norm == pytest.approx(whole.step(1.0).gradient_norm, rel=1e-3)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    layer, optimiser = _start()
    before = layer.weight.clone()
    layer(torch.full((1, 16), float("inf")).bfloat16()).sum().backward()
    optimiser.accumulate()
    assert optimiser.step(1.0, (2.5,)).is_skipped
    assert torch.equal(layer.weight, before)
    assert torch.equal(optimiser.average, optimiser.master)
    assert optimiser.num_steps == 1
    assert not optimiser.step(1.0).is_skipped, "the broken gradient must not linger"


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(*shape)).float())
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


def test_the_rate_warms_up_stays_and_decays_to_almost_nothing() -> None:
    schedule = Schedule(steps=100, warmup_steps=10, decay_share=0.4)
    scales = [schedule.scale(step) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[:10] == sorted(scales[:10])
    assert set(scales[9:61]) == {1.0}
    assert scales[60:] == sorted(scales[60:], reverse=True)
    assert scales[99] < 0.03
    assert schedule.scale(30, first=30) == pytest.approx(0.1), "it warms up anew"
