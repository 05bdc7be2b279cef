"""The transformer: shapes, both clip lengths, and what its temporal attention lets through."""

import pytest
import torch

from vitascope_models.dit import DiT, Positions


def _dit(**changes: object) -> DiT:
    arguments: dict[str, object] = {
        "latent_channels": 4, "width": 32, "num_layers": 2, "num_heads": 4, "text_width": 16,
    }  # fmt: skip
    dit = DiT(**(arguments | changes))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return dit.eval().requires_grad_(False)


def _inputs(num_frames: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(batch, 4, num_frames, 8, 4),
        torch.rand(batch),
        torch.randn(batch, 7, 16),
        torch.tensor([[True] * 5 + [False] * 2]).expand(batch, 7),
        torch.randn(batch, 16),
    )


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_velocity_has_the_shape_of_the_latents(num_frames: int) -> None:
    inputs = _inputs(num_frames)
    assert _dit()(*inputs).shape == inputs[0].shape


def test_an_untrained_transformer_says_zero() -> None:
    assert not DiT(latent_channels=4, width=32, num_layers=1, num_heads=4, text_width=16)(*_inputs(5)).any()


def test_patches_go_back_where_they_came_from() -> None:
    dit = DiT(latent_channels=4, width=16, num_layers=0, num_heads=4, text_width=16).eval().requires_grad_(False)
    dit.patch_in.weight.copy_(torch.eye(16))
    dit.patch_in.bias.zero_()
    dit.patch_out.weight.copy_(torch.eye(16))
    for layer in (dit.positions.space_out, dit.positions.time_out):
        layer.weight.zero_()
        layer.bias.zero_()
    latents, *rest = _inputs(3)
    out = dit(latents, *rest)
    # Without blocks and positions only the final norm is left: every patch is its own, centred and scaled.
    patch = latents[1, :, 2, 2:4, 0:2].flatten()
    expected = (patch - patch.mean()) / patch.std(correction=0)
    assert torch.allclose(out[1, :, 2, 2:4, 0:2].flatten(), expected, atol=1e-4)


def test_everything_given_matters() -> None:
    dit, inputs = _dit(), _inputs(5)
    before = dit(*inputs)
    for index in (0, 1, 2, 4):
        changed = list(inputs)
        changed[index] = torch.rand_like(inputs[index])
        assert not torch.allclose(dit(*changed), before, atol=1e-5), index


def test_padding_of_the_text_does_not_matter() -> None:
    dit, inputs = _dit(), _inputs(5)
    changed = list(inputs)
    changed[2] = inputs[2].clone()
    changed[2][:, 5:] = 9.0
    assert torch.equal(dit(*changed), dit(*inputs))


@pytest.mark.parametrize(("mode", "sees_the_future"), [("full", True), ("causal", False), ("window", True)])
def test_temporal_attention_decides_who_sees_the_future(mode: str, sees_the_future: bool) -> None:
    dit, inputs = _dit(temporal_attention=mode, window=2), _inputs(5)
    changed = [inputs[0].clone(), *inputs[1:]]
    changed[0][:, :, 2:] += 1.0
    is_equal = torch.equal(dit(*changed)[:, :, :2], dit(*inputs)[:, :, :2])
    assert is_equal is not sees_the_future


def test_positions_are_relative_but_know_the_length() -> None:
    positions = Positions(16)
    short, long = positions(5, 4, 4), positions(9, 4, 4)
    assert short.shape == (5, 16, 16)
    space = short[:, 1] - short[:, 0]
    assert torch.allclose(space, (long[:, 1] - long[:, 0])[:5], atol=1e-5)  # the picture's part is the same
    assert not torch.allclose(short[-1], long[-1], atol=1e-4)  # the last frame, but of another length


def test_an_unknown_temporal_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown temporal attention"):
        _dit(temporal_attention="sideways")
