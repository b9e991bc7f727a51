"""Which experts the tokens of a plan go to: as its own model would choose, or drawn by their popularity.

T tokens of all batches asked for, K choices, E experts, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from rayemu.model.model import Model
from rayemu.model.reference import finish, moe_forward, prepare, route
from rayemu.model.spec import ModelSpec
from rayemu.numerics import F32, denormals_kept

Array = np.ndarray


@denormals_kept()
def chosen_by_model(model: Model, batches: Iterable[F32]) -> list[list[Array]]:
    """Return the choices [T, K] of each batch x [T, D] in each layer (none in dense ones), to the bit.

    This computes the whole stack.
    """
    found = []
    for h in batches:
        layers: list[Array] = []
        for layer in model.layers:
            x = prepare(layer, h)
            layers.append(route(layer, x).experts if layer.has_experts else np.zeros((len(x), 0), np.int32))
            h = finish(layer, h, moe_forward(layer, x))
        found.append(layers)
    return found


class Drawn:
    """Independent choices: each token's K different experts, one after the other by popularity.

    `shares(batch)` [E] is how often experts are chosen first; which expert is how popular is another order
    in every layer if `shuffled`. A router that opens only some groups does so here too: a token's groups are
    drawn by what their experts have together.
    """

    def __init__(
        self, spec: ModelSpec, batch_tokens: int, shares: Callable[[int], Array], seed: int, shuffled: bool
    ) -> None:
        self.spec, self.tokens, self.shares, self.seed = spec, batch_tokens, shares, seed
        params = spec.router_params
        self.groups, self.open = int(params.get("groups", 1)), int(params.get("top_groups", 1))
        rng = np.random.default_rng([seed, 2])
        same = np.arange(spec.experts)
        self.order = [rng.permutation(spec.experts) if shuffled else same for _ in range(spec.layers)]

    def __call__(self, batches: range, layer: int) -> Array:
        """Return the choices [n * T, K] of batches in a layer, the same at every call."""
        return np.concatenate([self._batch(batch, layer) for batch in batches])

    def _batch(self, batch: int, layer: int) -> Array:
        rng = np.random.default_rng([self.seed, 3, batch, layer])
        share = np.asarray(self.shares(batch), np.float64)[self.order[layer]]
        group_of = np.arange(self.spec.experts) // (self.spec.experts // self.groups)
        opened = None
        if self.open < self.groups:
            opened = np.zeros((self.tokens, self.groups), bool)
            groups = different(rng, np.bincount(group_of, share), self.tokens, self.open)
            opened[np.arange(self.tokens)[:, None], groups] = True
        return different(rng, share, self.tokens, self.spec.top_k, group_of, opened)


def different(
    rng: np.random.Generator,
    share: Array,
    rows: int,
    count: int,
    group_of: Array | None = None,
    opened: Array | None = None,
) -> Array:
    """Draw `count` different numbers [rows, count], one after the other in proportion to `share` [E].

    With groups only those of which `opened` [rows, G] is true. A number that is taken, or closed, is drawn
    again, which is the same as drawing among those that are left.
    """
    floor = share.max(initial=0.0) * 1e-6  # or what is hardly ever drawn would be waited for
    share = np.maximum(share, floor)
    edges = np.cumsum(share)
    found = np.empty((rows, count), np.int64)
    for place in range(count):
        left = np.arange(rows)
        while len(left):
            drawn = np.searchsorted(edges, rng.random(len(left)) * edges[-1], side="right")
            drawn = np.minimum(drawn, len(share) - 1)
            wrong = (found[left, :place] == drawn[:, None]).any(1)
            if opened is not None and group_of is not None:
                wrong |= ~opened[left, group_of[drawn]]
            found[left, place] = drawn
            left = left[wrong]
    return found
