"""Specs and presets: refusals, scaling, and counts against published or hand-computed figures."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from rayemu.model import PRESETS, Model, ModelSpec, preset
from rayemu.model.accounting import ATTENTION, cache_bytes, parameters


@pytest.mark.parametrize(
    ("change", "path", "allowed"),
    [
        ({"top_k": 9}, "model.top_k is 9", "at most experts = 8"),
        ({"d_model": 0}, "model.d_model is 0", ">= 1"),
        ({"activation": "tanh"}, "model.activation is 'tanh'", "swiglu, gelu, relu"),
        ({"dense_layers": 3}, "model.dense_layers is 3", "at most layers = 2"),
        ({"dense_layers": 1}, "model.dense_d_ff is 0", "with dense_layers"),
        ({"shared_gate": True}, "model.shared_gate is True", "shared_d_ff"),
        ({"norm_eps": 0.0}, "model.norm_eps is 0.0", "> 0"),
        ({"seed": -1}, "model.seed is -1", ">= 0"),
    ],
)
def test_impossible_values_are_refused(change: dict, path: str, allowed: str) -> None:
    good = ModelSpec("m", d_model=16, d_ff=32, experts=8, top_k=2, layers=2)
    with pytest.raises(ValueError) as refusal:
        dataclasses.replace(good, **change)
    assert path in str(refusal.value) and allowed in str(refusal.value)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'mixtral'.*mixtral-8x7b.*deepseek-v3"):
        preset("mixtral")


def test_scaling_divides_every_width_and_can_be_undone() -> None:
    full = PRESETS["deepseek-v3"]
    small = full.scaled(8)
    assert (small.d_model, small.d_ff, small.shared_d_ff, small.dense_d_ff) == (896, 256, 256, 2304)
    assert (small.full_d_model, small.full_d_ff, small.scale) == (7168, 2048, 8)
    assert (small.experts, small.top_k, small.layers) == (256, 8, 61)
    assert small.full() == full
    assert small.scaled(2).full() == full
    changed = dataclasses.replace(small, d_model=64)
    assert changed.full_d_model == 512
    with pytest.raises(ValueError, match=r"model\.scale is 3.*divisor of d_model = 7168"):
        full.scaled(3)


def test_specs_travel_and_presets_build() -> None:
    for spec in PRESETS.values():
        copy = pickle.loads(pickle.dumps(spec))
        assert copy == spec and hash(copy) == hash(spec)
        model = Model(spec)  # trillions of parameters, none of them touched
        assert len(model.layers) == spec.layers
        assert sum(layer.has_experts for layer in model.layers) == spec.moe_layers
        assert len(model.layers[-1].experts) == spec.experts


def test_expert_figures_by_hand() -> None:
    spec = ModelSpec("m", d_model=10, d_ff=7, experts=4, top_k=2, layers=3, shared_d_ff=5, shared_gate=True)
    assert spec.expert_parameters() == 3 * 10 * 7
    assert spec.expert_bytes() == 4 * 210 and spec.expert_bytes(4) == 105
    assert spec.flops_per_row() == 2 * 210
    assert spec.router_parameters() == 40
    assert spec.shared_parameters() == 3 * 10 * 5 + 10
    assert spec.parameters() == 3 * (4 * 210 + 40 + 160 + 10)
    assert spec.flops_per_token() == 3 * (2 * 420 + 2 * 40 + 2 * 160)
    two_matrices = dataclasses.replace(spec, activation="relu")
    assert two_matrices.expert_parameters() == 2 * 10 * 7
    # 6 tokens: input, norm, output and 2 replies of width 10, and 14 columns of scratch
    assert spec.activation_bytes(6) == 4 * 6 * (5 * 10 + 14)


def test_biases_by_hand() -> None:
    spec = ModelSpec(
        "m", d_model=10, d_ff=7, experts=4, top_k=2, layers=3, activation="clamped_swiglu", biases=True,
        shared_d_ff=5, dense_layers=1, dense_d_ff=6,
    )  # fmt: skip
    expert, shared, dense = ((3 * 10 * n, 2 * n + 10) for n in (7, 5, 6))  # weights, biases
    assert spec.expert_parameters() == sum(expert) and spec.expert_bytes() == 4 * 234
    assert spec.router_parameters() == 4 * (10 + 1)
    assert spec.flops_per_row() == 2 * expert[0] + expert[1]
    one = 2 * (2 * expert[0] + expert[1]) + 4 * (2 * 10 + 1) + 2 * shared[0] + shared[1]
    assert spec.flops_per_token() == 2 * one + 2 * dense[0] + dense[1]
    assert spec.parameters() == 2 * (4 * 234 + 44 + sum(shared) + 10) + sum(dense) + 10
    model = Model(spec)
    assert model.layers[1].experts[0].nbytes == spec.expert_bytes()
    gate = model.layers[1].gate
    assert gate is not None and gate.bias is not None and gate.selection_bias is None


def test_weighed_inputs_by_hand() -> None:
    spec = ModelSpec("m", 10, 7, experts=4, top_k=1, weigh_input=True, router="sigmoid_group_topk")
    assert spec.router_parameters() == 40
    gate = Model(spec).layers[0].gate
    assert gate is not None and gate.bias is None and gate.selection_bias is None
    # 6 tokens: input, norm, weighed rows, output and a reply of width 10, and 14 columns of scratch
    assert spec.activation_bytes(6) == 4 * 6 * (5 * 10 + 14)
    with pytest.raises(ValueError, match=r"model.weigh_input is True; allowed: with top_k = 1 only"):
        dataclasses.replace(spec, top_k=2)


# Totals that the models' authors publish: exact where their checkpoints' tensors were counted.
@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("mixtral-8x7b", 46_702_792_704, 12_879_925_248),
        ("qwen3-30b-a3b", 30_532_122_624, None),
        ("qwen3-235b-a22b", 235_093_634_560, None),
        ("olmoe", 6_919_161_856, None),
        ("deepseek-v2-lite", 15_706_484_224, None),
        ("deepseek-v3", 671_026_419_200, None),
        ("gpt-oss-20b", 20_914_757_184, None),
        ("gpt-oss-120b", 116_829_156_672, None),
    ],
)
def test_parameter_totals(name: str, total: int, active: int | None) -> None:
    parts = parameters(PRESETS[name], ATTENTION[name])
    assert parts["total"] == total
    assert active is None or parts["active"] == active


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("mixtral-8x22b", 141e9, 39e9),
        ("switch-c-2048", 1571e9, None),
        ("olmoe", 6.9e9, 1.3e9),
        ("llama-4-scout", 107.8e9, 17.2e9),
    ],
)
def test_rounded_parameter_totals(name: str, total: float, active: float | None) -> None:
    parts = parameters(PRESETS[name], ATTENTION[name])
    assert parts["total"] == pytest.approx(total, rel=0.005)
    assert active is None or parts["active"] == pytest.approx(active, rel=0.02)


def test_mixtral_parts_by_hand() -> None:
    parts = parameters(PRESETS["mixtral-8x7b"].scaled(8), ATTENTION["mixtral-8x7b"])
    assert parts["experts"] == 32 * 8 * 3 * 4096 * 14336  # 45.1 B of 46.7 B
    assert parts["router"] == 32 * 4096 * 8
    assert parts["attention"] == 32 * 4096 * (4096 + 1024 + 1024 + 4096)
    assert parts["embeddings"] == 2 * 32000 * 4096
    assert parts["norms"] == (2 * 32 + 1) * 4096


def test_every_preset_can_be_accounted_for() -> None:
    assert ATTENTION.keys() == PRESETS.keys()


def test_cache_by_hand() -> None:
    # Mixtral: 32 layers, keys and values, 8 heads of 128, two bytes
    assert cache_bytes(PRESETS["mixtral-8x7b"], ATTENTION["mixtral-8x7b"], 1) == 32 * 2 * 8 * 128 * 2
    # DeepSeek-V3: 61 layers of 512 latent and 64 positional numbers
    assert cache_bytes(PRESETS["deepseek-v3"], ATTENTION["deepseek-v3"], 10, bits=8) == 61 * 576 * 10
