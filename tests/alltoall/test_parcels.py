"""Parcels against brute force: every pair once, sorted by lots, cut evenly where a hop has many."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rayemu.alltoall import plan_parcels


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(1, 6), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**32))
def test_parcels_carry_every_pair_once(n: int, modules: int, experts: int, chunk: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(1000)[:n]
    expert = rng.integers(0, experts, n)
    module = rng.integers(0, modules, n)
    hop_of_module = rng.integers(0, modules, modules)
    parcels = plan_parcels(pairs, hop_of_module[module], module, expert, chunk)
    found = {}
    for parcel in parcels:
        assert 0 < len(parcel.pairs) <= chunk
        assert parcel.lots[:, 2].sum() == len(parcel.pairs)
        at = 0
        for m, e, rows in parcel.lots.tolist():
            assert rows > 0 and (parcel.modules[at : at + rows] == m).all()
            for pair in parcel.pairs[at : at + rows].tolist():
                assert pair not in found
                found[pair] = (parcel.hop, m, e)
            at += rows
    expected = {int(p): (hop_of_module[m], m, e) for p, m, e in zip(pairs, module, expert, strict=True)}
    assert found == expected


def test_parcels_by_hand() -> None:
    pairs = np.arange(6)
    module = np.array([1, 0, 1, 2, 0, 1])
    expert = np.array([5, 4, 3, 6, 4, 5])
    hops = np.array([1, 0, 1, 1, 0, 1])  # module 2 is reached through 1
    small, big = plan_parcels(pairs, hops, module, expert, 100)
    assert (big.hop, big.pairs.tolist()) == (1, [2, 0, 5, 3])
    assert big.lots.tolist() == [[1, 3, 1], [1, 5, 2], [2, 6, 1]]
    assert (small.hop, small.pairs.tolist()) == (0, [1, 4])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 90), st.integers(1, 5), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_what_is_too_much_for_a_hop_is_cut_evenly(
    n: int, modules: int, experts: int, chunk: int, seed: int
) -> None:
    """As few parcels as the chunk allows, alike, which together are the hop's pairs sorted by their lots."""
    rng = np.random.default_rng(seed)
    pairs = np.sort(rng.permutation(1000)[:n])
    expert, module = rng.integers(0, experts, n), rng.integers(0, modules, n)
    hop_of_module = rng.integers(0, modules, modules)
    parcels = plan_parcels(pairs, hop_of_module[module], module, expert, chunk)
    assert [p.hop for p in parcels] == sorted(p.hop for p in parcels)
    rows = [
        *zip(hop_of_module[module].tolist(), module.tolist(), expert.tolist(), pairs.tolist(), strict=True)
    ]
    for hop in {row[0] for row in rows}:
        mine = sorted(row[1:] for row in rows if row[0] == hop)
        found = [p for p in parcels if p.hop == hop]
        sizes = [len(p.pairs) for p in found]
        assert len(found) == math.ceil(len(mine) / chunk) and max(sizes) <= chunk
        assert max(sizes) - min(sizes) <= 1
        assert [pair for p in found for pair in p.pairs.tolist()] == [pair for *_, pair in mine]
        left = iter(mine)
        for p in found:
            asked = [row[:2] for row in itertools.islice(left, len(p.pairs))]
            runs = [[*lot, len([*same])] for lot, same in itertools.groupby(asked)]
            assert p.lots.tolist() == runs and p.lots.dtype == np.int32


def test_even_cuts_by_hand() -> None:
    """Seven pairs for one hop in threes: three parcels, of which none has one pair."""
    expert = np.array([4, 4, 4, 4, 5, 5, 5])
    hops = np.ones(7, int)
    cut = plan_parcels(np.arange(7) * 10, hops, hops, expert, 3)
    assert [p.pairs.tolist() for p in cut] == [[0, 10, 20], [30, 40], [50, 60]]
    assert [p.lots.tolist() for p in cut] == [[[1, 4, 3]], [[1, 4, 1], [1, 5, 1]], [[1, 5, 2]]]
    assert [p.modules.tolist() for p in cut] == [[1] * 3, [1] * 2, [1] * 2]
    assert [len(p.pairs) for p in plan_parcels(np.arange(6), hops[:6], hops[:6], expert[:6], 3)] == [3, 3]


def test_pairs_of_a_lot_keep_token_order() -> None:
    pairs = np.arange(500)
    module, expert = pairs % 2, pairs // 7 % 3
    (parcel,) = plan_parcels(pairs, np.zeros(500, int), module, expert, 500)
    by_hand = [p for m in range(2) for e in range(3) for p in range(500) if (p % 2, p // 7 % 3) == (m, e)]
    assert parcel.pairs.tolist() == by_hand
