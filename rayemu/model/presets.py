"""Models by name, with their real dimensions.

Dimensions come from the `config.json` that each model's authors published (repository in the comment), those
of Switch-C from the paper's table 9, those of the two hypothetical models from the book chapter this project
started from. `ModelSpec.scaled(n)` gives a preset at width/n.
"""

from __future__ import annotations

from rayemu.model.spec import ModelSpec

_ALL = (
    # mistralai/Mixtral-8x7B-v0.1
    ModelSpec("mixtral-8x7b", 4096, 14336, experts=8, top_k=2, layers=32, norm_eps=1e-5),
    # mistralai/Mixtral-8x22B-v0.1
    ModelSpec("mixtral-8x22b", 6144, 16384, experts=8, top_k=2, layers=56, norm_eps=1e-5),
    # Qwen/Qwen3-30B-A3B: moe_intermediate_size 768, norm_topk_prob true
    ModelSpec("qwen3-30b-a3b", 2048, 768, experts=128, top_k=8, layers=48),
    # Qwen/Qwen3-235B-A22B: moe_intermediate_size 1536, norm_topk_prob true
    ModelSpec("qwen3-235b-a22b", 4096, 1536, experts=128, top_k=8, layers=94),
    # allenai/OLMoE-1B-7B-0924: norm_topk_prob false
    ModelSpec(
        "olmoe",
        2048,
        1024,
        experts=64,
        top_k=8,
        layers=16,
        norm_eps=1e-5,
        router_params={"renormalise": False},
    ),
    # deepseek-ai/DeepSeek-V2-Lite: two shared experts of 1408, topk_method greedy, first layer dense
    ModelSpec(
        "deepseek-v2-lite",
        2048,
        1408,
        experts=64,
        top_k=6,
        layers=27,
        shared_d_ff=2 * 1408,
        dense_layers=1,
        dense_d_ff=10944,
        router_params={"renormalise": False},
    ),
    # deepseek-ai/DeepSeek-V3: 8 groups, 4 of them open to a token, routed_scaling_factor 2.5, 3 dense layers
    ModelSpec(
        "deepseek-v3",
        7168,
        2048,
        experts=256,
        top_k=8,
        layers=61,
        shared_d_ff=2048,
        dense_layers=3,
        dense_d_ff=18432,
        router="sigmoid_group_topk",
        router_params={"groups": 8, "top_groups": 4, "renormalise": True, "scaling": 2.5},
    ),
    # openai/gpt-oss-20b: biases in gate and experts, swiglu_limit 7.0
    ModelSpec(
        "gpt-oss-20b",
        2880,
        2880,
        experts=32,
        top_k=4,
        layers=24,
        activation="clamped_swiglu",
        biases=True,
        norm_eps=1e-5,
    ),
    # openai/gpt-oss-120b: the same
    ModelSpec(
        "gpt-oss-120b",
        2880,
        2880,
        experts=128,
        top_k=4,
        layers=36,
        activation="clamped_swiglu",
        biases=True,
        norm_eps=1e-5,
    ),
    # meta-llama/Llama-4-Scout-17B-16E: experts in every layer (Maverick's alternate with dense layers, which
    # a spec does not describe), the expert's input times the sigmoid of its logit
    ModelSpec(
        "llama-4-scout",
        5120,
        8192,
        experts=16,
        top_k=1,
        layers=48,
        weigh_input=True,
        shared_d_ff=8192,
        norm_eps=1e-5,
        router="sigmoid_group_topk",
        router_params={"renormalise": False},
    ),
    # google/switch-c-2048 and Fedus et al. 2021, table 9: 15 encoder and 15 decoder layers, every FFN routed,
    # top-1 weighted by the plain softmax probability
    ModelSpec(
        "switch-c-2048",
        2080,
        6144,
        experts=2048,
        top_k=1,
        layers=30,
        activation="relu",
        router_params={"renormalise": False},
    ),
    # The chapter's "1.8T MoE": its d_model, d_ff and layers give 145 B per two-matrix expert, not its 110 B
    ModelSpec("16x110b", 12288, 49152, experts=16, top_k=2, layers=120, activation="gelu"),
    # The chapter's "10T MoE": its d_model, d_ff and layers give 322 B per two-matrix expert, not its 156 B
    ModelSpec("64x156b", 16384, 65536, experts=64, top_k=4, layers=150, activation="gelu"),
)

PRESETS: dict[str, ModelSpec] = {spec.name: spec for spec in _ALL}


def preset(name: str) -> ModelSpec:
    """The spec of the model called `name`. Raises ValueError naming the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"model.preset is {name!r}; allowed: one of {', '.join(PRESETS)}") from None
