"""Tiers that experts' weights lie in: who is served from where under a policy, and what that takes.

The upper tiers are a cache of whole experts. What is used comes to the top; what has to make room goes down
a tier; the lowest holds all that no other does. Every policy here ranks experts regardless of how much fits,
so that what a capacity holds is part of what a larger one does (a stack algorithm: Mattson et al. 1970): a
use is served from the first tier whose capacity, with all above, hits.

Shapes: N uses, one for each expert of a layer that a step uses; S steps, L layers, E experts, U = L x E.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rayemu.hardware.spec import Tier

Array = np.ndarray


@dataclass(frozen=True)
class Uses:
    """Which experts of which layers are used, in order: by step, by layer, then by number."""

    step: Array  # [N]
    layer: Array  # [N]
    expert: Array  # [N]
    layers: int
    experts: int

    @cached_property
    def item(self) -> Array:
        """Experts of all layers, numbered through [N], below U."""
        return self.layer * self.experts + self.expert

    @cached_property
    def distinct(self) -> int:
        """How many experts are used at all."""
        return len(np.unique(self.item))


def uses_of_choices(choices: Array, experts: int, tokens: int = 1) -> Uses:
    """Uses of choices [T, L, K] (negative: none) in steps of `tokens` tokens; 1 is decoding of one sequence.

    A step loads an expert once, however many of its tokens chose it.
    """
    layers = choices.shape[1]
    token, layer, place = np.nonzero(choices >= 0)
    chosen = choices[token, layer, place].astype(np.int64)
    return _uses(np.unique((token // tokens * layers + layer) * experts + chosen), layers, experts)


def uses_of_loads(loads: Array) -> Uses:
    """Uses of loads [S, L, E]: each window is a step, which uses the experts that have rows."""
    return _uses(np.flatnonzero(np.asarray(loads) > 0), loads.shape[1], loads.shape[2])


def least_recent(uses: Uses) -> Array:
    """LRU keeps what was used last."""
    return np.arange(len(uses.item), dtype=np.float64)


def least_frequent(uses: Uses) -> Array:
    """LFU keeps what was used most often since the start, and of equals what was used last."""
    order = np.argsort(uses.item, kind="stable")
    sorted_items = uses.item[order]
    first = np.flatnonzero(np.r_[True, sorted_items[1:] != sorted_items[:-1]])
    count = np.empty(len(order))
    count[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return count + np.arange(len(order)) / (len(order) + 1)


def farthest(uses: Uses) -> Array:
    """Belady's optimum keeps what is used again soonest: a bound, since it knows the future."""
    order = np.argsort(uses.item, kind="stable")
    following = np.full(len(order), 2.0 * len(order))
    again = uses.item[order][1:] == uses.item[order][:-1]
    following[order[:-1][again]] = order[1:][again]
    return -following


RANKS: dict[str, Callable[[Uses], Array]] = {
    "lru": least_recent,
    "lfu": least_frequent,
    "belady": farthest,
}
STEPS = 4  # that `predicted` looks ahead
POLICIES = ("lru", "lfu", "predicted", "belady")


class Transitions:
    """Which experts follow which in the next step of the same layer, learned as it goes: counts [L, E, E]."""

    def __init__(self, layers: int, experts: int) -> None:
        self.counts = np.zeros((layers, experts, experts), np.float32)
        self.before: list[Array | None] = [None] * layers

    def follow(self, layer: int, used: Array) -> None:
        """Learn that `used` experts follow those of the layer's last step."""
        if (before := self.before[layer]) is not None:
            self.counts[layer][np.ix_(before, used)] += 1
        self.before[layer] = used

    def next(self, layer: int, steps: int = 1) -> Array:
        """How likely each expert is used in the layer's next step [E], each later one counting half as much.

        The next step is the mean over the last one's experts of their rows of the transition matrix, the one
        after that by the matrix once more; an expert that nothing is known to follow says nothing.
        """
        counts = self.counts[layer]
        likely, found = np.zeros(len(counts), np.float32), np.zeros(len(counts), np.float32)
        if (before := self.before[layer]) is not None:
            likely[before] = 1 / len(before)
        total = counts.sum(axis=1)
        for step in range(steps):
            likely = np.divide(likely, total, out=np.zeros_like(likely), where=total > 0) @ counts
            found += likely * 0.5**step
        return found


