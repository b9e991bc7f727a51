"""Uniformly distributed tokens: the balanced load that a skewed one is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.streams.embedding import TOKENS, check_common, embed


@dataclass(frozen=True)
class Uniform:
    """Independent tokens, every id equally likely.

    `vocabulary` is the number of ids, `context` how much of the previous activation stays in the next (0 to
    below 1).
    """

    vocabulary: int = 32768
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64."""
        rng = np.random.default_rng([seed, TOKENS])
        while True:
            yield rng.integers(self.vocabulary, size=batch_tokens)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)
