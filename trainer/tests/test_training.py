"""The optimiser, and both training stages for a few steps: they run, they stop, they continue, they export."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from vitascope_models.load import load_dit, load_text_encoder, load_vae
from vitascope_trainer import train_dit, train_vae
from vitascope_trainer.evaluate import generate, load_model
from vitascope_trainer.export import export, read_card
from vitascope_trainer.optimiser import Optimiser, Rates, orthogonalised
from vitascope_trainer.states import read_state, write_state


def _fit(optimiser: Optimiser, layer: nn.Linear, num_steps: int) -> float:
    torch.manual_seed(3)
    x = torch.randn(64, 16).bfloat16()
    target = x.float() @ torch.randn(16, 8) * 0.2
    loss = torch.zeros(())
    for _ in range(num_steps):
        loss = (layer(x).float() - target).square().mean()
        loss.backward()
        optimiser.step(0.1, 1.0)
    return float(loss.detach())


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_the_optimiser_learns_and_continues_exactly(muon: float, tmp_path: Path) -> None:
    def start() -> tuple[nn.Linear, Optimiser]:
        torch.manual_seed(1)
        layer = nn.Linear(16, 8).bfloat16()
        return layer, Optimiser(layer.parameters(), list(layer.parameters())[:1], Rates(adam=0.02, muon=muon))

    layer, optimiser = start()
    first = _fit(optimiser, layer, 1)
    assert _fit(optimiser, layer, 59) < 0.3 * first
    interrupted, before = start()
    _fit(before, interrupted, 1)
    write_state(tmp_path / "state.safetensors", before.state())
    resumed, after = start()
    after.load(read_state(tmp_path / "state.safetensors"))
    _fit(after, resumed, 59)
    assert after.num_steps == 60
    assert after.elapsed_s == pytest.approx(6.0)
    assert torch.equal(resumed.weight, layer.weight)
    assert torch.equal(after.average, optimiser.average)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    optimiser = Optimiser(layer.parameters(), [], Rates(adam=0.1))
    before = layer.weight.clone()
    (layer(torch.full((1, 4), float("inf")).bfloat16()).sum()).backward()
    optimiser.step(0.1, 1.0)
    assert torch.equal(layer.weight, before)
    assert optimiser.num_steps == 1


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalised(torch.randn(*shape)).float())
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


def test_both_stages_run_continue_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run, folder = tmp_path / "run", tmp_path / "model"
    monkeypatch.setattr(train_vae, "_POOL", 24)
    monkeypatch.setattr(train_vae, "_CLIPS_MEASURED", 8)
    monkeypatch.setattr(train_vae, "BATCH", (2, 4))
    monkeypatch.setattr(train_dit, "_POOL", 8)
    monkeypatch.setattr(train_dit, "_FIRST", 4)
    monkeypatch.setattr(train_dit, "_TEXT_STEPS", 1)
    monkeypatch.setattr(train_dit, "BATCH", {17: 2, 33: 2})
    try:
        train_vae.train_vae(run, 1e-4, rank=0)
        train_dit.train_dit(run, 0.02, rank=0)
        before_s, steps = (json.loads((run / "training.json").read_text())[name] for name in ("elapsed_s", "num_steps"))
        train_dit.train_dit(run, (before_s + 2) / 60, rank=0)
        assert json.loads((run / "training.json").read_text())["num_steps"] > steps >= 1
        export(run, folder)
        card = read_card(folder)
        for load in (load_vae, load_text_encoder, load_dit):
            load(folder, card)
        assert card["provenance"]["training"]["num_steps"] > steps
        clip = generate(load_model(folder), "a red circle", seed=1, seconds="2", num_steps=1)
        assert clip.shape == (17, 64, 64, 3)
    finally:
        torch.set_num_threads(before)
