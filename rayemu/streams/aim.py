"""Streams that look at the model: which experts a token is sent to is known before it is chosen.

Such a stream has, beside what all streams have,
`check(spec)`: raise ValueError where it cannot be fed to a model, before anything starts; and
`aimed(model, placement, seed)`: the stream of tokens that were chosen for this model, this placement and
embeddings drawn from this seed. It is deterministic, and touches no weights but the first gate and what is
before it. Until then it gives its candidates as they come.

A token's way through the first layer with experts is a function of its id alone as long as `context` is 0:
there is no attention. With a context it is blurred.

Shapes: V candidates, K choices per token, T tokens of a batch, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rayemu.model.model import Model
from rayemu.model.reference import dense_forward, finish, prepare, route
from rayemu.model.spec import ModelSpec
from rayemu.numerics import denormals_kept
from rayemu.placement import Placement
from rayemu.streams.draw import drawn
from rayemu.streams.embedding import Embedding, mixed

_CHUNK = 1024  # candidates that are routed at once


@runtime_checkable
class Aimed(Protocol):
    """A stream whose tokens are chosen by what the model does with them."""

    def check(self, spec: ModelSpec) -> None:
        """Raise ValueError, "parameter: why", where the stream cannot be fed to such a model."""

    def aimed(self, model: Model, placement: Placement, seed: int) -> Chosen:
        """The stream for this model, this placement and embeddings drawn from `seed`."""


@dataclass(frozen=True)
class Chosen:
    """Independent tokens; `mass_of_batch(b)` [V] is how likely each candidate is in batch b.

    `rows` [V, D] float32 are the candidates' embeddings.
    """

    rows: np.ndarray
    mass_of_batch: Callable[[int], np.ndarray]
    context: float = 0.0

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64."""
        return drawn(map(self.mass_of_batch, count()), batch_tokens, seed)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32, of the model and embeddings that it aims at."""
        return mixed((self.rows[tokens] for tokens in self.tokens(batch_tokens, seed)), self.context)


def aim(stream: Any, spec: ModelSpec, placement: Placement, seed: int) -> Any:
    """The stream as it is fed to a model: aimed at it, if it is one that aims."""
    return stream.aimed(Model(spec), placement, seed) if isinstance(stream, Aimed) else stream


def candidates(vocabulary: int, d_model: int, seed: int) -> np.ndarray:
    """The embeddings [V, D] of all ids, those of every stream of this seed."""
    return Embedding(vocabulary, d_model, seed).rows(np.arange(vocabulary))


@denormals_kept()
def first_choices(model: Model, rows: np.ndarray) -> np.ndarray:
    """The experts [V, K] that the first layer with experts chooses for rows [V, D] that enter the model."""
    dense, layer = model.layers[: model.spec.dense_layers], model.layers[model.spec.dense_layers]
    found = []
    for start in range(0, len(rows), _CHUNK):
        h = rows[start : start + _CHUNK]  # [n, D]
        for before in dense:
            h = finish(before, h, dense_forward(before, prepare(before, h)))
        found.append(route(layer, prepare(layer, h)).experts)
    return np.concatenate(found)
