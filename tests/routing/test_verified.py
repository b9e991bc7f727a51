"""A router that mends what another one breaks: sound rows untouched, broken ones chosen anew and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from rayemu import Scenario
from rayemu.routing import ROUTERS, Context, Gate, Routing, SoftmaxTopK, make_router
from rayemu.scenario import ScenarioError

NAN, INF = float("nan"), float("inf")


def _gate(experts: int = 16, width: int = 24) -> Gate:
    rng = np.random.default_rng(experts)
    return Gate(rng.standard_normal((width, experts), dtype=np.float32))


def _rows(count: int, width: int = 24) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, width), dtype=np.float32)


@dataclass(frozen=True)
class Breaking(SoftmaxTopK):
    """Breaks rows whose first score is positive, in this way."""

    how: str = "range"

    def choose(self, scores: np.ndarray, gate: Gate, context: Context) -> Routing:
        rows = np.flatnonzero(scores[:, 0] > 0)
        routing = super().choose(scores, gate, context)
        if self.how == "range":
            routing.experts[rows, -1] = 99
        elif self.how == "repeated":
            routing.experts[rows, -1] = routing.experts[rows, 0]
        elif self.how == "finite":
            routing.weights[rows, -1] = NAN
        elif self.how == "narrow":
            routing.experts[rows, 1] = -7
            return Routing(routing.experts[:, :2], routing.weights[:, :2])
        return routing


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTERS, "breaking", Breaking)


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize("how", ["range", "repeated", "finite"])
def test_what_a_router_breaks_is_mended_and_counted(how: str) -> None:
    x, gate, context = _rows(200), _gate(), Context()
    rows = (x @ gate.weight)[:, 0] > 0
    router = make_router("verified", 16, top_k=3, router={"kind": "breaking", "how": how}, total=1.0, least=3)
    routing = router.route(x, gate, context)
    honest = SoftmaxTopK(3).route(x, gate)  # the best logits are what an honest router chooses
    np.testing.assert_array_equal(routing.experts, honest.experts)
    np.testing.assert_array_equal(routing.weights, honest.weights)
    assert context.counts == {"repaired": rows.sum(), f"violated_{how}": rows.sum()}


@pytest.mark.usefixtures("breaking")
def test_there_is_room_for_a_repair_whether_needed_or_not() -> None:
    x, gate = _rows(40), _gate()
    router = make_router("verified", 16, top_k=3, router={"kind": "breaking", "how": "narrow"})
    sound = (x @ gate.weight)[:, 0] <= 0
    for rows in (x, x[sound], x[~sound]):
        assert router.route(rows, gate).experts.shape == (len(rows), 3)


@pytest.mark.parametrize("kind", ["softmax_topk", "quantised_topk", "voting"])
def test_a_sound_router_is_left_as_it_is(kind: str) -> None:
    x, gate, context = _rows(100), _gate(), Context()
    router = make_router("verified", 16, top_k=3, router={"kind": kind}, total=1.0, ordered=True, least=3)
    routing, wanted = router.route(x, gate, context), make_router(kind, 16, top_k=3).route(x, gate)
    np.testing.assert_array_equal(routing.experts, wanted.experts)
    np.testing.assert_array_equal(routing.weights, wanted.weights)
    assert context.counts["repaired"] == 0


@pytest.mark.parametrize("kind", ["softmax_topk", "quantised_topk"])
def test_rows_whose_logits_are_nan_go_round(kind: str) -> None:
    x, gate = _rows(600), _gate()
    whole = make_router("verified", 16, top_k=2, router={"kind": kind}).route(x, gate)
    x[::2, 3] = NAN
    context = Context()
    routing = make_router("verified", 16, top_k=2, router={"kind": kind}).route(x, gate, context)
    assert context.counts == {"repaired": 300, "violated_finite": 300}
    np.testing.assert_array_equal(routing.experts[1::2], whole.experts[1::2])
    np.testing.assert_array_equal(routing.weights[1::2], whole.weights[1::2])
    lost = routing.experts[::2]
    assert ((lost[:, 1] - lost[:, 0]) % 16 == 1).all() and (routing.weights[::2] == 0.5).all()
    loads = np.bincount(lost[:, 0], minlength=16)
    assert ((loads - 300 / 16) ** 2 / (300 / 16)).sum() < 37.7  # chi square, 15 degrees: 1 in 1000


@pytest.mark.parametrize(
    "params",
    [{}, {"router": {"kind": "quantised_topk", "precision": "int4"}}, {"router": {"kind": "voting"}}],
)
def test_rows_have_the_same_bits_in_any_company(params: dict[str, Any]) -> None:
    x, gate, router = _rows(250), _gate(), make_router("verified", 16, top_k=3, **params)
    x[::3, 1] = NAN
    whole = router.route(x, gate)
    assert whole.experts.dtype == np.int32 and whole.weights.dtype == np.float32
    assert np.isfinite(whole.weights).all()
    for threads, counts in ((1, (1, 2, 3, 50, 249)), (2, (1, 90))):
        with threadpool_limits(threads, user_api="blas"):
            for count in counts:
                group = np.random.default_rng(count).choice(250, count, replace=False)
                some = router.route(x[group], gate)
                np.testing.assert_array_equal(some.experts, whole.experts[group])
                np.testing.assert_array_equal(some.weights, whole.weights[group])
    assert router.route(x[:0], gate).experts.shape == (0, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("total=0", "routing.total: 0 is not allowed; allowed: above 0, or none"),
        ("least=3", "routing.least: 3 is not allowed; allowed: 0 to 2"),
        ("router={kind: softmax}", "routing.router.kind: 'softmax' is not a strategy; known: softmax_topk"),
        ("router={kind: softmax_topk, scaling: a}", "routing.router.scaling: 'a' is not allowed; it should"),
        ("router={kind: voting, liar: 7}", "routing.router.liar: 7 is not allowed; allowed: 0 to 2"),
        ("router=[]", "routing.router: [] is not allowed; it should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(given: str, message: str) -> None:
    model = {"d_model": 16, "d_ff": 16, "experts": 4, "top_k": 2, "layers": 1}
    scenario = Scenario.from_dict({"model": model, "routing": {"kind": "verified"}})
    with pytest.raises(ScenarioError) as refusal:
        scenario.with_overrides([f"routing.{given}"])
    assert str(refusal.value).startswith(message)


def test_a_router_of_batches_cannot_be_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Batch(SoftmaxTopK):
        scope = "batch"

    monkeypatch.setitem(ROUTERS, "together", Batch)
    with pytest.raises(
        ValueError, match=r"routing\.router\.kind is 'together'; allowed: a router of rows: soft"
    ):
        make_router("verified", 8, top_k=2, router={"kind": "together"})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["quantised_topk", "voting", "verified"])
def test_ties_infinities_and_all_experts_are_as_with_softmax_topk(kind: str) -> None:
    one = np.ones((3, 1), np.float32)
    for logits in ([0.0] * 4, [-INF] * 4, [INF, 0, INF, 1], [-3e38, 3e38, 1, 0], [-INF, 2, -INF, 1]):
        gate = Gate(np.zeros((1, 4), np.float32), None, np.array(logits, np.float32))
        for k in (1, 2, 4):
            wanted, found = SoftmaxTopK(k).route(one, gate), make_router(kind, 4, top_k=k).route(one, gate)
            np.testing.assert_array_equal(found.experts, wanted.experts)
            np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-6)
            single = make_router(kind, 4, top_k=k).route(one[:1], gate)
            np.testing.assert_array_equal(single.weights, found.weights[:1])
