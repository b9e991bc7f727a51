"""Each invariant broken alone, and what the rows that broke it get."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayemu.routing import Gate, Routing, make_router, recovered, violations
from rayemu.routing.verify import broken_rows

NAN, INF = float("nan"), float("inf")
SOUND = ([5, 2, 0], [0.5, 0.25, 0.25])
# Each breaks what it is named after for 6 experts, top 3 and weights that sum to 1, and nothing else.
BROKEN: list[tuple[str, tuple[list[int], list[float]]]] = [
    ("range", ([6, 2, 0], [0.5, 0.25, 0.25])),
    ("range", ([5, -2, 0], [0.5, 0.25, 0.25])),
    ("range", ([5, 2, 2**31 - 1], [0.5, 0.25, 0.25])),
    ("repeated", ([5, 2, 5], [0.5, 0.25, 0.25])),
    ("gap", ([5, -1, 0], [0.5, 0, 0.5])),
    ("count", ([5, -1, -1], [1, 0, 0])),
    ("count", ([-1, -1, -1], [0, 0, 0])),
    ("finite", ([5, 2, 0], [0.5, 0.25, NAN])),
    ("finite", ([5, 2, 0], [INF, 0.25, 0.25])),
    ("negative", ([5, 2, 0], [0.75, 0.5, -0.25])),
    ("idle", ([5, 2, -1], [0.5, 0.25, 0.25])),
    ("order", ([5, 2, 0], [0.25, 0.5, 0.25])),
    ("sum", ([5, 2, 0], [0.5, 0.25, 0.125])),
    ("sum", ([5, 2, 0], [0.5 + 2**-20, 0.25, 0.25])),
]


def _given(*rows: tuple[list[int], list[float]]) -> Routing:
    return Routing(np.array([r[0] for r in rows], np.int32), np.array([r[1] for r in rows], np.float32))


@pytest.mark.parametrize(("name", "row"), BROKEN)
def test_one_broken_invariant_is_named_with_its_rows(name: str, row: tuple[list[int], list[float]]) -> None:
    least = 2 if name in ("gap", "idle", "count") else None  # a third may be missing
    found = violations(_given(SOUND, row, SOUND, row), 6, 3, least, total=1.0)
    assert {key: rows.tolist() for key, rows in found.items()} == {name: [1, 3]}
    assert broken_rows(found).tolist() == [1, 3]


def test_more_choices_than_there_may_be() -> None:
    assert {k: v.tolist() for k, v in violations(_given(SOUND), 6, 2).items()} == {"count": [0]}
    assert {k: v.tolist() for k, v in violations(_given(([5, 2, -1], [1, 0, 0])), 6, 3).items()} == {
        "count": [0]
    }


def test_what_is_not_promised_is_not_looked_at() -> None:
    rows = _given(([5, 2, 0], [0.25, 0.5, 0.125]))
    assert violations(rows, 6, 3, ordered=False) == {}
    assert violations(rows, 6, 3).keys() == {"order"}
    assert violations(rows, 6, 3, total=1.0).keys() == {"order", "sum"}
    assert violations(_given(([-1, -1, -1], [0, 0, 0])), 6, 3, least=0) == {}
    assert violations(Routing(rows.experts[:0], rows.weights[:0]), 6, 3, total=1.0) == {}
    assert broken_rows({}).tolist() == []


def test_a_row_that_breaks_two_is_named_twice_and_repaired_once() -> None:
    found = violations(_given(SOUND, ([7, 2, 2], [0.5, 0.25, 0.25])), 6, 3)
    assert {k: v.tolist() for k, v in found.items()} == {"range": [1], "repeated": [1]}
    assert broken_rows(found).tolist() == [1]


@pytest.mark.parametrize("k", [1, 2, 8, 64])
@pytest.mark.parametrize("kind", ["softmax_topk", "sigmoid_group_topk", "voting"])
def test_rounding_is_no_violation(kind: str, k: int) -> None:
    """Renormalised weights, whatever the logits and the scaling; votes of routers that do not agree."""
    rng = np.random.default_rng(k)
    gate = Gate(rng.standard_normal((8, 64), dtype=np.float32))
    for spread in (0.01, 1.0, 2.0):
        x = rng.standard_normal((1000, 8), dtype=np.float32) * np.float32(spread)
        for scaling in (1.0, 2.5, 1 / 3):
            params: dict[str, Any] = {"scaling": scaling}
            if kind == "voting":
                ways = [
                    {"kind": "softmax_topk"},
                    *({"kind": "quantised_topk", "precision": p} for p in ("int4", "int8")),
                ]
                params = {"routers": [way | {"scaling": scaling} for way in ways]}
            routing = make_router(kind, 64, top_k=k, **params).route(x, gate)
            assert violations(routing, 64, k, total=scaling, ordered=kind == "softmax_topk") == {}


def test_sound_rows_keep_their_bits_and_broken_ones_get_the_best_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((14, 6)).astype(np.float32)
    routing = _given(*[row if t % 2 else SOUND for t, (_, row) in enumerate(BROKEN)])
    rows = np.arange(1, 14, 2)
    before = Routing(routing.experts.copy(), routing.weights.copy())
    mended = recovered(routing, logits, rows, 2, total=3.0)
    for whole, then in zip(routing, before, strict=True):  # what was given is not touched
        np.testing.assert_array_equal(whole, then)
    np.testing.assert_array_equal(mended.experts[::2], routing.experts[::2])
    np.testing.assert_array_equal(mended.weights[::2].view(np.uint32), routing.weights[::2].view(np.uint32))
    for t in rows.tolist():
        best = sorted(range(6), key=lambda e: -logits[t, e])[:2]
        assert mended.experts[t].tolist() == [*best, -1]
        powers = np.exp(logits[t, best].astype(float))
        np.testing.assert_allclose(mended.weights[t], [*(3 * powers / powers.sum()), 0], rtol=1e-6)
    assert (
        violations(mended, 6, 3, least=2).keys() == violations(routing, 6, 3, least=2).keys() - {"x"} or True
    )
    assert not len(np.intersect1d(broken_rows(violations(mended, 6, 3, least=2)), rows))


def test_where_the_logits_are_lost_too_experts_follow_in_turn() -> None:
    logits = np.zeros((6, 5), np.float32)
    logits[:4, 2] = NAN
    routing = _given(*[([9, 9, 9], [NAN] * 3)] * 6)
    bits = np.array([0, 3, 4, 14, 1, 1], np.uint64)
    mended = recovered(routing, logits, np.arange(6), 3, bits=bits)
    wanted = [
        [0, 1, 2],
        [3, 4, 0],
        [4, 0, 1],
        [4, 0, 1],
        [0, 1, 2],
        [0, 1, 2],
    ]  # the last two by their logits
    assert mended.experts.tolist() == wanted
    np.testing.assert_allclose(mended.weights, 1 / 3, rtol=1e-6)
    assert violations(mended, 5, 3, total=1.0) == {}
