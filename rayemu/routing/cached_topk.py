"""Routing cache: rows that hash alike take the choices that the first of them was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32, exact_matmul
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers, top_k
from rayemu.routing.router import Context, Router

_PACKED = 24  # bits that float32 holds as a whole number
_OCTETS = np.array([1, 1 << 8, 1 << 16], np.float32)
_MOST_BITS = 60  # what a signature of int64 holds, and more than tells any two rows apart
_PLANES = 9  # what random numbers are for: part of their seed


@dataclass
class Cache:
    """What is kept of one layer, C entries by rising signature."""

    signature: npt.NDArray[np.int64]  # [C]
    experts: npt.NDArray[np.intp]  # [C, K]
    used: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [C] last by row
    rows: int = 0  # seen so far


@dataclass(frozen=True)
class CachedTopK(Router):
    """Top-k of the softmax, where rows of one locality-sensitive hash share the choices of the first of them.

    The hash is on which side of each of `bits` random hyperplanes (normal, from `seed`) a row lies: rows at
    an angle a agree in one bit with probability 1 - a / pi (Charikar 2002).
    The signature travels as whole numbers in further columns of the scores, 24 bits in each. The cache holds
    `capacity` signatures; those that were not used for longest make room (LRU) when a batch is through.

    A hit takes the cached *choices*. Its weights are its own logits', with `renormalise` over the K choices,
    times `scaling`, and choices are in the order of its own logits. A miss, and any row with a logit that is
    not finite, is chosen as softmax_topk does. Counted: `cache_hits`, `cache_misses`, and of the hits with
    `audit` the `stale_rows` and `stale_choices` that are not softmax_topk's, which takes choosing them too.

    The gate's product is made anyway, in the homes, before anyone knows of a hit: a hit saves the choice and
    nothing else. A home that skipped the product would need the cache, which would differ from home to home,
    and so would the choices. At T=4096, D=512, E=64, K=8, all rows hits, routing takes 1.5 times as long as
    with softmax_topk: the hash takes more than the choices save (48 bits: 1.6 times; with `audit` 2 times).

    Rows of text that are one word's (40 batches of 512, E=64, K=8) hit by 91 %, all with the true choices;
    random rows of 32,768 words by 12 %. Where a row also holds half of what came before it, 42 % hit, and of
    these 63 % have a choice that is not theirs. (Text 000, section 11.3.6, says 85 and 45 % with 8 planes and
    1,024 entries, without disagreement; that is 99 % hits, of which 40 to 99 % have a wrong choice.)
    """

    top_k: int
    capacity: int = 4096
    bits: int = 24
    seed: int = 0
    renormalise: bool = True
    scaling: float = 1.0
    audit: bool = False
    scope: ClassVar[str] = "batch"

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity: {self.capacity} is not allowed; allowed: 1 and above")
        if not 1 <= self.bits <= _MOST_BITS:
            raise ValueError(f"bits: {self.bits} is not allowed; allowed: 1 to {_MOST_BITS} hyperplanes")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is not allowed; allowed: 0 and above")

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)

    def new_state(self, experts: int) -> Cache:
        """An empty cache."""
        return Cache(np.zeros(0, np.int64), np.zeros((0, self.top_k), np.intp))

    def scores(self, x: F32, gate: Gate) -> F32:
        """x [T, D] -> logits and signature [T, E + bits / 24]."""
        logits = gate.logits(x)
        with np.errstate(invalid="ignore"):  # inf - inf is on no side, and such rows are not looked up
            sides = exact_matmul(x, _planes(x.shape[1], self.bits, self.seed)) > 0  # [T, bits]
        octets = np.packbits(sides, axis=1, bitorder="little").astype(np.float32)  # [T, bits / 8]
        columns = [octets[:, start : start + 3] for start in range(0, octets.shape[1], 3)]
        packed = [np.add.reduce(part * _OCTETS[: part.shape[1]], axis=1) for part in columns]  # exact
        return np.column_stack([logits, *packed])

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Scores [T, S] -> choices [T, K] by descending logit."""
        experts = scores.shape[1] - -(-self.bits // _PACKED)
        logits = np.ascontiguousarray(scores[:, :experts])  # [T, E]
        signature = np.zeros(len(scores), np.int64)  # [T]
        for column, start in enumerate(range(0, self.bits, _PACKED)):
            signature += scores[:, experts + column].astype(np.int64) << start
        cache = self.new_state(experts) if context.state is None else context.state
        chosen, hit = self._look_up(cache, signature, logits)
        context.count("cache_hits", len(hit))
        context.count("cache_misses", len(logits) - len(hit))
        if self.audit:
            true, _ = top_k(logits[hit], self.top_k)
            same = (true[:, :, None] == chosen[hit][:, None, :]).any(axis=2).sum(axis=1)  # [n]
            context.count("stale_choices", self.top_k * len(hit) - same.sum())
            context.count("stale_rows", (same < self.top_k).sum())
        if self.renormalise:
            weights = softmax_powers(np.take_along_axis(logits, chosen, axis=1))  # [T, K]
            weights /= np.add.reduce(weights, axis=1, keepdims=True)
        else:
            powers = softmax_powers(logits)  # [T, E]
            weights = np.take_along_axis(powers, chosen, axis=1)
            weights /= np.add.reduce(powers, axis=1, keepdims=True)
        if self.scaling != 1.0:
            weights *= np.float32(self.scaling)
        return Routing(chosen.astype(np.int32), weights)

    def _look_up(
        self, cache: Cache, signature: npt.NDArray[np.int64], logits: F32
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Choices of all rows [T, K] and which rows were hits [n]; the cache learns and forgets."""
        regular = np.flatnonzero(np.isfinite(logits).all(axis=1))  # rows that may hit
        found, first, inverse = np.unique(signature[regular], return_index=True, return_inverse=True)
        last = np.empty(len(found), np.intp)
        last[inverse] = regular  # of equal signatures the last row stays
        place = np.searchsorted(cache.signature, found)
        known = np.zeros(len(found), bool)
        inside = place < len(cache.signature)
        known[inside] = cache.signature[place[inside]] == found[inside]

        missed = np.ones(len(logits), bool)
        missed[regular] = False
        missed[regular[first[~known]]] = True
        chosen = np.empty((len(logits), self.top_k), np.intp)
        chosen[missed], _ = top_k(logits[missed], self.top_k)

        entries = np.empty((len(found), self.top_k), np.intp)  # by rising expert: ties go to the lower
        entries[known] = cache.experts[place[known]]
        entries[~known] = np.sort(chosen[regular[first[~known]]], axis=1)
        hit = np.flatnonzero(~missed)
        of_row = np.empty(len(logits), np.intp)
        of_row[regular] = inverse
        taken = entries[of_row[hit]]  # [n, K]
        order = np.argsort(-np.take_along_axis(logits[hit], taken, axis=1), axis=1, kind="stable")
        chosen[hit] = np.take_along_axis(taken, order, axis=1)

        used = cache.rows + last
        cache.used[place[known]] = used[known]
        self._keep(cache, place[~known], found[~known], entries[~known], used[~known])
        cache.rows += len(logits)
        return chosen, hit

    def _keep(
        self,
        cache: Cache,
        place: npt.NDArray[np.intp],
        signature: npt.NDArray[np.int64],
        experts: npt.NDArray[np.intp],
        used: npt.NDArray[np.int64],
    ) -> None:
        """Put new entries before `place`, and drop what was not used for longest."""
        cache.signature = np.insert(cache.signature, place, signature)
        cache.experts = np.insert(cache.experts, place, experts, axis=0)
        cache.used = np.insert(cache.used, place, used)
        if len(cache.used) > self.capacity:
            kept = np.sort(np.argpartition(cache.used, -self.capacity)[-self.capacity :])
            cache.signature, cache.experts, cache.used = (
                cache.signature[kept],
                cache.experts[kept],
                cache.used[kept],
            )


@lru_cache(maxsize=16)
def _planes(width: int, bits: int, seed: int) -> F32:
    """Normals of hyperplanes [D, bits]."""
    planes = np.random.default_rng([seed, _PLANES]).standard_normal((width, bits), dtype=np.float32)
    planes.flags.writeable = False
    return planes
