"""The tokeniser and the text encoder."""

import pytest
import torch

from vitascope_models.text import TextEncoder, Tokenizer

WORDS = ("a", "ball", "red", "4k")


def test_words_become_ids_and_strangers_unknown() -> None:
    tokenizer = Tokenizer(WORDS)
    assert tokenizer.ids("A RED ball, 4K!") == [1, 3, 5, 4, 6]
    assert tokenizer.ids("a blue ball") == [1, 3, 2, 4]
    assert tokenizer.ids("été ☃") == [1, 2]  # the letter between two foreign ones is a word that nobody knows
    assert tokenizer.ids("") == [1]
    assert len(tokenizer) == 7


def test_long_texts_are_cut() -> None:
    assert Tokenizer(WORDS, max_tokens=5).ids("red " * 50) == [1, 5, 5, 5, 5]
    assert len(Tokenizer(WORDS).ids("red " * 2000)) == 40


@pytest.mark.parametrize("words", [("a", "a"), ("a", "Red"), ("a", "two words"), ("<unk>",)])
def test_a_bad_vocabulary_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Tokenizer(words)


def test_a_prompt_becomes_padded_tokens_a_mask_and_a_mean() -> None:
    encoder = TextEncoder(WORDS, width=16, num_layers=2, num_heads=4, max_tokens=10).eval()
    conditioning = encoder.encode("a red ball")
    assert conditioning.tokens_LD.shape == (10, 16)
    assert conditioning.tokens_LD.dtype == torch.float32
    assert conditioning.mask_L.tolist() == [True] * 4 + [False] * 6
    assert torch.allclose(conditioning.pooled_D, conditioning.tokens_LD[:4].mean(dim=0), atol=1e-6)
    assert not conditioning.tokens_LD[4:].any()


def test_the_same_prompt_is_the_same_and_another_is_not() -> None:
    encoder = TextEncoder(WORDS, width=16, num_layers=2, num_heads=4, max_tokens=10).eval()
    assert torch.equal(encoder.encode("a red ball").tokens_LD, encoder.encode("A  red ball.").tokens_LD)
    assert not torch.allclose(encoder.encode("a red ball").pooled_D, encoder.encode("").pooled_D, atol=1e-4)
