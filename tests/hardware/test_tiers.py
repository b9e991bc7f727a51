"""Tiers: against an ordered dictionary, plain counting, and every choice that a cache could have made."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np
import pytest

from rayemu.hardware import HardwareError, load_hardware
from rayemu.hardware.spec import Tier
from rayemu.hardware.tiers import (
    POLICIES,
    Transitions,
    Uses,
    held_by,
    hits,
    prefetched,
    serve,
    uses_of_choices,
    uses_of_loads,
)


def uses_of(items: list[int], experts: int = 8) -> Uses:
    """One layer, one expert a step."""
    found = np.array(items)
    return Uses(np.arange(len(found)), np.zeros_like(found), found, 1, experts)


def drawn(seed: int, count: int = 400, experts: int = 8) -> list[int]:
    mass = 1.0 / np.arange(1, experts + 1)
    return np.random.default_rng(seed).choice(experts, count, p=mass / mass.sum()).tolist()


def by_ordered_dict(items: list[int], capacity: int) -> list[bool]:
    held: OrderedDict[int, None] = OrderedDict()
    found = []
    for item in items:
        found.append(item in held)
        held.pop(item, None)
        if len(held) == capacity:
            held.popitem(last=False)
        held[item] = None
    return found


def by_counting(items: list[int], capacity: int) -> list[bool]:
    held: set[int] = set()
    counts: Counter[int] = Counter()
    last: dict[int, int] = {}
    found = []
    for at, item in enumerate(items):
        found.append(item in held)
        if item not in held and len(held) == capacity:
            held.remove(min(held, key=lambda one: (counts[one], last[one])))
        held.add(item)
        counts[item] += 1
        last[item] = at
    return found


def most_hits(items: list[int], capacity: int) -> int:
    """Every item that could make room is tried, at every miss."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for item in items:
        after: dict[frozenset[int], int] = {}
        for held, score in best.items():
            if item in held:
                options = [(held, score + 1)]
            elif len(held) < capacity:
                options = [(held | {item}, score)]
            else:
                options = [(held - {out} | {item}, score) for out in held]
            for state, got in options:
                after[state] = max(after.get(state, -1), got)
        best = after
    return max(best.values())


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 7, 8, 20])
@pytest.mark.parametrize("seed", range(5))
def test_policies_against_brute_force(capacity: int, seed: int) -> None:
    items = drawn(seed)
    uses = uses_of(items)
    assert hits(uses, capacity, "lru").tolist() == by_ordered_dict(items, capacity)
    assert hits(uses, capacity, "lfu").tolist() == by_counting(items, capacity)
    short = items[:60]
    assert hits(uses_of(short), capacity, "belady").sum() == most_hits(short, capacity)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_larger_cache_holds_what_a_smaller_one_does(policy: str) -> None:
    choices = np.random.default_rng(3).integers(16, size=(300, 2, 2))
    uses = uses_of_choices(choices, 16)
    smaller = np.zeros(len(uses.item), bool)
    bound = 0
    for capacity in range(0, 33, 4):
        found = hits(uses, capacity, policy)
        assert (found >= smaller).all()
        best = hits(uses, capacity, "belady").sum()
        assert found.sum() <= best
        assert best >= bound
        smaller, bound = found, best
    assert (~found).sum() == uses.distinct  # all fit: only first uses miss


def test_prediction_beats_recency_where_experts_take_turns() -> None:
    """0, 1, 2, 3, 0, ...: LRU of three always puts out the one that comes next; a matrix knows better."""
    uses = uses_of([0, 1, 2, 3] * 100)
    assert hits(uses, 3, "lru").sum() == 0
    assert hits(uses, 3, "belady").mean() > 0.6
    assert hits(uses, 3, "predicted").mean() > 0.3
    assert prefetched(uses, 1) > 0.98


