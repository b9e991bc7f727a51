"""A few hot tokens, and suddenly others: the load that makes a plan wrong from one batch to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat

import numpy as np

from rayemu.streams.draw import drawn, era_rng, hot_mass
from rayemu.streams.embedding import check_common, check_count, check_share, embed


@dataclass(frozen=True)
class HotSwitch:
    """Most tokens are a few hot ids, which are drawn anew after every so many batches.

    `share` of the tokens are one of `hot` ids, equally often; the others any id. After `every` batches other
    ids are hot. The fewer they are, the fewer experts they load. `vocabulary` is the number of ids, `context`
    how much of the previous activation stays in the next (0 to below 1).
    """

    vocabulary: int = 32768
    hot: int = 4
    share: float = 0.8
    every: int = 20
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        check_count("hot", self.hot, "ids")
        check_share(self.share)
        check_count("every", self.every, "batches")

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64."""
        return drawn(self._masses(seed), batch_tokens, seed)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)

    def _masses(self, seed: int) -> Iterator[np.ndarray]:
        """The mass of each id [V], batch after batch."""
        for era in count():
            number = min(self.hot, self.vocabulary)
            hot = era_rng(seed, era).choice(self.vocabulary, number, replace=False)
            yield from repeat(hot_mass(self.vocabulary, hot, self.share), self.every)
