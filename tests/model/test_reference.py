"""The reference against per-token loops in float64, tiny hand-made models, and itself in other company."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from rayemu.model import (
    Expert,
    Gate,
    Model,
    ModelSpec,
    combine,
    drop_choices,
    finish,
    moe_forward,
    prepare,
    reference_forward,
    route,
    shared_forward,
)
from rayemu.model.model import Layer
from rayemu.routing import SoftmaxTopK

PLAIN = ModelSpec("plain", d_model=48, d_ff=80, experts=5, top_k=2, layers=2, seed=1)
SPECS = {
    "plain": PLAIN,
    "relu, no norm, no residual": dataclasses.replace(PLAIN, activation="relu", norm=False, residual=False),
    "gelu, top-1 of probabilities": dataclasses.replace(
        PLAIN, activation="gelu", top_k=1, router_params={"renormalise": False}
    ),
    "gated shared expert": dataclasses.replace(PLAIN, shared_d_ff=40, shared_gate=True),
    "dense first, sigmoid groups, shared": ModelSpec(
        "v3",
        d_model=48,
        d_ff=24,
        experts=16,
        top_k=4,
        layers=3,
        shared_d_ff=24,
        dense_layers=1,
        dense_d_ff=100,
        router="sigmoid_group_topk",
        router_params={"groups": 4, "top_groups": 2, "scaling": 2.5},
    ),
    "gpt-oss": dataclasses.replace(PLAIN, activation="clamped_swiglu", biases=True),
    "llama 4": dataclasses.replace(
        PLAIN,
        top_k=1,
        weigh_input=True,
        shared_d_ff=24,
        router="sigmoid_group_topk",
        router_params={"renormalise": False},
    ),
    "softmax groups": dataclasses.replace(
        PLAIN,
        experts=8,
        router="softmax_group_topk",
        router_params={"groups": 4, "top_groups": 2, "scaling": 16.0},
    ),
}


def _rows(count: int, width: int = 48) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, width), dtype=np.float32)


def _ffn64(expert: Expert, x: np.ndarray) -> np.ndarray:
    hidden = x @ expert.up.astype(np.float64) + (0 if expert.up_bias is None else expert.up_bias)
    if expert.activation == "swiglu":
        gate, up = np.split(hidden, 2)
        hidden = gate / (1 + np.exp(-gate)) * up
    elif expert.activation == "clamped_swiglu":
        gate, up = np.split(hidden, 2)
        gate = np.minimum(gate, 7)
        hidden = gate / (1 + np.exp(-1.702 * gate)) * (np.clip(up, -7, 7) + 1)
    elif expert.activation == "gelu":
        hidden = hidden * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden])
    else:
        hidden = np.maximum(hidden, 0)
    return hidden @ expert.down.astype(np.float64) + (0 if expert.down_bias is None else expert.down_bias)


def _token64(layer: Layer, h: np.ndarray) -> np.ndarray:
    """One token through one layer, expert by expert, in float64; its choices are checked elsewhere."""
    x = h if layer.norm is None else h / np.sqrt(np.mean(h * h) + layer.norm_eps) * layer.norm
    y = np.zeros_like(h)
    if layer.has_experts:
        experts, weights = route(layer, x[None].astype(np.float32))
        for expert, weight in zip(experts[0], weights[0], strict=True):
            outer, inner = (1.0, float(weight)) if layer.spec.weigh_input else (float(weight), 1.0)
            y += outer * _ffn64(layer.experts[expert], inner * x)
    if layer.shared is not None:
        opening = 1.0
        if layer.shared_gate is not None:
            opening = 1 / (1 + np.exp(-(x @ layer.shared_gate.astype(np.float64))))
        y += opening * _ffn64(layer.shared, x)
    return h + y if layer.residual else y


@pytest.mark.parametrize("name", SPECS)
def test_stack_equals_a_loop_over_tokens(name: str) -> None:
    model, h = Model(SPECS[name]), _rows(25)
    wanted = []
    for token in h.astype(np.float64):
        for layer in model.layers:
            token = _token64(layer, token)
        wanted.append(token)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(reference_forward(model, h) / scale, np.array(wanted) / scale, atol=2e-6)


@pytest.mark.parametrize("name", SPECS)
def test_rows_keep_their_bits_in_any_company(name: str) -> None:
    model, h = Model(SPECS[name]), _rows(150)
    whole = reference_forward(model, h)
    rng = np.random.default_rng(6)
    for threads, counts in ((1, (1, 2, 5, 17, 64, 150)), (2, (1, 40))):
        with threadpool_limits(threads, user_api="blas"):
            for count in counts:
                group = rng.choice(150, count, replace=False)
                np.testing.assert_array_equal(reference_forward(model, h[group]), whole[group])


@pytest.mark.parametrize("name", SPECS)
def test_pieces_keep_bits_too(name: str) -> None:
    layer, h = Model(SPECS[name]).layers[-1], _rows(100)
    x = prepare(layer, h)
    experts, weights = route(layer, x)
    shared = shared_forward(layer, x)
    rows = np.random.default_rng(1).standard_normal((100, experts.shape[1], 48), dtype=np.float32)
    y = combine(weights, rows, shared)
    for part in (slice(3, 4), slice(0, 2), slice(40, 99)):
        np.testing.assert_array_equal(prepare(layer, h[part]), x[part])
        some = route(layer, x[part])
        np.testing.assert_array_equal(some.experts, experts[part])
        np.testing.assert_array_equal(some.weights, weights[part])
        partly_shared = None if shared is None else shared_forward(layer, x[part])
        np.testing.assert_array_equal(combine(weights[part], rows[part], partly_shared), y[part])


def test_empty_batch_gives_an_empty_result() -> None:
    for spec in SPECS.values():
        assert reference_forward(Model(spec), np.empty((0, 48), np.float32)).shape == (0, 48)


class _Hand:
    """Weights of a two-wide layer with two experts that scale their input by 10 and by 100."""

    def expert(self, layer: int, expert: int) -> Expert:
        return Expert(np.eye(2, dtype=np.float32), (10, 100)[expert] * np.eye(2, dtype=np.float32), "relu")

    def shared(self, layer: int) -> Expert | None:
        return Expert(np.eye(2, dtype=np.float32), 1000 * np.eye(2, dtype=np.float32), "relu")

    def shared_gate(self, layer: int) -> np.ndarray | None:
        return np.array([0, math.log(3)], np.float32)

    def gate(self, layer: int) -> Gate:
        return Gate(np.array([[math.log(2), 0], [0, 0]], np.float32))

    def norm(self, layer: int) -> np.ndarray | None:
        return np.array([1, 2], np.float32)


def _hand_layer() -> Layer:
    spec = ModelSpec("h", 2, 2, 2, 2, activation="relu", shared_d_ff=2, shared_gate=True, norm_eps=0.5)
    return Layer(0, spec, SoftmaxTopK(2), True, _Hand())


def test_block_by_hand() -> None:
    # logits (ln 2, 0): weights 2/3 and 1/3 for x0 = 1; the shared gate opens to 3/4 for x1 = 1
    layer, x = _hand_layer(), np.array([[1, 1]], np.float32)
    experts, weights = route(layer, x)
    np.testing.assert_array_equal(experts, [[0, 1]])
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(moe_forward(layer, x), [[40 + 750, 40 + 750]], rtol=1e-6)


def test_norm_and_residual_by_hand() -> None:
    # mean square of (1, 3) is 5, with 0.5 it is 5.5; weights are 1 and 2
    layer, h = _hand_layer(), np.array([[1, 3]], np.float32)
    np.testing.assert_allclose(prepare(layer, h), [[1 / 5.5**0.5, 6 / 5.5**0.5]], rtol=1e-6)
    np.testing.assert_array_equal(finish(layer, h, np.array([[10, 20]], np.float32)), [[11, 23]])


def test_combine_adds_in_order() -> None:
    # ((1e8 - 1e8) + 1) + 0.5 in float32; any other order loses the 1
    rows = np.array([[[1e8], [-1e8], [1]]], np.float32)
    y = combine(np.ones((1, 3), np.float32), rows, np.array([[0.5]], np.float32))
    np.testing.assert_array_equal(y, [[1.5]])
    rows = rows[:, [0, 2, 1]]
    np.testing.assert_array_equal(combine(np.ones((1, 3), np.float32), rows), [[0]])


@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 70), st.booleans())
def test_combine_equals_a_loop(tokens: int, choices: int, width: int, with_shared: bool) -> None:
    rng = np.random.default_rng(tokens)
    rows = rng.standard_normal((tokens, choices, width), dtype=np.float32)
    weights = rng.random((tokens, choices), dtype=np.float32)
    shared = rng.standard_normal((tokens, width), dtype=np.float32) if with_shared else None
    wanted = np.empty((tokens, width), np.float32)
    for t in range(tokens):
        for d in range(width):
            y = weights[t, 0] * rows[t, 0, d]
            for k in range(1, choices):
                y = y + weights[t, k] * rows[t, k, d]
            wanted[t, d] = y if shared is None else y + shared[t, d]
    out = np.empty_like(wanted)
    assert combine(weights, rows, shared, out=out) is out
    np.testing.assert_array_equal(out, wanted)


def test_combine_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weights = _rows(90).reshape(30, 3, 48), np.abs(_rows(30, 3))
    whole = combine(weights, rows, _rows(30))
    monkeypatch.setattr("rayemu.model.reference._CHUNK_ELEMENTS", 7 * 48)
    np.testing.assert_array_equal(combine(weights, rows, _rows(30)), whole)


def test_dropped_choices_leave_their_weight_to_the_others() -> None:
    weights = np.array([[0.5, 0.25, 0.25], [0.6, 0.3, 0.1], [1, 1, 1], [0, 0.5, 0]], np.float32)
    kept = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]], bool)
    left = drop_choices(weights, kept)
    np.testing.assert_allclose(left[0], [2 / 3, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(left[1], weights[1])  # untouched to the bit
    np.testing.assert_array_equal(left[2:], 0)


class _Replay:
    """Drops some choices, rounds rows on their way out and halves them on their way back."""

    def __init__(self, kept: np.ndarray | None) -> None:
        self._kept = kept
        self.seen: list[tuple[int, int, int]] = []

    def routing(self, layer: Any, x: np.ndarray) -> None:
        return None

    def kept(self, layer: int, choices: int) -> np.ndarray | None:
        return self._kept

    def dispatch(self, layer: int, tokens: Any, choice: Any, rows: np.ndarray) -> np.ndarray:
        self.seen += [(layer, int(t), int(k)) for t, k in zip(tokens, choice, strict=True)]
        return np.round(rows, 1)

    def combine(self, layer: int, tokens: Any, choice: Any, rows: np.ndarray) -> np.ndarray:
        return rows / 2


@pytest.mark.parametrize("dropping", [False, True])
def test_replay_does_to_rows_what_the_run_did(dropping: bool) -> None:
    layer, x = Model(dataclasses.replace(PLAIN, top_k=3)).layers[1], _rows(20)
    kept = np.random.default_rng(2).random((20, 3)) < 0.6 if dropping else None
    replay = _Replay(kept)
    y = moe_forward(layer, x, replay)
    experts, weights = route(layer, x)
    rows = np.zeros((20, 3, 48), np.float32)
    for t in range(20):
        for k in range(3):
            if kept is None or kept[t, k]:
                expert = layer.experts[experts[t, k]]
                rows[t, k] = _one_row(expert, np.round(x[t : t + 1], 1)) / 2
    if kept is not None:
        weights = drop_choices(weights, kept)
    np.testing.assert_array_equal(y, combine(weights, rows))
    everything = {(1, t, k) for t in range(20) for k in range(3) if kept is None or kept[t, k]}
    assert set(replay.seen) == everything and len(replay.seen) == len(everything)


@pytest.mark.parametrize("dropping", [False, True])
def test_replay_gets_rows_that_are_weighed_already(dropping: bool) -> None:
    layer, x = Model(SPECS["llama 4"]).layers[1], _rows(20)
    kept = np.random.default_rng(2).random((20, 1)) < 0.6 if dropping else None
    experts, weights = route(layer, x)
    rows = np.zeros((20, 48), np.float32)
    for t in range(20):
        if kept is None or kept[t, 0]:
            sent = np.round(x[t : t + 1] * weights[t], 1)
            rows[t] = _one_row(layer.experts[experts[t, 0]], sent) / 2
    shared = shared_forward(layer, x)
    assert shared is not None
    np.testing.assert_array_equal(moe_forward(layer, x, _Replay(kept)), rows + shared)


def _one_row(expert: Expert, row: np.ndarray) -> np.ndarray:
    from rayemu.model import expert_forward

    return expert_forward(expert, row)[0]


def test_input_is_left_alone() -> None:
    h = _rows(30)
    before = h.copy()
    for spec in SPECS.values():
        reference_forward(Model(spec), h)
    np.testing.assert_array_equal(h, before)
