"""Weights from a seed: the same everywhere, made only when touched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rayemu.model import Model, ModelSpec
from rayemu.routing import SoftmaxTopK

SPEC = ModelSpec(
    "m",
    d_model=32,
    d_ff=48,
    experts=6,
    top_k=2,
    layers=3,
    shared_d_ff=16,
    shared_gate=True,
    dense_layers=1,
    dense_d_ff=64,
    router="sigmoid_group_topk",
    router_params={"groups": 3, "top_groups": 2},
    seed=11,
)


def test_any_builder_gets_the_same_bits() -> None:
    one, other = Model(SPEC), Model(SPEC)
    other.layers[2].experts[5]  # touched in another order
    for layer in (1, 2):
        for expert in (0, 3, 5):
            a, b = one.layers[layer].experts[expert], other.layers[layer].experts[expert]
            np.testing.assert_array_equal(a.up, b.up)
            np.testing.assert_array_equal(a.down, b.down)
    gates = one.layers[1].gate, other.layers[1].gate
    assert gates[0] is not None and gates[1] is not None
    np.testing.assert_array_equal(gates[0].weight, gates[1].weight)


def test_all_weights_differ() -> None:
    model, reseeded = Model(SPEC), Model(dataclasses.replace(SPEC, seed=12))
    ups = [model.layers[n].experts[e].up for n in (1, 2) for e in range(6)]
    ups.append(reseeded.layers[1].experts[0].up)
    firsts = [float(up[0, 0]) for up in ups]
    assert len(set(firsts)) == len(firsts)
    first, second = model.layers[1].gate, model.layers[2].gate
    assert first is not None and second is not None
    assert not np.array_equal(first.weight, second.weight)


def test_only_touched_experts_are_held() -> None:
    experts = Model(SPEC).layers[1].experts
    assert experts.held == []
    assert experts[4] is experts[4] and experts[-2] is experts[4]
    assert experts.held == [4]
    experts.release(4)
    assert experts.held == []
    with pytest.raises(IndexError, match="expert 6 of layer 1, which has 6"):
        experts[6]


def test_shapes_and_layout() -> None:
    layer = Model(SPEC).layers[1]
    expert = layer.experts[0]
    assert expert.up.shape == (32, 96) and expert.down.shape == (48, 32)
    assert layer.gate is not None and layer.gate.weight.shape == (32, 6)
    assert layer.gate.selection_bias is not None and layer.gate.selection_bias.shape == (6,)
    assert layer.shared is not None and layer.shared.up.shape == (32, 32)
    assert layer.shared_gate is not None and layer.shared_gate.shape == (32,)
    assert layer.norm is not None and layer.norm.shape == (32,)
    for weight in (expert.up, expert.down, layer.gate.weight, layer.shared.up):
        assert weight.dtype == np.float32 and weight.flags.c_contiguous


def test_dense_layers_have_an_ffn_and_no_experts() -> None:
    layer = Model(SPEC).layers[0]
    assert not layer.has_experts and layer.gate is None and len(layer.experts) == 0
    assert layer.shared_gate is None
    assert layer.shared is not None and layer.shared.up.shape == (32, 128)


def test_weights_keep_the_size_of_rows() -> None:
    wide = ModelSpec("w", d_model=512, d_ff=1024, experts=2, top_k=1, activation="relu")
    expert = Model(wide).layers[0].experts[0]
    assert expert.up.std() == pytest.approx(512**-0.5, rel=0.02)
    assert expert.down.std() == pytest.approx(1024**-0.5, rel=0.02)


def test_router_comes_from_the_spec_or_the_caller() -> None:
    assert Model(SPEC).layers[1].router.top_k == 2
    router = SoftmaxTopK(top_k=2)
    assert Model(SPEC, router=router).layers[1].router is router
    with pytest.raises(ValueError, match=r"routing.top_k is 7; allowed: 1 to 6"):
        Model(SPEC, router=SoftmaxTopK(top_k=7))
    with pytest.raises(ValueError, match=r"routing.top_k is 3; allowed: model.top_k = 2"):
        Model(SPEC, router=SoftmaxTopK(top_k=3))
    with pytest.raises(ValueError, match=r"routing.kind is 'magic'; allowed: one of softmax_topk"):
        Model(dataclasses.replace(SPEC, router="magic", router_params={}))
    with pytest.raises(ValueError, match=r"routing\.groups is 4"):
        Model(dataclasses.replace(SPEC, router_params={"groups": 4}))
