"""Bursts of a few tokens in ordinary traffic: load that comes and goes within a batch or a few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.streams.draw import zipf_mass
from rayemu.streams.embedding import TOKENS, check_common, check_count, check_share, embed, require

_PIECE = 4096  # tokens that are drawn at once


@dataclass(frozen=True)
class Bursty:
    """Zipf's law, interrupted by bursts: runs of tokens that are all from a few ids, the burst's topic.

    Lengths of bursts, and of what is between them, are geometric: bursts have `length` tokens on average, and
    hold `share` of all tokens. Every burst draws a topic of `topic` ids anew, of which each token is one.
    `vocabulary` is the number of ids, `alpha` the skew between bursts, `context` how much of the previous
    activation stays in the next (0 to below 1).
    """

    vocabulary: int = 32768
    alpha: float = 1.1
    topic: int = 4
    length: int = 256
    share: float = 0.5
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        require(0 <= self.alpha <= 20, "alpha", self.alpha, "0 to 20")
        check_count("topic", self.topic, "ids")
        check_count("length", self.length, "tokens")
        check_share(self.share)

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64."""
        return _cut(self._pieces(np.random.default_rng([seed, TOKENS])), batch_tokens)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)

    def _pieces(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Quiet pieces and bursts by turns, of token ids [n]."""
        edges = np.cumsum(zipf_mass(self.vocabulary, self.alpha))  # [V]
        between = self.length * (1 - self.share) / self.share  # mean tokens between two bursts
        while True:
            for size in _pieces_of(int(rng.geometric(1 / (1 + between))) - 1):
                ids = np.searchsorted(edges, rng.random(size) * edges[-1], side="right")
                yield np.minimum(ids, self.vocabulary - 1)
            topic = rng.integers(self.vocabulary, size=min(self.topic, self.vocabulary))
            for size in _pieces_of(int(rng.geometric(1 / self.length))):
                yield topic[rng.integers(len(topic), size=size)]


def _pieces_of(tokens: int) -> Iterator[int]:
    """Sizes that add up to a number of tokens, none too large for the memory."""
    for start in range(0, tokens, _PIECE):
        yield min(_PIECE, tokens - start)


def _cut(pieces: Iterable[np.ndarray], batch_tokens: int) -> Iterator[np.ndarray]:
    """The tokens of pieces of any length, in batches [T]."""
    batch, filled = np.empty(batch_tokens, np.int64), 0
    for piece in pieces:
        while len(piece):
            taken = piece[: batch_tokens - filled]
            batch[filled : filled + len(taken)] = taken
            filled, piece = filled + len(taken), piece[len(taken) :]
            if filled == batch_tokens:
                yield batch
                batch, filled = np.empty(batch_tokens, np.int64), 0
