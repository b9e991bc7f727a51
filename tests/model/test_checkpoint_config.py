"""config.json: what it says becomes a spec, what is wrong in it is refused by the name of its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayemu.model import CheckpointError, checkpoint_spec, load_checkpoint
from tests.model.checkpoints import MIXTRAL, V3, write

QWEN: dict[str, Any] = {
    "hidden_size": 16,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
}
# The least that a config of each family must say.
LEAST: dict[str, dict[str, Any]] = {
    "mixtral": {k: v for k, v in MIXTRAL.items() if k != "rms_norm_eps"},
    "qwen2_moe": QWEN,
    "qwen3_moe": QWEN,
    "olmoe": {**QWEN, "intermediate_size": 8},
    "deepseek_v2": {**QWEN, "n_routed_experts": 6},
    "deepseek_v3": {**QWEN, "n_routed_experts": 256},
    "kimi_k2": {**QWEN, "n_routed_experts": 256},
    "glm4_moe": {**QWEN, "n_routed_experts": 6},
    "gpt_oss": {**QWEN, "intermediate_size": 8},
    "llama4_text": {**QWEN, "intermediate_size": 8, "num_experts_per_tok": 1},
}
# What the configuration classes of transformers 5.23 take where the config says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mixtral": {"norm_eps": 1e-5, "layers": 2},
    "qwen2_moe": {"norm_eps": 1e-6, "renormalise": False, "layers": 4},
    "qwen3_moe": {"norm_eps": 1e-6, "renormalise": False, "layers": 4},
    "olmoe": {"norm_eps": 1e-5, "renormalise": False, "layers": 4},
    "deepseek_v2": {"norm_eps": 1e-6, "renormalise": False, "scaling": 1.0, "layers": 4},
    "deepseek_v3": {
        "norm_eps": 1e-6,
        "groups": 8,
        "top_groups": 4,
        "renormalise": True,
        "scaling": 2.5,
        "layers": 1,
    },
    "gpt_oss": {"norm_eps": 1e-5, "layers": 4, "biases": True, "activation": "clamped_swiglu"},
    "llama4_text": {"norm_eps": 1e-5, "renormalise": False, "layers": 4, "shared_d_ff": 8},
    "glm4_moe": {
        "norm_eps": 1e-5,
        "groups": 1,
        "top_groups": 1,
        "renormalise": True,
        "scaling": 1.0,
        "layers": 3,
        "shared_d_ff": 8,
    },
}
DEFAULTS["kimi_k2"] = DEFAULTS["deepseek_v3"]


def spec_of(tmp_path: Path, config: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return checkpoint_spec(tmp_path)


@pytest.mark.parametrize("family", LEAST)
def test_absent_fields_get_the_family_s_defaults(family: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"model_type": family, **LEAST[family]})
    found = {**spec.router_params, **vars(spec)}
    assert {key: found[key] for key in DEFAULTS[family]} == DEFAULTS[family]


@pytest.mark.parametrize("family", LEAST)
def test_given_fields_win(family: str, tmp_path: Path) -> None:
    given = {"rms_norm_eps": 0.25, "routed_scaling_factor": 3, "norm_topk_prob": family != "deepseek_v3"}
    spec = spec_of(tmp_path, {"model_type": family, **LEAST[family], **given})
    assert spec.norm_eps == 0.25
    assert spec.router_params.get("scaling", 3) == 3
    if "renormalise" in spec.router_params and family not in ("deepseek_v2", "llama4_text"):
        assert spec.router_params["renormalise"] is given["norm_topk_prob"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, r"model_type is 'llama'; allowed: one of mixtral, qwen2_moe"),
        ({"model_type": None}, r"model_type is None"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; allowed: silu"),
        ({"hidden_size": None}, r"hidden_size is None; allowed: an integer"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0; allowed: at least one MoE layer"),
        ({"num_experts_per_tok": 4}, r"model.top_k is 4; allowed: at most experts = 3"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            r"quantization_config is .*save the model in bf16",
        ),
    ],
)
def test_unusable_configs_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    directory = write(tmp_path / "ck", {**MIXTRAL, **change}, {})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring_func": "softmax"}, r"scoring_func is 'softmax'; allowed: sigmoid"),
        ({"topk_method": "greedy"}, r"topk_method is 'greedy'; allowed: noaux_tc"),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, r"'noaux_tc'; allowed: greedy or group"),
    ],
)
def test_unknown_gates_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write(tmp_path / "ck", {**V3, **change}, {}))


_GROUPED = {**V3, "n_routed_experts": 6, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_group": 0}, r"config.json: n_group is 0; allowed: an integer from 1"),
        ({"n_group": None}, r"config.json: n_group is None; allowed: an integer from 1"),
        ({"n_group": 4}, r"config.json: n_group is 4; allowed: a divisor of 6 experts"),
        ({"n_group": 6, "topk_group": 3}, r"n_group is 6; allowed: a divisor of 6 experts with >= 2 in each"),
        ({"n_group": 2, "topk_group": 3}, r"config.json: topk_group is 3; allowed: 1 to"),
        ({"n_group": 3, "num_experts_per_tok": 3}, r"config.json: num_experts_per_tok is 3; allowed: 1 to 2"),
        ({"first_k_dense_replace": -1}, r"first_k_dense_replace is -1"),
        ({"moe_layer_freq": 0}, r"moe_layer_freq is 0; allowed: an integer from 1"),
        ({"moe_layer_freq": [0, 1]}, r"moe_layer_freq is \[0, 1\]; .* for each of num_hidden_layers = 3"),
        ({"moe_layer_freq": [0, 1, 2]}, r"moe_layer_freq is \[0, 1, 2\]; allowed: a list of integers"),
        ({"moe_layer_freq": "1"}, r"moe_layer_freq is '1'"),
        ({"moe_layer_freq": [1, 0, 0]}, r"num_hidden_layers is 3; allowed: at least one MoE layer"),
        ({"rms_norm_eps": 0}, r"config.json: rms_norm_eps is 0.0; allowed: a number > 0"),
        ({"hidden_size": True}, r"hidden_size is True; allowed: an integer"),
        ({"n_routed_experts": 10**12}, r"n_routed_experts is 1000000000000; allowed: an integer from 1 to"),
        ({"mlp_bias": True}, r"mlp_bias is True"),
    ],
)
def test_fields_that_cannot_work_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        spec_of(tmp_path, {**_GROUPED, **change})


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"moe_layer_freq": [0, 1, 1], "first_k_dense_replace": 0}, [1, 2]),
        ({"moe_layer_freq": [1, 1, 1], "first_k_dense_replace": 2}, [2]),
        ({"moe_layer_freq": 2, "first_k_dense_replace": 0}, [0, 2]),
        ({"moe_layer_freq": 2, "first_k_dense_replace": 1}, [2]),
        ({}, [1, 2]),
    ],
)
def test_layers_with_experts(tmp_path: Path, change: dict[str, Any], layers: list[int]) -> None:
    """A layer that the config wrongly takes for one with experts has no gate, and is named."""
    spec = spec_of(tmp_path, {**V3, **change})
    assert spec.layers == len(layers)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(write(tmp_path, {**V3, **change}, {}))
    assert f"model.layers.{layers[0]}.mlp.gate.weight is missing" in str(refusal.value)


_WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "2",
    [],
    [1],
    [None],
    {},
    {"a": [{}]},
]
_READ = {
    *("model_type", "quantization_config", "mlp_bias", "hidden_act", "num_hidden_layers", "hidden_size"),
    *("num_experts_per_tok", "rms_norm_eps", "first_k_dense_replace", "moe_layer_freq", "mlp_only_layers"),
    *("decoder_sparse_step", "num_experts", "num_local_experts", "n_routed_experts", "intermediate_size"),
    *("moe_intermediate_size", "norm_topk_prob", "shared_expert_intermediate_size", "n_shared_experts"),
    *("scoring_func", "topk_method", "routed_scaling_factor", "n_group", "topk_group", "text_config"),
    *("swiglu_alpha", "swiglu_limit", "moe_layers", "interleave_moe_layer_step"),
}


@pytest.mark.parametrize("family", LEAST)
def test_values_of_any_type_are_taken_or_refused(family: str, tmp_path: Path) -> None:
    for key in sorted(_READ):
        for value in _WRONG:
            config = {"topk_method": "noaux_tc", "model_type": family, **LEAST[family], key: value}
            if family == "deepseek_v2" and key != "topk_method":
                config["topk_method"] = "group_limited_greedy"
            try:
                spec = spec_of(tmp_path, config)
            except CheckpointError as refusal:
                assert "config.json: " in str(refusal), (key, value)
            else:
                assert spec.experts >= spec.top_k >= 1 and spec.norm_eps > 0


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model_type": ' * 100_000, "\xff", "1" * 5000])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json"):
        checkpoint_spec(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "gemma"])
def test_unknown_families_are_refused_with_the_known_ones(family: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        spec_of(tmp_path, {**MIXTRAL, "model_type": family})
    assert f"model_type is {family!r}; allowed: one of " in str(refusal.value)
    assert all(known in str(refusal.value) for known in LEAST)
