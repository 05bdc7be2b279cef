"""From a card's files to modules, and what is said when they do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitascope_common.errors import InvalidModelError
from vitascope_models.load import load_dit, load_text_encoder, load_vae, random_weights
from vitascope_models.text import TextEncoder


@pytest.fixture
def card(small_card: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return random_weights(small_card, tmp_path, seed=1)


def test_random_weights_load_and_run(card: dict[str, Any], tmp_path: Path) -> None:
    vae, text_encoder, dit = load_vae(tmp_path, card), load_text_encoder(tmp_path, card), load_dit(tmp_path, card)
    conditioning = text_encoder.encode("a red circle")
    latents = torch.randn(1, *vae.latent_shape(5, 16, 16))
    with torch.no_grad():
        velocity = dit(
            latents, torch.ones(1), conditioning.tokens_LD[None], conditioning.mask_L[None], conditioning.pooled_D[None]
        )
    assert velocity.abs().min() > 0
    assert torch.cat(list(vae.decode_stream(latents))).shape == (5, 16, 16, 3)
    assert vae.preview(latents).unique().numel() > 10
    assert not text_encoder.encode("a red circle").tokens_LD[4:].any()
    assert isinstance(text_encoder, TextEncoder)
    for module in (vae, text_encoder, dit):
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())


def test_random_weights_repeat_and_describe_their_files(small_card: dict[str, Any], tmp_path: Path) -> None:
    first = random_weights(small_card, tmp_path / "first", seed=1)
    again = random_weights(small_card, tmp_path / "again", seed=1)
    other = random_weights(small_card, tmp_path / "other", seed=2)
    assert first == again
    assert first["files"]["dit"]["sha256"] != other["files"]["dit"]["sha256"]
    for file in first["files"].values():
        assert (tmp_path / "first" / file["path"]).stat().st_size == file["num_bytes"]


def test_the_cards_temporal_attention_is_used(card: dict[str, Any], tmp_path: Path) -> None:
    assert load_dit(tmp_path, card | {"attention": {"temporal": "causal"}}).temporal_attention == "causal"
    windowed = load_dit(tmp_path, card | {"attention": {"temporal": "window", "window": 3, "num_anchors": 2}})
    assert (windowed.temporal_attention, windowed.window, windowed.num_anchors) == ("window", 3, 2)
    with pytest.raises(InvalidModelError, match="unknown temporal attention"):
        load_dit(tmp_path, card | {"attention": {"temporal": "sideways"}})
    with pytest.raises(InvalidModelError, match="window must be at least 1"):
        load_dit(tmp_path, card | {"attention": {"temporal": "window", "window": 0}})


def test_missing_and_strange_tensors_are_named(card: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "dit.safetensors"
    tensors = load_file(path)
    tensors["stranger"] = tensors.pop("patch_in.bias")
    save_file(tensors, path)
    with pytest.raises(InvalidModelError, match=r"patch_in\.bias is missing; stranger is not part of it"):
        load_dit(tmp_path, card)


def test_a_tensor_of_another_shape_is_named(card: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(load_file(path) | {"latent_mean": torch.zeros(5)}, path)
    with pytest.raises(InvalidModelError, match=r"latent_mean has shape \[5\] instead of \[4\]"):
        load_vae(tmp_path, card)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_an_unreadable_file_is_named(card: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vae.safetensors").write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"vae\.safetensors of model tiny cannot be read"):
        load_vae(tmp_path, card)


def test_absent_files_are_named(card: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "dit.safetensors").unlink()
    with pytest.raises(InvalidModelError, match="cannot be read"):
        load_dit(tmp_path, card)


def test_a_shipped_vae_without_a_preview_is_refused(card: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != "preview_weight"}, path)
    with pytest.raises(InvalidModelError, match="preview_weight is missing"):
        load_vae(tmp_path, card)


def test_the_card_says_which_text_encoder_it_wants(card: dict[str, Any], tmp_path: Path) -> None:
    def wanting(kind: str) -> dict[str, Any]:
        architecture = card["architecture"]
        return card | {"architecture": architecture | {"text_encoder": architecture["text_encoder"] | {"type": kind}}}

    ours, unnamed = load_text_encoder(tmp_path, wanting("ngram")), load_text_encoder(tmp_path, card)
    assert torch.equal(ours.encode("a red circle").tokens_LD, unnamed.encode("a red circle").tokens_LD)
    with pytest.raises(InvalidModelError, match="Model tiny wants a text encoder of type 'oracle'; there are: ngram"):
        load_text_encoder(tmp_path, wanting("oracle"))


def test_a_text_encoder_of_another_size_does_not_fit(card: dict[str, Any], tmp_path: Path) -> None:
    architecture = card["architecture"]
    other = architecture | {"text_encoder": architecture["text_encoder"] | {"num_buckets": 100}}
    with pytest.raises(InvalidModelError, match=r"ngram\.weight has shape"):
        load_text_encoder(tmp_path, card | {"architecture": other})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": {}}, "no architecture for dit"),
        ({"architecture": {"dit": {"depth": 3}}}, "not one of ours"),
        ({"files": {}}, "no file for dit"),
    ],
)
def test_a_card_that_says_too_little_is_refused(
    card: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidModelError, match=message):
        load_dit(tmp_path, card | change)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dit", {"num_heads": 0}),
        ("dit", {"width": -32}),
        ("dit", {"width": [32]}),
        ("dit", {"num_layers": "two"}),
        ("vae", {"widths": [16, -12, 8]}),
        ("vae", {"widths": 16}),
        ("vae", {"latent_channels": -4}),
        ("text_encoder", {"num_heads": 0}),
        ("text_encoder", {"num_heads": 3}),
        ("text_encoder", {"width": -16}),
        ("text_encoder", {"num_buckets": [8]}),
        ("text_encoder", {"type": ["ngram"]}),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(
    card: dict[str, Any], tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    load = {"vae": load_vae, "text_encoder": load_text_encoder, "dit": load_dit}[name]
    changed = card["architecture"] | {name: card["architecture"][name] | change}
    with pytest.raises(InvalidModelError, match=r"of model tiny is not one of ours|Model tiny wants"):
        load(tmp_path, card | {"architecture": changed})


@pytest.mark.parametrize("change", [{"architecture": ["dit"]}, {"attention": "full"}])
def test_a_card_of_another_form_is_refused(card: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidModelError):
        load_dit(tmp_path, card | change)
