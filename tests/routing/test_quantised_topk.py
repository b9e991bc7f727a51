"""Gates of few bits: weights by the formula, rows that full precision is for, how gates agree."""

from __future__ import annotations

import gc
import math
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from threadpoolctl import threadpool_limits

from rayemu.routing import Gate, QuantisedTopK, SoftmaxTopK, agreement, make_router
from rayemu.routing import quantised_topk as module

WAYS: list[dict[str, Any]] = [
    {"precision": "fp16"},
    {"precision": "bf16", "rows": True},
    {"precision": "int8", "rows": True, "group": 17},
    {"precision": "int4", "group": 16},
    {"precision": "int4", "importance": "margin", "threshold": 0.3, "renormalise": False},
    {"precision": "int8", "importance": "norm", "threshold": 1.0, "scaling": 2.0},
]


def _gate(width: int = 24, experts: int = 32) -> Gate:
    rng = np.random.default_rng([width, experts])
    return Gate(rng.standard_normal((width, experts), dtype=np.float32))


def _rows(count: int, width: int = 24) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, width), dtype=np.float32)


def test_int8_weights_are_by_the_formula() -> None:
    gate = _gate()
    for group in (0, 17):
        coarse = QuantisedTopK(2, "int8", group).coarse(gate).weight
        for column, found in zip(gate.weight.T, coarse.T, strict=True):
            size = group or len(column)
            for start in range(0, len(column), size):
                part = column[start : start + size].astype(float)
                scale = max(abs(part)) / 127
                np.testing.assert_allclose(
                    found[start : start + size], [round(v / scale) * scale for v in part], rtol=1e-6
                )


def test_int4_weights_are_of_15_levels() -> None:
    integers = np.random.default_rng(0).integers(-7, 8, (64, 6)).astype(np.float32)
    integers[0] = 7  # so that the scale is 1
    exact = QuantisedTopK(2, "int4").coarse(Gate(integers)).weight
    np.testing.assert_array_equal(exact, integers)
    gate = _gate(64, 6)
    coarse = QuantisedTopK(2, "int4").coarse(gate).weight
    for column, found in zip(gate.weight.T, coarse.T, strict=True):
        assert len(np.unique(np.abs(found))) <= 8
        step = max(abs(column)) / 7 * (1 + 2**-7)  # a scale is rounded up to a bfloat16
        assert (abs(column - found) <= step * 0.5001).all()