def hits(uses: Uses, capacity: int, policy: str = "lru") -> Array:
    """Whether each use finds its expert among the `capacity` that are held [N] bool; none is at first.

    `predicted` keeps what `Transitions` says is likeliest in its layer's next STEPS steps, and of equals what
    was used last. Nobody is sent past the cache: weights have to be there to be computed with. Raises
    ValueError.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy: {policy!r} is not allowed; allowed: {', '.join(POLICIES)}")
    if capacity < 0:
        raise ValueError(f"capacity: {capacity} is not allowed; allowed: whole numbers from 0 on")
    if not capacity:
        return np.zeros(len(uses.item), bool)
    if capacity >= uses.distinct:  # nothing is ever put out
        found = np.ones(len(uses.item), bool)
        found[np.unique(uses.item, return_index=True)[1]] = False
        return found
    cache = _Cache(uses.layers * uses.experts, capacity)
    if policy in RANKS:
        ranks = RANKS[policy](uses)
        pairs = zip(uses.item.tolist(), ranks.tolist(), strict=True)
        return np.array([cache.use(item, rank) for item, rank in pairs], bool)
    return _predicted(uses, cache)


def prefetched(uses: Uses, count: int) -> float:
    """Share of uses whose expert is among the `count` that `Transitions` finds likeliest to come next."""
    model = Transitions(uses.layers, uses.experts)
    guess: dict[int, Array] = {}
    found = asked = 0
    for layer, used in _by_layer(uses):
        if layer in guess:
            found += int(np.isin(used, guess[layer]).sum())
            asked += len(used)
        model.follow(layer, used)
        guess[layer] = np.argsort(-model.next(layer), kind="stable")[:count]
    return found / asked if asked else 0.0


@dataclass(frozen=True)
class Tiered:
    """What tiers under a policy came to; means over uses."""

    policy: str
    shares: tuple[float, ...]  # of the uses, by tier
    seconds: float  # until a use's weights are read
    joules: float | None  # None where a tier's energy is not known


def held_by(tiers: Mapping[str, Tier], expert_bytes: float) -> tuple[int, ...]:
    """How many whole experts each tier holds."""
    return tuple(int(tier.size // expert_bytes) for tier in tiers.values())


def serve(
    uses: Uses, tiers: Mapping[str, Tier], expert_bytes: float, policy: str, capacities: Sequence[int]
) -> Tiered:
    """Serve all uses from `tiers`, fastest first, that hold `capacities` experts each, the last all others.

    A use takes its tier's latency and the expert's bytes over its bandwidth: the mean is the textbooks'
    average memory access time. Raises ValueError where all together do not hold what is used.
    """
    if sum(capacities) < uses.distinct:
        raise ValueError(
            f"tiers: they hold {sum(capacities)} experts of {expert_bytes:.4g} bytes, "
            f"{uses.distinct} are used; make the last one larger"
        )
    return come_to(policy, served_from(uses, capacities, policy), tiers, expert_bytes)


def served_from(uses: Uses, capacities: Sequence[int], policy: str) -> Array:
    """The number of the tier that each use is served from [N]; the last one where no other has its expert."""
    served = np.full(len(uses.item), len(capacities) - 1)
    within = np.cumsum(capacities[:-1])
    for tier in reversed(range(len(within))):
        if capacities[tier]:
            served[hits(uses, int(within[tier]), policy)] = tier
    return served


def come_to(name: str, served: Array, tiers: Mapping[str, Tier], expert_bytes: float) -> Tiered:
    """The means over uses that are served from tiers [N], where a use reads its expert once."""
    shares = np.bincount(served, minlength=len(tiers)) / max(len(served), 1)
    each = [tier.latency + expert_bytes / tier.bandwidth for tier in tiers.values()]
    known = [tier.energy for tier in tiers.values() if tier.energy is not None]
    joules = float(shares @ np.array(known)) * expert_bytes * 8 if len(known) == len(tiers) else None
    return Tiered(name, tuple(shares.tolist()), float(shares @ np.array(each)), joules)


class _Cache:
    """At most `capacity` items of `count`, each with a rank; the lowest makes room."""

    def __init__(self, count: int, capacity: int) -> None:
        self.rank = np.full(count, np.inf)  # inf: not held
        self.room = capacity

    def use(self, item: int, rank: float) -> bool:
        """Whether it was held; it is now, with this rank."""
        found = bool(self.rank[item] < np.inf)
        if not found and self.room:
            self.room -= 1
        elif not found:
            self.rank[self.rank.argmin()] = np.inf
        self.rank[item] = rank
        return found


def _predicted(uses: Uses, cache: _Cache) -> Array:
    found = []
    model = Transitions(uses.layers, uses.experts)
    last = np.zeros((uses.layers, uses.experts))  # when each was used, below 1e-6: only to tell equals apart
    scale = 1e-6 / (len(uses.item) + 1)
    for layer, used in _by_layer(uses):
        first = layer * uses.experts
        for expert in used.tolist():
            found.append(cache.use(first + expert, 3.0))  # more than any: it is at work
            last[layer, expert] = len(found) * scale
        mine = cache.rank[first : first + uses.experts]
        model.follow(layer, used)
        score = model.next(layer, STEPS) + last[layer]
        mine[mine < np.inf] = score[mine < np.inf]
    return np.array(found, bool)


def _by_layer(uses: Uses) -> Iterator[tuple[int, Array]]:
    """The layer and its used experts, step by step and layer by layer."""
    key = uses.step * uses.layers + uses.layer
    borders = np.r_[0, np.flatnonzero(np.diff(key)) + 1, len(key)]
    for start, end in itertools.pairwise(borders.tolist()):
        if end > start:
            yield int(uses.layer[start]), uses.expert[start:end]


def _uses(key: Array, layers: int, experts: int) -> Uses:
    step, inside = np.divmod(np.asarray(key, np.int64), layers * experts)
    return Uses(step, inside // experts, inside % experts, layers, experts)
