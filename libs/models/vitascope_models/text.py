"""The text side: words by their character n-grams, and a small transformer that reads them.

There is no list of words. A word is the mean of the vectors of its n-grams (Bojanowski et al. 2017) and of itself as a
whole, each found by a hash, so that a word never seen before means about what its pieces mean: "stripy" is near
"striped", and nothing is an error.

Shapes: B batch, L tokens (padded), G n-grams per word (padded), D width of the text features.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vitascope_models.attention import Attention

_WORD = re.compile(r"[^\W_]+")
_MAX_NGRAMS = 20
_BEGIN = "\n"  # no word contains it


@dataclass(frozen=True)
class Conditioning:
    """What a prompt means to the video model; fp32, on the encoder's device."""

    tokens_LD: Tensor
    mask_L: Tensor  # bool, True where a token is
    pooled_D: Tensor


class PromptEncoder(Protocol):
    """What reads prompts for a video model; `TextEncoder` is one, and so may be any other language model."""

    def encode(self, prompt: str) -> Conditioning:
        """Read one prompt; the empty one is what guidance leads away from, unless a negative prompt is given."""
        ...


class Tokenizer:
    """Turn text into words, and each word into the hashes of its pieces: whole, and in 3 and 4 characters."""

    def __init__(self, num_buckets: int = 8192, max_tokens: int = 40) -> None:
        """Hash into `num_buckets` buckets, numbered from 1; 0 is padding.

        Raises:
            ValueError: no bucket, or no room for a word.
        """
        if num_buckets < 1 or max_tokens < 1:
            raise ValueError(f"needs at least one bucket and one token, not {num_buckets} and {max_tokens}")
        self.num_buckets = num_buckets
        self.max_tokens = max_tokens

    def words(self, text: str) -> list[str]:
        """Give the begin mark and the text's words, lower-case and in compatibility form, cut at `max_tokens`.

        A word is a run of letters and digits of any script; what stands between words (blanks, punctuation, emoji) is
        left out.
        """
        found = _WORD.finditer(unicodedata.normalize("NFKC", text).casefold())
        return [_BEGIN, *(match.group() for match in itertools.islice(found, self.max_tokens - 1))]

    def batch(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Give n-gram ids, int64 (B, L, G), and mask, bool (B, L), padded to `length` tokens or the longest text."""
        rows = [[_hashed(word, self.num_buckets) for word in self.words(text)] for text in texts]
        num_tokens = length or max(len(row) for row in rows)
        ids_BLG = torch.zeros(len(texts), num_tokens, _MAX_NGRAMS, dtype=torch.int64)
        mask_BL = torch.zeros(len(texts), num_tokens, dtype=torch.bool)
        for b, row in enumerate(rows):
            ids_BLG[b, : len(row)] = torch.tensor(row)
            mask_BL[b, : len(row)] = True
        return ids_BLG, mask_BL


@functools.lru_cache(maxsize=20_000)
def _hashed(word: str, num_buckets: int) -> list[int]:
    """Give the ids of a word's pieces, G of them; what a long word has beyond that is left out."""
    ids = [1 + zlib.crc32(piece.encode()) % num_buckets for piece in itertools.islice(_pieces(word), _MAX_NGRAMS)]
    return ids + [0] * (_MAX_NGRAMS - len(ids))


def _pieces(word: str) -> Iterator[str]:
    """Give the word as a whole, then its runs of 3 characters, then of 4; its ends are marked."""
    marked = f"<{word}>"
    yield marked
    for length in (3, 4):
        if length < len(marked):
            yield from (marked[i : i + length] for i in range(len(marked) - length + 1))


class TextBlock(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        """Read the sentence once."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), mask)
        y: Tensor = self.mlp_out(nn.functional.silu(self.mlp_in(self.mlp_norm(x_BLD))))
        return x_BLD + y


class TextEncoder(nn.Module):
    """A small transformer over words; gives features per token, and their mean as the sentence's.

    Row 0 of `ngram` is padding and stays 0.
    """

    def __init__(
        self,
        width: int = 192,
        num_layers: int = 3,
        num_heads: int = 6,
        max_tokens: int = 40,
        num_buckets: int = 8192,
    ) -> None:
        """Build the network."""
        super().__init__()
        self.width = width
        self.tokenizer = Tokenizer(num_buckets, max_tokens)
        self.ngram = nn.Embedding(num_buckets + 1, width, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(max_tokens, width))
        self.blocks = nn.ModuleList(TextBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.ngram.weight, std=0.5)
        nn.init.zeros_(self.ngram.weight[0])

    def forward(self, ids_BLG: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give features (B, L, D) and their mean over the real tokens (B, D); any L up to the maximum."""
        num_pieces = (ids_BLG > 0).sum(dim=-1, keepdim=True).clamp(min=1)
        x_BLD: Tensor = self.ngram(ids_BLG).sum(dim=2) / num_pieces + self.position[: ids_BLG.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_BL[:, None, None, :])
        x_BLD = self.norm(x_BLD) * mask_BL[..., None]
        pooled_BD = x_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
        return x_BLD, pooled_BD

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """Read one prompt; the empty one is the unconditional (or neutral negative) conditioning."""
        device = self.position.device
        batch = self.tokenizer.batch([prompt], self.tokenizer.max_tokens)
        ids_BLG, mask_BL = (each.to(device) for each in batch)
        tokens_BLD, pooled_BD = self(ids_BLG, mask_BL)
        return Conditioning(tokens_BLD[0].float(), mask_BL[0], pooled_BD[0].float())
