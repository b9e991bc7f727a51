"""The families of checkpoints that are read: what their config.json says, and how their tensors are named.

Absent keys get the value that transformers' configuration class of the family gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayemu.model.checkpoint_config import Config
from rayemu.model.expert import CLAMP_LIMIT, CLAMP_SLOPE
from rayemu.model.spec import ModelSpec
from rayemu.model.tensor_files import CheckpointError
from rayemu.routing import make_router


@dataclass(frozen=True)
class Family:
    """One family: `fields` of the spec and `moe_layers` (numbers of decoder layers) by its config; the names
    inside a decoder layer of the MoE `blocks` (whichever is there), of the `gate`, of the three `projections`
    of an expert (gate, up, down) and of the `shared` expert; `norm_eps` where the config gives none.

    `selection_bias`: the gate has e_score_correction_bias.
    `rows_in`: experts are always fused, as [E, in, out] instead of [E, out, in]. `interleaved`: their gate
    and up values alternate instead of standing side by side.
    """

    fields: Callable[[Config], dict[str, Any]]
    moe_layers: Callable[[Config], list[int]]
    norm_eps: float = 1e-6
    blocks: tuple[str, ...] = ("mlp",)
    gate: str = "gate"
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared: str = "shared_experts"
    selection_bias: bool = False
    rows_in: bool = False
    interleaved: bool = False


def text_config(config: Config) -> Config:
    """The part of `config` that describes the language model: all of it, but for models that also see."""
    kind = config.values.get("model_type")
    return config.section("text_config") if isinstance(kind, str) and kind in _WITH_TEXT else config


def family_of(config: Config) -> Family:
    """The family of the whole `config`. Raises CheckpointError naming the known ones."""
    return FAMILIES[family_name(config)]


def family_name(config: Config) -> str:
    """The name of the whole `config`'s family. Raises CheckpointError naming the known ones."""
    text = text_config(config)
    default = None if text is config else _WITH_TEXT[config.values["model_type"]]
    kind = text.values.get("model_type", default)
    if not isinstance(kind, str) or kind not in FAMILIES:
        text.refuse("model_type", f"one of {', '.join([*FAMILIES, *_WITH_TEXT])}")
    return kind


def moe_layer_numbers(config: Config) -> list[int]:
    """Numbers of the decoder layers that hold experts, in order."""
    return family_of(config).moe_layers(text_config(config))


def spec_from_config(whole: Config, directory: Path) -> ModelSpec:
    """The spec of the MoE layers of the checkpoint in `directory`. Raises CheckpointError."""
    family, config = family_of(whole), text_config(whole)
    whole.quantisation(), config.quantisation()
    if config.values.get("mlp_bias"):
        config.refuse("mlp_bias", "none: experts of this family have no biases here")
    config.choice("hidden_act", "silu", "swish")
    layers = family.moe_layers(config)
    if not layers:
        config.refuse("num_hidden_layers", "at least one MoE layer")
    try:
        spec = ModelSpec(
            name=directory.name or "checkpoint",
            d_model=config.integer("hidden_size"),
            top_k=config.integer("num_experts_per_tok"),
            layers=len(layers),
            norm_eps=config.number("rms_norm_eps", family.norm_eps),
            checkpoint=str(directory),
            **family.fields(config),
        )
        make_router(spec.router, spec.experts, top_k=spec.top_k, **spec.router_params)
    except CheckpointError:
        raise
    except ValueError as error:
        text = str(error)
        for ours, theirs in _KEYS.items():
            text = text.replace(ours, theirs)
        raise CheckpointError(f"{config.file}: {config.within}{text}") from error
    return spec


# What our messages call by another name than config.json.
_KEYS = {
    "routing.groups": "n_group",
    "routing.top_groups": "topk_group",
    "routing.top_k": "num_experts_per_tok",
    "model.norm_eps": "rms_norm_eps",
}


def _layers(config: Config) -> int:
    return config.integer("num_hidden_layers", least=0)


def _all(config: Config) -> list[int]:
    return list(range(_layers(config)))


def _after(dense: int) -> Callable[[Config], list[int]]:
    """All after the leading dense ones, `dense` by default, but for those that moe_layer_freq leaves out."""

    def numbers(config: Config) -> list[int]:
        count = _layers(config)
        first = config.integer("first_k_dense_replace", dense, least=0)
        return [n for n in _every(config, count) if n >= first]

    return numbers


def _every(config: Config, count: int) -> list[int]:
    """moe_layer_freq: every how many layers one has experts, or a list with 1 for those that have."""
    key = "moe_layer_freq"
    if not isinstance(config.values.get(key), list):
        return list(range(0, count, config.integer(key, 1)))
    listed = config.integers(key, most=2)
    if len(listed) != count:
        config.refuse(key, f"an integer, or a 0 or 1 for each of num_hidden_layers = {count}")
    return [n for n, holds in enumerate(listed) if holds]


def _sparse_steps(config: Config) -> list[int]:
    count, every = _layers(config), config.integer("decoder_sparse_step", 1)
    dense = set(config.integers("mlp_only_layers", most=1 << 20))
    return [n for n in range(count) if n not in dense and (n + 1) % every == 0]


def _interleaved(config: Config) -> list[int]:
    count = _layers(config)
    if config.given("moe_layers"):
        return sorted(set(config.integers("moe_layers", most=count)))
    step = config.integer("interleave_moe_layer_step", 1)
    return list(range(step - 1, count, step))