def test_half_precision_is_that_of_ieee_and_keeps_8_bits_as_bf16() -> None:
    gate = Gate(np.array([[1 + 2**-11, 1e6, -3e-8], [1 + 3 * 2**-11, -1e6, 1 / 3]], np.float32))
    half = QuantisedTopK(2, "fp16").coarse(gate).weight
    np.testing.assert_array_equal(half, [[1, 65504, -(2**-25) * 2], [1 + 2**-9, -65504, np.float16(1 / 3)]])
    brief = QuantisedTopK(2, "bf16").coarse(gate).weight
    np.testing.assert_allclose(brief, gate.weight, rtol=2**-8)
    assert not (brief.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
def test_choices_are_softmax_top_k_of_the_coarse_gate(precision: Any) -> None:
    gate = Gate(_gate().weight, None, np.linspace(-1, 1, 32).astype(np.float32))
    router = QuantisedTopK(4, precision, scaling=3.0)
    x = _rows(50)
    wanted = SoftmaxTopK(4, scaling=3.0).route(x, Gate(router.coarse(gate).weight, None, gate.bias))
    found = router.route(x, gate)
    np.testing.assert_array_equal(found.experts, wanted.experts)
    np.testing.assert_array_equal(found.weights, wanted.weights)


def test_rows_are_rounded_as_the_weights_are() -> None:
    x = np.array([[127, 0.4, 0.6], [12.7, 0.04, 0.06]], np.float32)
    gate = Gate(np.eye(3, dtype=np.float32) * 127)
    logits = QuantisedTopK(1, "int8", rows=True).scores(x, gate)
    np.testing.assert_allclose(logits, np.array([[127, 0, 1], [12.7, 0, 0.1]]) * 127, rtol=1e-6)


def test_rows_in_doubt_get_the_gate_s_full_precision() -> None:
    gate, x = _gate(), _rows(400)
    router = QuantisedTopK(3, "int4", importance="margin", threshold=0.4)
    coarse, full = (x @ router.coarse(gate).weight), x @ gate.weight
    best = -np.sort(-coarse, axis=1)
    doubtful = best[:, 2] - best[:, 3] < 0.4  # between the last that is chosen and the next
    assert 0.1 < doubtful.mean() < 0.9
    wanted = np.where(doubtful[:, None], full, coarse)
    np.testing.assert_allclose(router.scores(x, gate), wanted, rtol=1e-4, atol=1e-5)
    everything = QuantisedTopK(32, "int4", importance="margin", threshold=0.4)
    np.testing.assert_allclose(everything.scores(x, gate), coarse, rtol=1e-4, atol=1e-5)


def test_rows_of_a_high_norm_get_it_too() -> None:
    gate, x = _gate(), _rows(300)
    router = QuantisedTopK(3, "int4", importance="norm", threshold=1.05)
    high = np.array([math.sqrt(sum(float(v) ** 2 for v in row) / 24) > 1.05 for row in x])
    assert 0.1 < high.mean() < 0.9
    wanted = np.where(high[:, None], x @ gate.weight, x @ router.coarse(gate).weight)
    np.testing.assert_allclose(router.scores(x, gate), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("params", WAYS)
def test_rows_have_the_same_bits_in_any_company(params: dict[str, Any]) -> None:
    for width in (24, 130):
        x, gate, router = (
            _rows(250, width),
            _gate(width),
            make_router("quantised_topk", 32, top_k=3, **params),
        )
        whole = router.route(x, gate)
        assert whole.experts.dtype == np.int32 and whole.weights.dtype == np.float32
        for threads, counts in ((1, (1, 2, 3, 50, 249)), (2, (1, 90))):
            with threadpool_limits(threads, user_api="blas"):
                for count in counts:
                    group = np.random.default_rng(count).choice(250, count, replace=False)
                    some = router.route(x[group], gate)
                    np.testing.assert_array_equal(some.experts, whole.experts[group])
                    np.testing.assert_array_equal(some.weights, whole.weights[group])
        empty = router.route(x[:0], gate)
        assert empty.experts.shape == empty.weights.shape == (0, 3)


@pytest.mark.parametrize("params", WAYS)
def test_what_is_not_a_number_shows_in_the_weights_of_its_row_alone(params: dict[str, Any]) -> None:
    x, gate = _rows(4), _gate()
    router = make_router("quantised_topk", 32, top_k=2, **params)
    whole = router.route(x, gate)
    column = gate.weight.copy()
    column[5, 7] = np.nan
    assert (router.route(x, Gate(column)).experts[:, 0] == 7).all()
    x[1, 3] = np.nan
    broken = router.route(x, gate)
    assert np.isnan(broken.weights[1]).any() and len(set(broken.experts[1])) == 2
    np.testing.assert_array_equal(np.delete(broken.weights, 1, axis=0), np.delete(whole.weights, 1, axis=0))


def test_a_gate_is_rounded_once_and_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = module.rounded
    monkeypatch.setattr(module, "rounded", lambda *args: calls.append(args) or real(*args))
    gate, x = _gate(), _rows(3)
    for _ in range(3):
        for precision in ("int8", "int4"):
            make_router("quantised_topk", 32, top_k=2, precision=precision).route(x, gate)
    assert len(calls) == 2
    seen, coarse = weakref.ref(gate), weakref.ref(QuantisedTopK(2, "int4").coarse(gate))
    del gate
    gc.collect()
    assert seen() is None and coarse() is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"precision": "int3"}, r"routing.precision is 'int3'; allowed: one of fp16, bf16, int8, int4"),
        ({"group": -1}, r"routing.group is -1; allowed: 0 \(a column\)"),
        ({"group": 8}, r"routing.group is 8; allowed: 0 \(a column\), or 16 to 65536 inputs"),
        ({"precision": "fp16", "group": 64}, r"routing.group is 64; allowed: 0: floats have no scale"),
        ({"importance": "age"}, r"routing.importance is 'age'; allowed: one of none, margin, norm"),
        ({"threshold": -0.5}, r"routing.threshold is -0.5; allowed: 0 and above"),
        ({"top_k": 9}, r"routing.top_k is 9; allowed: 1 to 8"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("quantised_topk", 8, **{"top_k": 2, **params})


def test_agreement_is_scipy_s_divergence_and_a_count() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((200, 16)).astype(np.float32)
    b = a + rng.standard_normal((200, 16)).astype(np.float32) * np.float32(0.3)
    b[::5] = a[::5]
    found = agreement(a, b, 3)
    p, q = softmax(a.astype(float), axis=1), softmax(b.astype(float), axis=1)
    assert found.divergence == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=1e-9)
    best = [[sorted(range(16), key=lambda e: -row[e])[:3] for row in logits] for logits in (a, b)]
    pairs = list(zip(*best, strict=True))
    assert found.top1 == np.mean([one[0] == other[0] for one, other in pairs])
    assert found.sets == np.mean([set(one) == set(other) for one, other in pairs])
    assert found.within == np.mean([one[0] in other for one, other in pairs])
    assert 0.3 < found.sets < found.top1 < found.within < 1


def test_agreement_by_hand() -> None:
    a = np.array([[2, 1, 0], [0, 0, 0]], np.float32)
    assert agreement(a, a, 2) == (1, 1, 1, 0)
    b = np.array([[1, 2, 0], [0, 0, 0]], np.float32)
    top1, sets, within, divergence = agreement(a, b, 2)
    assert (top1, sets, within) == (0.5, 1, 1)
    one = (math.e**2 - math.e) / (math.e**2 + math.e + 1)  # (p0 - p1)(2 - 1): p and q differ by an exchange
    assert divergence == pytest.approx(one / 2)
    never = np.array([[-np.inf, 0, 0], [0, 0, 0]], np.float32)
    assert agreement(a, never, 1).divergence == math.inf
    assert agreement(never, a, 1).divergence == pytest.approx(
        rel_entr([0, 0.5, 0.5], softmax([2.0, 1, 0])).sum() / 2
    )
    assert np.isnan(agreement(a[:0], a[:0], 1)).all()


def test_agreement_refuses_what_cannot_be_compared() -> None:
    a = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"logits of \(2, 3\) and \(1, 3\)"):
        agreement(a, a[:1], 1)
    with pytest.raises(ValueError, match=r"k is 4; allowed: 1 to 3"):
        agreement(a, a, 4)
    with pytest.raises(ValueError, match="row 1 has a logit that is NaN"):
        agreement(a, np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), 1)


def test_fewer_bits_agree_less() -> None:
    gate, x = _gate(256, 64), _rows(1000, 256)
    full = gate.logits(x)
    ways: list[tuple[Any, int]] = [("fp16", 0), ("bf16", 0), ("int8", 0), ("int4", 64), ("int4", 0)]
    found = [agreement(full, QuantisedTopK(2, *way).scores(x, gate), 2) for way in ways]
    for better, worse in pairwise(found):
        assert better.top1 >= worse.top1 and better.divergence < worse.divergence
