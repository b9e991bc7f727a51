"""Locality: the definition in float64, the text's example, and what a penalty saves and spoils."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.model import Model, ModelSpec
from rayemu.routing import Context, LocalityTopK, SoftmaxTopK, make_router
from rayemu.study.routed import forward, output_error
from tests.routing.batch_scope import NO_GATE, check_routing, choose, context, normal, odd_logits, same


def test_the_text_s_example() -> None:
    # probabilities of experts 0 to 4; 0 and 2 are at home; 0.30 * 0.8 = 0.24 stays above 0.20, * 0.6 does not
    logits = np.log(np.array([[0.35, 0.30, 0.20, 0.10, 0.05]], np.float32))
    holders = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]], bool)
    for penalty, wanted in ((0.2, [0, 1]), (0.4, [0, 2])):
        where = Context(0, 0, np.zeros(1, np.int16), holders, np.zeros(2, np.int32))
        routing = LocalityTopK(2, module=penalty).choose(logits.copy(), NO_GATE, where)
        assert routing.experts.tolist() == [wanted]
        share = [math.exp(logits[0, e]) for e in wanted]
        np.testing.assert_allclose(routing.weights, [[s / sum(share) for s in share]], rtol=1e-6)
        outside = float(wanted == [0, 1])
        assert where.counts == {
            "choices": 2,
            "choices_outside_module": outside,
            "choices_outside_node": 0,
        }


@pytest.mark.parametrize("renormalise", [True, False])
def test_equals_the_definition(renormalise: bool) -> None:
    router = LocalityTopK(3, module=0.2, node=0.4, renormalise=renormalise, scaling=2.0)
    logits, where = normal(200, 16), context(200, 16, modules=8, nodes=2)
    routing = choose(router, logits, where)
    left = {"module": 0, "node": 0}
    for t, row in enumerate(logits.tolist()):
        total = sum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v in row]
        home = t % 8
        at = [e // 2 for e in range(16)]  # the module of each expert; four modules to a node
        worth = [
            p[e] * (0.8 if at[e] != home else 1) * (0.6 if at[e] // 4 != home // 4 else 1) for e in range(16)
        ]
        chosen = sorted(range(16), key=lambda e: -worth[e])[:3]
        assert routing.experts[t].tolist() == chosen
        weights = [p[e] / (sum(p[c] for c in chosen) if renormalise else 1) * 2 for e in chosen]
        np.testing.assert_allclose(routing.weights[t], weights, rtol=1e-5)
        left["module"] += sum(at[e] != home for e in chosen)
        left["node"] += sum(at[e] // 4 != home // 4 for e in chosen)
    wanted = {"choices": 600, **{f"choices_outside_{name}": n for name, n in left.items()}}
    assert where.counts == wanted


@given(odd_logits(), st.integers(1, 8), st.booleans())
def test_without_penalties_it_is_softmax_topk(logits: np.ndarray, k: int, renormalise: bool) -> None:
    plain = SoftmaxTopK(k, renormalise).choose(logits.copy(), NO_GATE, Context())
    same(choose(LocalityTopK(k, 0.0, 0.0, renormalise), logits), plain)


@given(odd_logits(), st.integers(1, 8), st.sampled_from([0.0, 0.1, 0.9]), st.sampled_from([0.0, 0.5]))
def test_every_row_gets_its_choices(logits: np.ndarray, k: int, module: float, node: float) -> None:
    check_routing(choose(LocalityTopK(k, module, node), logits), logits, k)


def test_a_row_does_not_depend_on_company() -> None:
    router, logits, where = LocalityTopK(4, 0.1, 0.3), normal(64, 16), context(64, 16)
    whole = choose(router, logits, where)
    order = np.random.default_rng(3).permutation(64)[:20]
    some = Context(0, 0, where.home[order], where.holders, where.module_to_node)
    part = choose(router, logits[order], some)
    np.testing.assert_array_equal(part.experts, whole.experts[order])
    np.testing.assert_array_equal(part.weights, whole.weights[order])


def test_copies_nearby_count_as_near() -> None:
    holders = np.zeros((4, 8), bool)
    holders[2:] = True  # everything is in the second node, and nowhere else
    logits, node = normal(50, 8), np.array([0, 0, 1, 1], np.int32)
    for home, outside in ((0, 100), (3, 0)):
        where = Context(0, 0, np.full(50, home, np.int16), holders, node)
        same(choose(LocalityTopK(2, 0.5, 0.5), logits, where), choose(SoftmaxTopK(2), logits))
        assert where.counts["choices_outside_node"] == where.counts["choices_outside_module"] == outside


def test_it_must_know_where_rows_are() -> None:
    logits = normal(6, 8)
    with pytest.raises(ValueError, match=r"context\.home has 0 rows of 6, .* give all three"):
        LocalityTopK(2).choose(logits, NO_GATE, Context())
    where = context(6, 8)
    lost = Context(0, 0, where.home - 1, where.holders, where.module_to_node)
    with pytest.raises(ValueError, match=r"context\.home goes from -1 to 2; allowed: 0 to 3"):
        choose(LocalityTopK(2), logits, lost)


@pytest.mark.parametrize("name", ["module", "node"])
@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan])
def test_impossible_penalties_are_refused(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"routing\.{name} is {bad}; allowed: 0 to less than 1"):
        make_router("locality_topk", 8, top_k=2, **{name: bad})


def test_a_penalty_saves_traffic_and_spoils_outputs() -> None:
    """A random stack of two layers, 32 experts on 2 x 4 modules: the more the one, the more the other."""
    model = Model(ModelSpec("tiny", 16, 16, 32, 4, layers=2))
    x, where = normal(128, 16), context(128, 32, modules=8)
    places = (where.home, np.stack([where.holders] * 2), where.module_to_node)
    wanted, _ = forward(model, x, [SoftmaxTopK(4)] * 2, *places)
    remote, errors = [], []
    for penalty in (0.0, 0.1, 0.2, 0.5):
        counts: dict[str, float] = {}
        y, _ = forward(model, x, [LocalityTopK(4, node=penalty)] * 2, *places, counts=counts)
        remote.append(counts["choices_outside_node"] / counts["choices"])
        errors.append(output_error(y, wanted))
    assert errors[0] == 0 and sorted(errors) == errors and sorted(remote, reverse=True) == remote
    assert 0.4 < remote[0] < 0.6 and remote[0] - remote[1] < 0.1 and remote[0] - remote[-1] > 0.15
    assert 0 < errors[1] < 0.3 and 0.1 < errors[-1] < 0.8