def test_transitions_by_hand() -> None:
    model = Transitions(1, 3)
    assert model.next(0).tolist() == [0, 0, 0]
    model.follow(0, np.array([0]))
    model.follow(0, np.array([1, 2]))  # 0 -> 1, 0 -> 2
    model.follow(0, np.array([0]))  # 1 -> 0, 2 -> 0
    assert model.next(0).tolist() == [0, 0.5, 0.5]
    assert model.next(0, 2).tolist() == [0.5, 0.5, 0.5]  # and then 0 for sure, at half the weight
    model.follow(0, np.array([1]))  # 0 -> 1 again
    assert model.next(0).tolist() == [1, 0, 0]
    assert model.next(0, 2) == pytest.approx([1, 1 / 3, 1 / 6])


def test_uses_by_hand() -> None:
    choices = np.array([[[0, 1], [2, 2]], [[1, -1], [0, 3]], [[3, 0], [1, 1]]])  # [T 3, L 2, K 2]
    one = uses_of_choices(choices, 4)
    assert one.item.tolist() == [0, 1, 6, 1, 4, 7, 0, 3, 5]
    two = uses_of_choices(choices, 4, tokens=2)
    assert two.item.tolist() == [0, 1, 4, 6, 7, 0, 3, 5]
    assert two.step.tolist() == [0] * 5 + [1] * 3
    loads = uses_of_loads(np.array([[[2, 0], [0, 1]], [[0, 5], [1, 1]]]))
    assert list(zip(loads.step, loads.layer, loads.expert, strict=True)) == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 0),
        (1, 1, 1),
    ]


def tier(size: str, latency: str, bandwidth: str, energy: str | None = None) -> Tier:
    given = {"size": size, "latency": latency, "bandwidth": bandwidth}
    return Tier.model_validate(given | ({"energy": energy} if energy else {}))


def test_time_and_energy_by_hand() -> None:
    tiers = {
        "near": tier("2 GB", "1 us", "1 TB/s", "1 pJ/bit"),
        "mid": tier("1 GB", "2 us", "100 GB/s", "10 pJ/bit"),
        "far": tier("9 GB", "100 us", "1 GB/s", "100 pJ/bit"),
    }
    assert held_by(tiers, 1e9) == (2, 1, 9)
    # Distances: 0 1 2 are new; 1 is one back; 0 is behind 1 and 2 (third place); 0 again first.
    found = serve(uses_of([0, 1, 2, 1, 0, 0]), tiers, 1e9, "lru", held_by(tiers, 1e9))
    assert found.shares == pytest.approx((2 / 6, 1 / 6, 3 / 6))
    near, mid, far = 1e-6 + 1e-3, 2e-6 + 1e-2, 1e-4 + 1.0
    assert found.seconds == pytest.approx((2 * near + mid + 3 * far) / 6)
    assert found.joules == pytest.approx((2 * 8e-3 + 8e-2 + 3 * 0.8) / 6)


def test_a_tier_without_room_is_passed_by() -> None:
    tiers = {"sram": tier("1 MB", "1 ns", "1 TB/s"), "far": tier("9 GB", "1 us", "1 GB/s")}
    found = serve(uses_of([0, 0, 0]), tiers, 1e9, "lru", held_by(tiers, 1e9))
    assert found.shares == (0, 1)
    assert found.joules is None


def test_what_cannot_be_is_refused() -> None:
    uses = uses_of([0, 1, 2])
    with pytest.raises(ValueError, match=r"tiers: they hold 2 experts .* 3 are used"):
        serve(uses, {"one": tier("2 GB", "1 us", "1 GB/s")}, 1e9, "lru", (2,))
    with pytest.raises(ValueError, match="policy: 'fifo'"):
        hits(uses, 1, "fifo")
    with pytest.raises(ValueError, match="capacity: -1"):
        hits(uses, -1)
    with pytest.raises(HardwareError, match=r"tiers\.ssd\.bandwidth"):
        load_hardware("text-pim", "tiers.ssd.bandwidth.value=0 GB/s")
    with pytest.raises(HardwareError, match=r"tiers\.module: is quicker than sram, which is before it"):
        load_hardware("text-pim", "tiers.module.bandwidth.value=2 TB/s")
