"""Popular tokens that change slowly: a load that a plan falls behind bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from rayemu.streams.draw import drawn, era_rng, zipf_mass
from rayemu.streams.embedding import check_common, check_count, embed, require


@dataclass(frozen=True)
class Drift:
    """Zipf's law over ids whose ranking fades into another one, batch by batch.

    It begins as `zipf` of that skew. Within `every` batches the first ranking fades out and another, in which
    all ids have drawn new ranks, fades in: f of the way, each token comes from the new ranking with
    probability f. Then the next one follows. `vocabulary` is the number of ids, `alpha` the skew, `context`
    how much of the previous activation stays in the next (0 to below 1).
    """

    vocabulary: int = 32768
    alpha: float = 1.3
    every: int = 50
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        require(0 <= self.alpha <= 20, "alpha", self.alpha, "0 to 20")
        check_count("every", self.every, "batches")

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64."""
        return drawn(self._masses(seed), batch_tokens, seed)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)

    def _masses(self, seed: int) -> Iterator[np.ndarray]:
        """The mass of each id [V], batch after batch."""
        law = zipf_mass(self.vocabulary, self.alpha)
        fading = law
        for era in count(1):
            coming = era_rng(seed, era).permutation(law)
            for step in range(self.every):
                part = step / self.every
                yield (1 - part) * fading + part * coming
            fading = coming
