"""The tokeniser and the text encoder."""

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vitascope_models.text import TextEncoder, Tokenizer


@pytest.fixture
def encoder() -> TextEncoder:
    return TextEncoder(width=16, num_layers=2, num_heads=4, max_tokens=10, num_buckets=512).eval()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A RED ball, 4K!", ["a", "red", "ball", "4k"]),
        ("", []),
        (" \n\t…!?", []),
        ("🔴 a red 🏀-like_ball 👩‍🚀", ["a", "red", "like", "ball"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ｒｅｄ ①", ["red", "1"]),
        ("ein grüner Kreis", ["ein", "grüner", "kreis"]),
        ("красный круг", ["красный", "круг"]),
        ("赤い丸", ["赤い丸"]),
        ("red\ud800ball\x00", ["red", "ball"]),
    ],
)
def test_a_text_of_any_script_becomes_words(text: str, words: list[str]) -> None:
    tokenizer = Tokenizer(num_buckets=512)
    assert tokenizer.words(text)[1:] == words
    ids_BLG, mask_BL = tokenizer.batch([text])
    assert mask_BL.tolist() == [[True] * (1 + len(words))]
    assert int(ids_BLG.max()) <= 512
    assert bool((ids_BLG[..., 0] > 0).all())


def test_one_letter_in_two_spellings_is_one_letter() -> None:
    tokenizer = Tokenizer()
    assert tokenizer.words("gru\u0308n") == tokenizer.words("gr\u00fcn")


def test_long_texts_and_long_words_are_cut() -> None:
    tokenizer = Tokenizer(max_tokens=5)
    assert len(tokenizer.words("red " * 1_000_000)) == 5
    ids_BLG, _ = tokenizer.batch(["ab" * 1_000_000])
    assert ids_BLG.shape[1] == 2
    assert bool((ids_BLG[0, 1] > 0).all())
    assert Tokenizer(max_tokens=1).batch(["red ball"])[0].shape[1] == 1


def test_trained_weights_find_their_pieces_again() -> None:
    """A change of these numbers makes all weights worthless."""
    ids_BLG, _ = Tokenizer(num_buckets=8192).batch(["red"])
    assert ids_BLG[0, 0, :2].tolist() == [4296, 0]
    assert ids_BLG[0, 1, :7].tolist() == [4175, 2886, 8080, 978, 7833, 3529, 0]


def test_a_batch_is_padded_to_the_longest_or_as_told() -> None:
    tokenizer = Tokenizer(max_tokens=6)
    ids_BLG, mask_BL = tokenizer.batch(["a red ball", ""])
    assert mask_BL.tolist() == [[True] * 4, [True] + [False] * 3]
    assert not ids_BLG[1, 1:].any()
    assert tokenizer.batch(["a"], length=6)[1].shape == (1, 6)


@pytest.mark.parametrize(("num_buckets", "max_tokens"), [(0, 4), (4, 0)])
def test_no_bucket_and_no_token_are_refused(num_buckets: int, max_tokens: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Tokenizer(num_buckets, max_tokens)


def test_an_unknown_word_lies_near_what_it_resembles() -> None:
    encoder = TextEncoder(width=64, num_layers=1, num_heads=4).requires_grad_(False)

    def vector(word: str) -> Tensor:
        ids_BLG, _ = encoder.tokenizer.batch([word])
        pieces_summed: Tensor = encoder.ngram(ids_BLG)[0, 1].sum(dim=0)
        return pieces_summed

    def nearness(one: str, other: str) -> float:
        return float(functional.cosine_similarity(vector(one), vector(other), dim=0))

    assert nearness("stripy", "striped") > nearness("stripy", "banana") + 0.3
    assert nearness("bouncy", "bouncing") > nearness("bouncy", "circle") + 0.3


def test_a_prompt_becomes_padded_tokens_a_mask_and_a_mean(encoder: TextEncoder) -> None:
    conditioning = encoder.encode("a red ball")
    assert conditioning.tokens_LD.shape == (10, 16)
    assert conditioning.tokens_LD.dtype == torch.float32
    assert conditioning.mask_L.tolist() == [True] * 4 + [False] * 6
    assert torch.allclose(conditioning.pooled_D, conditioning.tokens_LD[:4].mean(dim=0), atol=1e-6)
    assert not conditioning.tokens_LD[4:].any()


def test_the_same_prompt_is_the_same_and_another_is_not(encoder: TextEncoder) -> None:
    assert torch.equal(encoder.encode("a red ball").tokens_LD, encoder.encode("A  red ball.").tokens_LD)
    assert not torch.allclose(encoder.encode("a red ball").pooled_D, encoder.encode("").pooled_D, atol=1e-4)
    assert not torch.allclose(
        encoder.encode("a red ball on blue").pooled_D, encoder.encode("a blue ball on red").pooled_D, atol=1e-4
    )


def test_what_a_prompt_means_does_not_depend_on_its_padding(encoder: TextEncoder) -> None:
    short, long = (encoder(*encoder.tokenizer.batch(["a red ball"], length)) for length in (4, 10))
    torch.testing.assert_close(short[0], long[0][:, :4], rtol=0, atol=1e-5)
    torch.testing.assert_close(short[1], long[1], rtol=0, atol=1e-5)


def test_an_encoder_can_be_copied_and_sent_to_another_process(encoder: TextEncoder) -> None:
    expected = encoder.encode("a red ball").tokens_LD
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other.encode("a red ball").tokens_LD, expected)
