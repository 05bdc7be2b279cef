"""The transformer: shapes, sizes and lengths, what its temporal attention lets through, and what it is told."""

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


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 8, 8), (3, 8, 8), (5, 4, 12), (9, 12, 4), (13, 2, 6)])
def test_the_same_weights_draw_any_length_and_aspect_ratio(num_frames: int, height: int, width: int) -> None:
    _, *rest = _inputs(5)
    latents = torch.randn(2, 4, num_frames, height, width)
    velocity = _dit()(latents, *rest)
    assert velocity.shape == latents.shape
    assert bool(torch.isfinite(velocity).all())


def test_latents_of_odd_sides_are_refused() -> None:
    _, *rest = _inputs(5)
    with pytest.raises(ValueError, match="even sides, not 5x4"):
        _dit()(torch.randn(2, 4, 3, 5, 4), *rest)


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


@pytest.mark.parametrize("mode", ["full", "causal", "window"])
def test_the_temporal_attention_can_be_chosen_at_run_time(mode: str) -> None:
    dit, inputs = _dit(window=2), _inputs(5)
    other = _dit(temporal_attention=mode, window=2)
    other.load_state_dict(dit.state_dict())
    assert torch.equal(dit(*inputs, temporal=mode), other(*inputs))
    assert torch.equal(dit(*inputs, temporal=mode), dit(*inputs)) is (mode == "full")
    with pytest.raises(ValueError, match="unknown temporal attention"):
        dit(*inputs, temporal="sideways")


def test_a_window_is_full_attention_while_the_clip_fits_into_it() -> None:
    dit = _dit(window=4)
    short, long = _inputs(4), _inputs(5)
    assert torch.equal(dit(*short, temporal="window"), dit(*short))
    assert not torch.allclose(dit(*long, temporal="window"), dit(*long), atol=1e-5)


def test_an_anchor_is_seen_from_afar_and_its_neighbour_is_not() -> None:
    dit, inputs = _dit(num_layers=1, window=1, num_anchors=1), _inputs(9)
    before = dit(*inputs, temporal="window")
    for changed_frame, frames_that_see_it in ((0, range(9)), (1, range(1, 2))):
        changed = [inputs[0].clone(), *inputs[1:]]
        changed[0][:, :, changed_frame] += 1.0
        after = dit(*changed, temporal="window")
        seen = [t for t in range(9) if not torch.equal(before[:, :, t], after[:, :, t])]
        assert seen == list(frames_that_see_it)


def test_a_causal_frame_sees_all_before_it_and_none_after() -> None:
    dit, inputs = _dit(), _inputs(6)
    before = dit(*inputs, temporal="causal")
    for changed_frame in range(6):
        changed = [inputs[0].clone(), *inputs[1:]]
        changed[0][:, :, changed_frame] += 1.0
        after = dit(*changed, temporal="causal")
        seen = [t for t in range(6) if not torch.equal(before[:, :, t], after[:, :, t])]
        assert seen == list(range(changed_frame, 6))


def test_each_part_of_a_condition_matters_and_an_empty_one_does_not() -> None:
    dit, inputs = _dit(), _inputs(5)
    condition = torch.zeros(2, 6, 5, 8, 4)
    before = dit(*inputs)
    torch.testing.assert_close(dit(*inputs, condition), before, rtol=0, atol=1e-6)
    for channel in range(6):
        changed = condition.clone()
        changed[:, channel, 2] = 1.0
        assert not torch.allclose(dit(*inputs, changed), before, atol=1e-4), channel


def test_an_untrained_condition_has_no_effect() -> None:
    dit = DiT(latent_channels=4, width=32, num_layers=1, num_heads=4, text_width=16)
    assert not dit.condition_in.weight.any()


@pytest.mark.parametrize(("width", "num_heads"), [(32, 5), (24, 4)])
def test_heads_whose_width_cannot_turn_in_two_directions_are_refused(width: int, num_heads: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        _dit(width=width, num_heads=num_heads)


def test_positions_are_relative_but_know_the_length() -> None:
    positions = Positions(16)
    short, long = positions(5, 4, 4), positions(9, 4, 4)
    assert short.shape == (5, 16, 16)
    space = short[:, 1] - short[:, 0]
    assert torch.allclose(space, (long[:, 1] - long[:, 0])[:5], atol=1e-5)  # the picture's part is the same
    assert not torch.allclose(short[-1], long[-1], atol=1e-4)  # the last frame, but of another length
    wide = positions(5, 4, 8).unflatten(1, (4, 8))
    assert not torch.allclose(short.unflatten(1, (4, 4))[:, 0, 0], wide[:, 0, 0], atol=1e-4)  # and the size


def test_an_unknown_temporal_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown temporal attention"):
        _dit(temporal_attention="sideways")
