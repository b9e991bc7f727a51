"""What a Hugging Face config.json says about its MoE layers, as a `ModelSpec`.

Absent keys get the value that transformers' configuration class of the family gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayemu.model.spec import ModelSpec
from rayemu.model.tensor_files import CheckpointError

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")
_DEEPSEEK = ("deepseek_v2", "deepseek_v3")


def spec_from_config(config: Mapping[str, Any], directory: Path) -> ModelSpec:
    """The spec of the MoE layers of the checkpoint in `directory`. Raises CheckpointError."""
    family = config.get("model_type")
    if family not in FAMILIES:
        _refuse(directory, "model_type", family, f"one of {', '.join(FAMILIES)}")
    for key in ("quantization_config", "mlp_bias"):
        if config.get(key):
            _refuse(directory, key, config[key], "none: save the model in bf16, fp16 or fp32 without biases")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        _refuse(directory, "hidden_act", config["hidden_act"], "silu")
    layers = moe_layer_numbers(config)
    if not layers:
        _refuse(directory, "num_hidden_layers", config.get("num_hidden_layers"), "at least one MoE layer")
    fields = _FIELDS.get(str(family), _qwen)(config, directory)
    try:
        return ModelSpec(
            name=directory.name or str(family),
            d_model=_number(config, "hidden_size", directory),
            top_k=_number(config, "num_experts_per_tok", directory),
            layers=len(layers),
            norm_eps=float(config.get("rms_norm_eps", 1e-5 if family in ("mixtral", "olmoe") else 1e-6)),
            checkpoint=str(directory),
            **fields,
        )
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error


def moe_layer_numbers(config: Mapping[str, Any]) -> list[int]:
    """Numbers of the decoder layers that hold experts, in order."""
    count = int(config.get("num_hidden_layers") or 0)
    family = config.get("model_type")
    if family in _DEEPSEEK:
        first = int(config.get("first_k_dense_replace", 3 if family == "deepseek_v3" else 0) or 0)
        every = int(config.get("moe_layer_freq") or 1)
        return [n for n in range(count) if n >= first and n % every == 0]
    if family in ("qwen2_moe", "qwen3_moe"):
        dense = set(config.get("mlp_only_layers") or ())
        every = int(config.get("decoder_sparse_step") or 1)
        return [n for n in range(count) if n not in dense and (n + 1) % every == 0]
    return list(range(count))


def _mixtral(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    return {
        "d_ff": _number(config, "intermediate_size", directory),
        "experts": _experts(config, "num_local_experts", directory),
    }


def _olmoe(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    return {
        "d_ff": _number(config, "intermediate_size", directory),
        "experts": _experts(config, "num_experts", directory),
        "router_params": {"renormalise": bool(config.get("norm_topk_prob", False))},
    }


def _qwen(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    shared = 0
    if config["model_type"] == "qwen2_moe":
        shared = _number(config, "shared_expert_intermediate_size", directory)
    return {
        "d_ff": _number(config, "moe_intermediate_size", directory),
        "experts": _experts(config, "num_experts", directory),
        "shared_d_ff": shared,
        "shared_gate": shared > 0,
        "router_params": {"renormalise": bool(config.get("norm_topk_prob", False))},
    }


def _deepseek(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    width = _number(config, "moe_intermediate_size", directory)
    return {
        "d_ff": width,
        "experts": _experts(config, "n_routed_experts", directory),
        "shared_d_ff": width * int(config.get("n_shared_experts") or 0),
    }


def _deepseek_v2(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    _expect(config, "scoring_func", "softmax", directory)
    method = config.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        _refuse(directory, "topk_method", method, "greedy or group_limited_greedy")
    # transformers' block always scales and never reads norm_topk_prob, which is false in published models
    params: dict[str, Any] = {
        "renormalise": False,
        "scaling": float(config.get("routed_scaling_factor", 1.0)),
    }
    if method == "greedy":
        return {**_deepseek(config, directory), "router_params": params}
    params |= {"groups": int(config.get("n_group") or 1), "top_groups": int(config.get("topk_group") or 1)}
    return {**_deepseek(config, directory), "router": "softmax_group_topk", "router_params": params}


def _deepseek_v3(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    _expect(config, "scoring_func", "sigmoid", directory)
    _expect(config, "topk_method", "noaux_tc", directory)
    params = {
        "groups": int(config.get("n_group") or 8),
        "top_groups": int(config.get("topk_group") or 4),
        "renormalise": bool(config.get("norm_topk_prob", True)),
        "scaling": float(config.get("routed_scaling_factor", 2.5)),
    }
    return {**_deepseek(config, directory), "router": "sigmoid_group_topk", "router_params": params}


_FIELDS = {
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
}


def _experts(config: Mapping[str, Any], usual: str, directory: Path) -> int:
    """Experts, under the family's usual key or another that some transformers version writes."""
    names = [usual, "num_experts", "num_local_experts", "n_routed_experts"]
    return _number(config, next((name for name in names if config.get(name) is not None), usual), directory)


def _number(config: Mapping[str, Any], key: str, directory: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 0:
        _refuse(directory, key, value, "an integer")
    return int(value)  # type: ignore[arg-type]


def _expect(config: Mapping[str, Any], key: str, expected: str, directory: Path) -> None:
    if config.get(key, expected) != expected:
        _refuse(directory, key, config[key], expected)


def _refuse(directory: Path, key: str, value: object, allowed: str) -> None:
    raise CheckpointError(f"{directory / 'config.json'}: {key} is {value!r}; allowed: {allowed}")
