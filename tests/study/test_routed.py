"""The forward pass with choices from elsewhere: the reference to the bit, and a sum by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from rayemu.model import Gate, Model, ModelSpec, Routing, preset, reference_forward
from rayemu.placement import Placement
from rayemu.routing import Context, Router
from rayemu.study.routed import forward, holders_of, output_error

NOWHERE: Any = (np.zeros(6, np.int16), np.ones((3, 2, 8), bool), np.zeros(2, np.int32))


@dataclass(frozen=True)
class Counting(Router):
    """Sends every token to the expert of the batch's turn, and nowhere as a second choice."""

    top_k: int = 2
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        return None

    def new_state(self, experts: int) -> list[int]:
        return []

    def choose(self, scores: np.ndarray, gate: Gate, context: Context) -> Routing:
        context.state.append(context.layer)
        context.count("chosen", len(scores))
        experts = np.full((len(scores), 2), -1, np.int32)
        experts[:, 0] = len(context.state) - 1
        return Routing(experts, np.array([[0.5, 0.0]] * len(scores), np.float32))


def _rows(spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, spec.d_model), dtype=np.float32)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "llama-4-scout"])
def test_with_the_layers_own_routers_it_is_the_reference_to_the_bit(name: str) -> None:
    spec = preset(name)
    model = Model(replace(spec.scaled(32 if spec.d_model % 32 == 0 else 16), layers=3))
    x = _rows(model.spec)
    where = (NOWHERE[0], np.ones((3, 2, model.spec.experts), bool), NOWHERE[2])
    y, routings = forward(model, x, [layer.router for layer in model.layers], *where)
    np.testing.assert_array_equal(y, reference_forward(model, x))
    assert [routing is None for routing in routings] == [not layer.has_experts for layer in model.layers]


def test_states_go_from_batch_to_batch_and_no_choice_adds_nothing() -> None:
    model = Model(ModelSpec("tiny", 16, 32, 8, 2, layers=3, norm=False, residual=False))
    x, states, counts = _rows(model.spec), {}, {}
    for batch in range(2):
        y, routings = forward(model, x, [Counting()] * 3, *NOWHERE, batch, states, counts)
        wanted = x.astype(np.float64)
        for layer in model.layers:
            expert = layer.experts[batch]
            half = wanted @ expert.up
            gated = half[:, :32] / (1 + np.exp(-half[:, :32])) * half[:, 32:]
            wanted = 0.5 * (gated @ expert.down)
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-6)
        assert all(r is not None and (r.experts == [batch, -1]).all() for r in routings)
    assert states == {0: [0, 0], 1: [1, 1], 2: [2, 2]} and counts == {"chosen": 36}


def test_a_router_is_needed_for_each_layer() -> None:
    model = Model(ModelSpec("tiny", 16, 32, 8, 2, layers=3))
    with pytest.raises(ValueError, match="2 routers for 3 layers; give one to each"):
        forward(model, _rows(model.spec), [Counting()] * 2, *NOWHERE)


def test_who_holds_what() -> None:
    placement = Placement(*(np.array(c, np.int32) for c in ([0, 0, 1], [1, 1, 0], [0, 0, 0], [0, 2, 1])))
    wanted = np.zeros((2, 3, 4), bool)
    wanted[0, 0, 1] = wanted[0, 2, 1] = wanted[1, 1, 0] = True
    np.testing.assert_array_equal(holders_of(placement, 2, 4, 3), wanted)


def test_the_error_is_relative() -> None:
    assert output_error(np.array([[3.0, 8.0]], np.float32), np.array([[3.0, 4.0]], np.float32)) == 0.8
