"""Two stages: the definition row by row, both ends of the threshold, and what a threshold keeps nearby."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import Context, SoftmaxTopK, TwoStageTopK, make_router
from tests.routing.batch_scope import INF, NO_GATE, check_routing, choose, context, normal, odd_logits, same


@pytest.mark.parametrize("within", ["module", "node"])
@pytest.mark.parametrize(("measure", "threshold"), [("best", 0.2), ("least", 0.05), ("mass", 0.4)])
def test_equals_the_definition(within: str, measure: str, threshold: float) -> None:
    router = TwoStageTopK(3, threshold, within, measure)
    logits, where = normal(200, 24), context(200, 24)  # six experts a module, twelve a node
    routing = choose(router, logits, where)
    stayed = 0
    for t, row in enumerate(logits.tolist()):
        total = sum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v in row]
        size = 6 if within == "module" else 12
        mine = t % 4 * 6 // size
        near = sorted((e for e in range(24) if e // size == mine), key=lambda e: -p[e])
        found = {"best": p[near[0]], "least": p[near[2]], "mass": sum(p[e] for e in near)}[measure]
        stays = found >= threshold
        stayed += stays
        chosen = near[:3] if stays else sorted(range(24), key=lambda e: -p[e])[:3]
        assert routing.experts[t].tolist() == chosen
        np.testing.assert_allclose(
            routing.weights[t], [p[e] / sum(p[c] for c in chosen) for e in chosen], rtol=1e-5
        )
    assert 10 < stayed < 190, "both ways are tried"
    assert where.counts["rows"] == 200 and where.counts["rows_chosen_nearby"] == stayed
    assert where.counts["rows_with_fewer_choices"] == 0 and where.counts["choices"] == 600


@given(odd_logits(), st.integers(1, 8), st.booleans(), st.sampled_from(["best", "least", "mass"]))
def test_from_a_threshold_of_one_on_it_is_softmax_topk(
    logits: np.ndarray, k: int, renormalise: bool, measure: str
) -> None:
    plain = SoftmaxTopK(k, renormalise).choose(logits.copy(), NO_GATE, Context())
    for threshold in (1.0, 7.0):
        router = TwoStageTopK(k, threshold, measure=measure, renormalise=renormalise)
        where = context(*logits.shape)
        same(choose(router, logits, where), plain)
        assert where.counts["rows_chosen_nearby"] == 0


@pytest.mark.parametrize("within", ["module", "node"])
def test_a_threshold_of_nothing_keeps_every_row_at_home(within: str) -> None:
    where, logits = context(40, 16), normal(40, 16)
    logits[3] = -INF
    logits[4, :14] = -INF  # the near ones of row 4 have no probability at all
    routing = choose(TwoStageTopK(4, 0.0, within), logits, where)
    size = 4 if within == "module" else 8
    assert (routing.experts // size == (where.home // (size // 4))[:, None]).all()
    assert where.counts[f"choices_outside_{within}"] == 0 and where.counts["rows_chosen_nearby"] == 40


def test_fewer_near_experts_give_fewer_choices_and_none_sends_the_row_to_all() -> None:
    holders = np.zeros((3, 4), bool)
    holders[0, 2] = holders[1] = True  # the last module holds nothing
    where = Context(0, 0, np.array([0, 1, 2], np.int16), holders, np.arange(3, dtype=np.int32))
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]] * 3, np.float32))
    routing = choose(TwoStageTopK(2, 0.0), logits, where)
    assert routing.experts.tolist() == [[2, -1], [0, 1], [0, 1]]
    np.testing.assert_allclose(routing.weights, [[1, 0], [4 / 7, 3 / 7], [4 / 7, 3 / 7]], rtol=1e-6)
    plain = choose(TwoStageTopK(2, 0.0, renormalise=False, scaling=2.0), logits, where)
    np.testing.assert_allclose(plain.weights, [[0.4, 0], [0.8, 0.6], [0.8, 0.6]], rtol=1e-6)
    assert where.counts["rows_with_fewer_choices"] == 2 and where.counts["rows_chosen_nearby"] == 4
    for threshold, first in ((0.15, [2, -1]), (0.25, [0, 1])):  # the least of one choice is that one
        least = choose(TwoStageTopK(2, threshold, measure="least"), logits, where)
        assert least.experts[0].tolist() == first


@given(
    odd_logits(),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 0.6]),
    st.sampled_from(["module", "node"]),
    st.sampled_from(["best", "least", "mass"]),
)
def test_every_row_gets_its_choices(
    logits: np.ndarray, k: int, threshold: float, within: str, measure: str
) -> None:
    router, where = TwoStageTopK(k, threshold, within, measure), context(*logits.shape)
    routing = choose(router, logits, where)
    check_routing(routing, logits, k)
    fewer = (routing.experts < 0).any(axis=1)
    assert not fewer.any() or k > (2 if within == "module" else 4)


def test_a_row_does_not_depend_on_company() -> None:
    router, logits, where = TwoStageTopK(3, 0.2), normal(64, 16), context(64, 16)
    whole = choose(router, logits, where)
    order = np.random.default_rng(3).permutation(64)[:20]
    some = Context(0, 0, where.home[order], where.holders, where.module_to_node)
    part = choose(router, logits[order], some)
    np.testing.assert_array_equal(part.experts, whole.experts[order])
    np.testing.assert_array_equal(part.weights, whole.weights[order])


def test_a_higher_threshold_sends_more_rows_away() -> None:
    logits, shares, remote = normal(500, 16), [], []
    for threshold in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0):
        where = context(500, 16)
        choose(TwoStageTopK(2, threshold), logits, where)
        shares.append(where.counts["rows_chosen_nearby"] / 500)
        remote.append(where.counts["choices_outside_node"] / 1000)
    assert shares[0] == 1 and shares[-1] == 0 and sorted(shares, reverse=True) == shares
    assert remote[0] == 0 and 0.45 < remote[-1] < 0.55 and sorted(remote) == remote


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"threshold": -0.1}, r"routing\.threshold is -0\.1; allowed: 0 and above"),
        ({"threshold": math.nan}, r"routing\.threshold is nan"),
        ({"within": "rack"}, r"routing\.within is 'rack'; allowed: one of module, node"),
        ({"measure": "mean"}, r"routing\.measure is 'mean'; allowed: one of best, least, mass"),
        ({"top_k": 9}, r"routing\.top_k is 9; allowed: 1 to 8"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("two_stage_topk", 8, **{"top_k": 2, **params})
