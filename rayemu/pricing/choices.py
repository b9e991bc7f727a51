"""Which experts the tokens of a plan go to: as its own model would choose, or drawn by their popularity.

T tokens of all batches asked for, K choices, E experts, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rayemu.model.model import Model
from rayemu.model.reference import finish, moe_forward, prepare, route
from rayemu.model.spec import ModelSpec
from rayemu.numerics import F32, denormals_kept

Array = np.ndarray
_STEPS = 1 << 20
_AGAIN = 8  # so often a row draws again before it draws among what is left


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

    `shares(batch)` [E] is how often experts are chosen first, in steps of a millionth, one at least; which
    expert is how popular is another order in every layer if `shuffled`. A router that opens only some groups
    does so here too: a token's groups are drawn by what their experts have together.
    """

    def __init__(
        self, spec: ModelSpec, batch_tokens: int, shares: Callable[[int], Array], seed: int, shuffled: bool
    ) -> None:
        self.spec, self.tokens, self.shares, self.seed = spec, batch_tokens, shares, seed
        params = spec.router_params
        self.groups, self.open = int(params.get("groups", 1)), int(params.get("top_groups", 1))
        rng = np.random.default_rng([seed, 2])
        same = np.arange(spec.experts)
        self.expert = [rng.permutation(spec.experts) if shuffled else same for _ in range(spec.layers)]
        self.share, self.table = np.zeros(0), table_of(np.ones(1))

    def __call__(self, batches: range, layer: int) -> Array:
        """Return the choices [n * T, K] of batches in a layer, the same at every call."""
        return np.concatenate([self._batch(batch, layer) for batch in batches])

    def _batch(self, batch: int, layer: int) -> Array:
        rng = np.random.default_rng([self.seed, 3, batch, layer])
        share = np.asarray(self.shares(batch), np.float64)
        if share is not self.share:
            self.share, self.table = share, table_of(share)
        expert = self.expert[layer]  # by its rank
        if self.open >= self.groups:
            return expert[different(rng, self.table, self.tokens, self.spec.top_k)]
        group = expert // (self.spec.experts // self.groups)
        together = table_of(np.bincount(group, share, self.groups))
        opened = np.zeros((self.groups, self.tokens), bool)
        groups = different(rng, together, self.tokens, self.open)
        opened[groups, np.arange(self.tokens)[:, None]] = True
        return expert[different(rng, self.table, self.tokens, self.spec.top_k, group, opened)]


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers to draw from: e stands `often[e]` times among `numbers`."""

    often: Array  # [E]
    numbers: Array  # [sum of often], rising


def table_of(share: Array) -> Table:
    """Return a table where number e stands as often as is its share [E], in millionths and once at least."""
    often = np.maximum(np.rint(share * (_STEPS / share.sum())), 1).astype(np.int64)
    narrow = np.min_scalar_type(max(len(share) - 1, 0))  # a table that stays in the processor's cache
    return Table(often, np.repeat(np.arange(len(share), dtype=narrow), often))


def different(
    rng: np.random.Generator,
    table: Table,
    rows: int,
    count: int,
    group: Array | None = None,
    opened: Array | None = None,
) -> Array:
    """Draw `count` different numbers of a table [rows, count], one after the other.

    With `group` [E] and `opened` [G, rows], of groups that are open to the row. A number that is taken or
    closed is drawn again, which is the same as drawing among those that are left; so are, in the end, rows
    that nearly always draw the same.
    """
    numbers = table.numbers
    found = numbers[rng.integers(0, len(numbers), (count, rows), np.uint32)]
    every = np.arange(rows)
    for place, drawn in enumerate(found):
        left, mine, taken = every, drawn, found[:place]
        for again in range(_AGAIN + 1):
            wrong = np.zeros(len(left), bool)
            for before in taken:
                wrong |= before == mine
            if group is not None and opened is not None:
                wrong |= ~opened[group[mine], left]
            left, taken = left[wrong], taken[:, wrong]
            if not len(left):
                break
            if again < _AGAIN:
                mine = numbers[rng.integers(0, len(numbers), len(left), np.uint32)]
            else:
                allowed = None if group is None or opened is None else opened[:, left][group]
                mine = _among_others(rng, table.often, taken, allowed)
            drawn[left] = mine
    return found.T


def _among_others(rng: np.random.Generator, often: Array, taken: Array, allowed: Array | None) -> Array:
    """Draw a number, e as `often` [E], for each of n rows: not `taken` [.., n], and `allowed` [E, n]."""
    found = np.empty(taken.shape[1], np.int64)
    at_once = max(1, _STEPS // len(often))
    for low in range(0, len(found), at_once):
        mine = slice(low, low + at_once)
        rows = np.arange(len(found[mine]))
        mass = np.broadcast_to(often, (len(rows), len(often))).copy()
        mass[rows, taken[:, mine]] = 0
        if allowed is not None:
            mass *= allowed[:, mine].T
        up_to = mass.cumsum(axis=1)
        found[mine] = (up_to <= rng.integers(0, up_to[:, -1])[:, None]).sum(axis=1)
    return found
