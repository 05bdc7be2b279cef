"""The text side: a tokeniser over a fixed list of words, and a small transformer that reads them.

Shapes: B batch, L tokens (always the maximum, padded), D width of the text features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitascope_models.attention import Attention

PAD, BEGIN, UNKNOWN = "<pad>", "<bos>", "<unk>"
SPECIAL_TOKENS = (PAD, BEGIN, UNKNOWN)
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Conditioning:
    """What a prompt means to the video model; fp32, on the encoder's device."""

    tokens_LD: Tensor
    mask_L: Tensor  # bool, True where a token is
    pooled_D: Tensor


class Tokenizer:
    """Turn text into ids: the words of a fixed vocabulary, everything else `<unk>`."""

    def __init__(self, words: Sequence[str], max_tokens: int = 40) -> None:
        """Take the vocabulary, in the order of its ids after the special tokens.

        Raises:
            ValueError: a word twice, or one that no text can contain.
        """
        self.max_tokens = max_tokens
        self._ids = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *words))}
        if len(self._ids) != len(words) + len(SPECIAL_TOKENS):
            raise ValueError("the vocabulary holds a word twice")
        for word in words:
            if not _WORD.fullmatch(word):
                raise ValueError(f"the vocabulary holds {word!r}, which is not a lower-case word")

    def __len__(self) -> int:
        """Count ids, the special ones included."""
        return len(self._ids)

    def ids(self, text: str) -> list[int]:
        """Give `<bos>` and one id per word, cut at `max_tokens`; an empty text is `<bos>` alone."""
        unknown = self._ids[UNKNOWN]
        words = [self._ids.get(word, unknown) for word in _WORD.findall(text.lower())]
        return [self._ids[BEGIN], *words][: self.max_tokens]

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Give ids, int64 (B, L), and mask, bool (B, L), padded to `max_tokens`."""
        ids_BL = torch.zeros(len(texts), self.max_tokens, dtype=torch.int64)
        mask_BL = torch.zeros(len(texts), self.max_tokens, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids = self.ids(text)
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            mask_BL[row, : len(ids)] = True
        return ids_BL, mask_BL


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
    """A small transformer over words; gives features per token, and their mean as the sentence's."""

    def __init__(
        self, vocabulary: Sequence[str], width: int = 192, num_layers: int = 3, num_heads: int = 6, max_tokens: int = 40
    ) -> None:
        """Build the network for a vocabulary (words in the order of their ids)."""
        super().__init__()
        self.width = width
        self.tokenizer = Tokenizer(vocabulary, max_tokens)
        self.word = nn.Embedding(len(self.tokenizer), width)
        self.position = nn.Parameter(0.02 * torch.randn(max_tokens, width))
        self.blocks = nn.ModuleList(TextBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.word.weight, std=0.3)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give features (B, L, D) and their mean over the real tokens (B, D); any L up to the maximum."""
        x_BLD = self.word(ids_BL) + self.position[: ids_BL.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_BL[:, None, None, :])
        x_BLD = self.norm(x_BLD) * mask_BL[..., None]
        pooled_BD = x_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
        return x_BLD, pooled_BD

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """Read one prompt; the empty one is the unconditional (or neutral negative) conditioning."""
        device = self.position.device
        ids_BL, mask_BL = (each.to(device) for each in self.tokenizer.batch([prompt]))
        tokens_BLD, pooled_BD = self(ids_BL, mask_BL)
        return Conditioning(tokens_BLD[0].float(), mask_BL[0], pooled_BD[0].float())
