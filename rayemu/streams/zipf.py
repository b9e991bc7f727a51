"""Zipf-distributed tokens: few are very frequent, as in natural text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from rayemu.streams.draw import drawn, zipf_mass
from rayemu.streams.embedding import check_common, embed, require


@dataclass(frozen=True)
class Zipf:
    """Independent tokens where id v has probability proportional to 1 / (v + 1)^alpha.

    `vocabulary` is the number of ids, `alpha` the skew (0 is uniform, natural text is near 1), `context` how
    much of the previous activation stays in the next (0 to below 1).
    """

    vocabulary: int = 32768
    alpha: float = 1.1
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        require(0 <= self.alpha <= 20, "alpha", self.alpha, "0 to 20")

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64."""
        return drawn(repeat(zipf_mass(self.vocabulary, self.alpha)), batch_tokens, seed)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)
