"""Token ids to activations: a seeded embedding table and a running context.

Shapes: T tokens of a batch, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

# What random numbers are for: the same seed must not give related ones.
TOKENS, EMBEDDING, ERAS, LEANINGS = 0, 1, 4, 6
MOST = 2**24  # token ids, and the largest whole number that a stream takes


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError that starts with the parameter's name, unless its value holds."""
    if not holds:
        raise ValueError(f"{name}: {value!r} is not allowed; allowed: {allowed}")


def check_common(vocabulary: int, context: float) -> None:
    """Refuses what no stream can work with. The messages start with the parameter's name."""
    require(1 <= vocabulary <= MOST, "vocabulary", vocabulary, f"1 to {MOST} token ids")
    require(0 <= context < 1, "context", context, "0 up to, but not including, 1")


def check_count(name: str, value: int, what: str) -> None:
    """Refuse a number of things that is not from 1 up."""
    require(1 <= value <= MOST, name, value, f"1 to {MOST} {what}")


def check_share(share: float) -> None:
    """Refuse a share of the tokens that is nothing, or more than all."""
    require(0 < share <= 1, "share", share, "more than 0, up to 1")


class Embedding:
    """A table of V rows, N(0, 1) each, drawn from the seed when a token is first seen.

    Row v is a function of (seed, v, D) alone, so it does not depend on which tokens came before it.
    """

    def __init__(self, vocabulary: int, d_model: int, seed: int) -> None:
        key = np.random.SeedSequence([seed, EMBEDDING]).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._generator = np.random.Generator(self._bits)
        self._blank = self._bits.state
        self._row_of_token = np.full(vocabulary, -1, dtype=np.int32)  # [V]
        self._table = np.empty((256, d_model), dtype=np.float32)
        self._filled = 0

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """The embeddings [T, D] float32 of token ids [T], in a new array."""
        seen = self._row_of_token[tokens]  # [T]
        if (seen < 0).any():
            for token in np.unique(tokens[seen < 0]).tolist():
                self._draw(token)
            seen = self._row_of_token[tokens]
        return self._table[seen]

    def _draw(self, token: int) -> None:
        if self._filled == len(self._table):
            grown = np.empty((2 * self._filled, self._table.shape[1]), dtype=np.float32)
            grown[: self._filled] = self._table
            self._table = grown
        # Philox is counter-based: every token gets 2**64 numbers of its own.
        self._blank["state"]["counter"][:] = (0, token, 0, 0)
        self._bits.state = self._blank
        self._generator.standard_normal(dtype=np.float32, out=self._table[self._filled])
        self._row_of_token[token] = self._filled
        self._filled += 1


def embed(
    batches: Iterable[np.ndarray], vocabulary: int, d_model: int, seed: int, context: float
) -> Iterator[np.ndarray]:
    """Turns batches of token ids [T] into activations x [T, D] float32, mixing in what came before.

    With e_t the embedding of token t: x_0 = e_0 and x_t = sqrt(1 - context^2) e_t + context x_{t-1}, over
    batch borders too. Every x_t has unit variance, and neighbours correlate by `context` where their tokens
    are independent. The rows do not depend on where the stream is cut into batches.
    """
    return mixed(map(Embedding(vocabulary, d_model, seed).rows, batches), context)


def mixed(batches: Iterable[np.ndarray], context: float) -> Iterator[np.ndarray]:
    """As `embed`, of batches of embeddings [T, D] float32, which are written to."""
    keep, fresh = np.float32(context), np.float32(math.sqrt(1 - context**2))
    previous: np.ndarray | None = None  # [D]
    for x in batches:
        if context and len(x):
            # A recurrence over rows. One cached pass; NumPy's ways to do it at once take several over x.
            start = 0 if previous is not None else 1
            x[start:] *= fresh
            last = x[0] if previous is None else previous
            carried = np.empty_like(last)
            for row in x[start:]:
                np.multiply(last, keep, out=carried)
                row += carried
                last = row
            previous = last.copy()  # the receiver may write into x
        yield x