def _experts(config: Config, usual: str) -> int:
    """Experts, under the family's usual key or another that some transformers version writes."""
    names = [usual, "num_experts", "num_local_experts", "n_routed_experts"]
    return config.integer(next((name for name in names if config.given(name)), usual))


def _mixtral(config: Config) -> dict[str, Any]:
    return {"d_ff": config.integer("intermediate_size"), "experts": _experts(config, "num_local_experts")}


def _olmoe(config: Config) -> dict[str, Any]:
    return {
        "d_ff": config.integer("intermediate_size"),
        "experts": _experts(config, "num_experts"),
        "router_params": {"renormalise": config.flag("norm_topk_prob", False)},
    }


def _qwen3(config: Config) -> dict[str, Any]:
    return {
        "d_ff": config.integer("moe_intermediate_size"),
        "experts": _experts(config, "num_experts"),
        "router_params": {"renormalise": config.flag("norm_topk_prob", False)},
    }


def _qwen2(config: Config) -> dict[str, Any]:
    shared = config.integer("shared_expert_intermediate_size", least=0)
    return {**_qwen3(config), "shared_d_ff": shared, "shared_gate": shared > 0}


def _with_shared(config: Config, shared: int) -> dict[str, Any]:
    """Widths of the families whose n_shared_experts (by default `shared`) are as wide as the routed ones."""
    width = config.integer("moe_intermediate_size")
    if "n_shared_experts" in config and not config.given("n_shared_experts"):
        shared = 0
    else:
        shared = config.integer("n_shared_experts", shared, least=0)
    return {
        "d_ff": width,
        "experts": _experts(config, "n_routed_experts"),
        "shared_d_ff": width * shared,
    }


def _deepseek_v2(config: Config) -> dict[str, Any]:
    config.choice("scoring_func", "softmax")
    method = config.choice("topk_method", "greedy", "group_limited_greedy")
    # transformers' block always scales and never reads norm_topk_prob, which is false in published models
    params: dict[str, Any] = {"renormalise": False, "scaling": config.number("routed_scaling_factor", 1.0)}
    fields = _with_shared(config, shared=0)
    if method == "greedy":
        return {**fields, "router_params": params}
    params |= {"groups": config.integer("n_group", 1), "top_groups": config.integer("topk_group", 1)}
    return {**fields, "router": "softmax_group_topk", "router_params": params}


def _noaux(shared: int, groups: int, top_groups: int, scaling: float) -> Callable[[Config], dict[str, Any]]:
    """Families with DeepSeek-V3's gate, and their defaults."""

    def fields(config: Config) -> dict[str, Any]:
        config.choice("scoring_func", "sigmoid")
        config.choice("topk_method", "noaux_tc")
        params = {
            "groups": config.integer("n_group", groups),
            "top_groups": config.integer("topk_group", top_groups),
            "renormalise": config.flag("norm_topk_prob", True),
            "scaling": config.number("routed_scaling_factor", scaling),
        }
        router = {"router": "sigmoid_group_topk", "router_params": params}
        return {**_with_shared(config, shared), **router}

    return fields


def _gpt_oss(config: Config) -> dict[str, Any]:
    config.choice("swiglu_alpha", CLAMP_SLOPE)
    config.choice("swiglu_limit", CLAMP_LIMIT)
    experts = _experts(config, "num_local_experts")
    widths = {"d_ff": config.integer("intermediate_size"), "experts": experts}
    return {**widths, "activation": "clamped_swiglu", "biases": True}


def _llama4(config: Config) -> dict[str, Any]:
    if config.integer("num_experts_per_tok") != 1:
        config.refuse("num_experts_per_tok", "1, as in all published models of this family")
    width = config.integer("intermediate_size")
    return {
        "d_ff": width,
        "experts": _experts(config, "num_local_experts"),
        "shared_d_ff": width,
        "weigh_input": True,
        "router": "sigmoid_group_topk",
        "router_params": {"renormalise": False},
    }


# DeepSeek's own configs always give n_shared_experts; one that does not, has none.
_DEEPSEEK_V3 = Family(_noaux(0, 8, 4, 2.5), _after(dense=3), selection_bias=True)

FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        _mixtral, _all, 1e-5, blocks=("mlp", "block_sparse_moe"), projections=("w1", "w3", "w2")
    ),
    "qwen2_moe": Family(_qwen2, _sparse_steps, shared="shared_expert"),
    "qwen3_moe": Family(_qwen3, _sparse_steps),
    "olmoe": Family(_olmoe, _all, 1e-5),
    "deepseek_v2": Family(_deepseek_v2, _after(dense=0)),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,  # the same code with other dimensions
    "gpt_oss": Family(_gpt_oss, _all, 1e-5, gate="router", rows_in=True, interleaved=True),
    "llama4_text": Family(
        _llama4,
        _interleaved,
        1e-5,
        blocks=("feed_forward",),
        gate="router",
        shared="shared_expert",
        rows_in=True,
    ),
    "glm4_moe": Family(_noaux(1, 1, 1, 1.0), _after(dense=1), 1e-5, selection_bias=True),
}
# Models that also see, and the family of their text_config where that does not say.
_WITH_TEXT = {"kimi_k25": "deepseek_v3", "llama4": "llama4_text"}
