"""A transformer that two processes share says what the whole one says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vitascope_common.testing import free_port
from vitascope_models.dit import DiT
from vitascope_models.parallel import check_divisible, tensor_parallel_plan

pytestmark = pytest.mark.timeout(300)  # two processes import torch

ONE_RANK = """
import sys
import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from vitascope_models.dit import DiT
from vitascope_models.parallel import shard_dit

torch.set_num_threads(1)
distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
found = {}
for mode in ("full", "causal", "window"):
    torch.manual_seed(3)
    dit = DiT(latent_channels=4, width=32, num_layers=2, num_heads=4, text_width=16, temporal_attention=mode, window=2)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    dit.eval().requires_grad_(False)
    mask = torch.tensor([[True] * 5 + [False] * 2]).expand(2, 7)
    inputs = (torch.randn(2, 4, 5, 8, 4), torch.rand(2), torch.randn(2, 7, 16), mask, torch.randn(2, 16))
    inputs = (*inputs, torch.randn(2, 6, 5, 8, 4))
    with torch.inference_mode():
        found[f"whole.{mode}"] = dit(*inputs)
        shard_dit(dit, mesh)
        found[f"shared.{mode}"] = dit(*inputs).clone()
        found[f"again.{mode}"] = dit(*inputs).clone()
kept = [one.to_local() if isinstance(one, DTensor) else one for one in dit.parameters()]
found["bytes"] = torch.tensor(sum(one.untyped_storage().nbytes() for one in kept))
found["whole.bytes"] = torch.tensor(sum(4 * one.numel() for one in dit.parameters()))
save_file(found, sys.argv[1])
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Run two ranks and return what each has found."""
    folder, port = tmp_path_factory.mktemp("ranks"), str(free_port())
    paths = [folder / "0", folder / "1"]
    ranks = [_start(path, RANK=str(rank), MASTER_PORT=port) for rank, path in enumerate(paths)]
    try:
        assert [rank.wait(200) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [load_file(path) for path in paths]


def _start(path: Path, **env: str) -> "subprocess.Popen[bytes]":
    fixed = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    if sys.platform.startswith("linux"):
        fixed["GLOO_SOCKET_IFNAME"] = "lo"
    return subprocess.Popen([sys.executable, "-c", ONE_RANK, str(path)], env={**os.environ, **fixed, **env})


@pytest.mark.parametrize("mode", ["full", "causal", "window"])
def test_two_ranks_say_what_one_says(found: list[dict[str, torch.Tensor]], mode: str) -> None:
    for rank in found:
        assert rank[f"whole.{mode}"].abs().max() > 0.1
        torch.testing.assert_close(rank[f"shared.{mode}"], rank[f"whole.{mode}"], rtol=0, atol=1e-5)
        assert torch.equal(rank[f"shared.{mode}"], rank[f"again.{mode}"])
    assert torch.equal(found[0][f"shared.{mode}"], found[1][f"shared.{mode}"])  # a checkpoint of either is whole


def test_a_rank_keeps_its_share_alone(found: list[dict[str, torch.Tensor]]) -> None:
    for rank in found:
        assert rank["bytes"] < 0.75 * rank["whole.bytes"]  # norms, positions and the like are not divided


def test_every_large_layer_of_a_block_is_divided() -> None:
    dit = DiT(latent_channels=4, width=32, num_layers=2, num_heads=4, text_width=16)
    linears = {name for name, module in dit.blocks.named_modules(prefix="blocks") if isinstance(module, nn.Linear)}
    assert tensor_parallel_plan(dit).keys() == linears


@pytest.mark.parametrize("num_ranks", [3, 8])
def test_heads_that_cannot_be_divided_are_refused(num_ranks: int) -> None:
    dit = DiT(latent_channels=4, width=32, num_layers=1, num_heads=4, text_width=16)
    with pytest.raises(ValueError, match=rf"4 heads of blocks\.0\.spatial .* {num_ranks} ranks"):
        check_divisible(dit, num_ranks)
    check_divisible(dit, 2)
