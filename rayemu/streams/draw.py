"""Independent tokens from a distribution that may change from batch to batch.

Shapes: T tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from rayemu.streams.embedding import ERAS, TOKENS


def drawn(masses: Iterable[np.ndarray], batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of token ids [T] int64: in batch b, id v has probability proportional to masses[b][v].

    Each token takes one random number, so that of a distribution that does not change the tokens do not
    depend on where they are cut into batches.
    """
    rng = np.random.default_rng([seed, TOKENS])
    known, edges, last = None, np.zeros(0), 0
    for mass in masses:  # [V]
        if mass is not known:
            known, edges = mass, np.cumsum(mass)  # [V]
            last = int(np.searchsorted(edges, edges[-1]))  # rounding must not reach an id of no mass
        ids = np.searchsorted(edges, rng.random(batch_tokens) * edges[-1], side="right")
        yield np.minimum(ids, last)


def zipf_mass(vocabulary: int, alpha: float) -> np.ndarray:
    """Zipf's law [V]: the mass of rank r, from 0, is 1 / (r + 1)^alpha."""
    return np.arange(1, vocabulary + 1, dtype=np.float64) ** -alpha


def hot_mass(vocabulary: int, hot: np.ndarray, share: float) -> np.ndarray:
    """[V]: `share` of all tokens are equally often the ids in `hot`, the others any id."""
    mass = np.full(vocabulary, (1 - share) / vocabulary)
    mass[hot] += share / len(hot)
    return mass


def era_rng(seed: int, era: int) -> np.random.Generator:
    """The generator for what is popular in an era of a stream, whichever eras were before it."""
    return np.random.default_rng([seed, ERAS, era])
