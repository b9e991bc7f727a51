"""Loaded checkpoints against the transformers modules that wrote them: same choices, outputs within 1e-5."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.model import PRESETS, load_checkpoint, moe_forward, reference_forward, route
from rayemu.model.accounting import ATTENTION, parameters
from rayemu.model.model import Layer, Model
from rayemu.model.quantised import mxfp4

_REASON = "install the parity extra: bash launch/test.sh --parity"
torch = pytest.importorskip("torch", reason=_REASON)
transformers = pytest.importorskip("transformers", reason=_REASON)

_DIMENSIONS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLA = {
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
}


def _config(family: str, **settings: Any) -> Any:
    text = "Text" if family == "Llama4" else ""
    return getattr(transformers, f"{family}{text}Config")(**settings)


@dataclasses.dataclass
class Case:
    """A family, its settings, which of its decoder layers hold experts, what its published config says."""

    family: str
    settings: dict[str, Any]
    moe_layers: list[int]
    published: dict[str, Any] = dataclasses.field(default_factory=dict)

    def build(self) -> Any:
        """A tiny transformers model with random weights, gates far from ties and norms that matter."""
        torch.manual_seed(7)
        config = _config(self.family, **{**_DIMENSIONS, **self.settings})
        model = getattr(transformers, f"{self.family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.uniform_(0.5, 1.5)
                else:
                    weight.normal_(0, weight.shape[-1] ** -0.5)
            for name, buffer in model.named_buffers():
                if "correction_bias" in name:
                    buffer.uniform_(-0.5, 0.5)
        return model


def _saved(theirs: Any, case: Case, directory: Path, **options: Any) -> Model:
    """What we read of what transformers writes."""
    theirs.save_pretrained(directory, **options)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **case.published}))
    return load_checkpoint(directory)


_QWEN = {"intermediate_size": 40, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3}
_GLM = {"intermediate_size": 40, "moe_intermediate_size": 24, "num_experts_per_tok": 3, "head_dim": 8}
_V2 = {**_MLA, "n_routed_experts": 8, "num_experts_per_tok": 3, "q_lora_rank": None}
_V3 = {**_MLA, "n_routed_experts": 16, "num_experts_per_tok": 4, "q_lora_rank": 16}

_GPT = {"intermediate_size": 24, "num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 8}
_LLAMA4 = {"intermediate_size": 24, "intermediate_size_mlp": 40, "num_local_experts": 6, "head_dim": 8}

CASES = {
    "mixtral": Case(
        "Mixtral",
        {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
        [0, 1, 2, 3],
    ),
    "mixtral-top1": Case(
        "Mixtral",
        {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 1},
        [0, 1, 2, 3],
    ),
    "qwen2": Case(
        "Qwen2Moe", {**_QWEN, "shared_expert_intermediate_size": 56, "mlp_only_layers": [1]}, [0, 2, 3]
    ),
    "qwen2-renormalised": Case(
        "Qwen2Moe", {**_QWEN, "shared_expert_intermediate_size": 16, "norm_topk_prob": True}, [0, 1, 2, 3]
    ),
    "qwen3": Case("Qwen3Moe", {**_QWEN, "head_dim": 8, "norm_topk_prob": True}, [0, 1, 2, 3]),
    "qwen3-every-second": Case(
        "Qwen3Moe", {**_QWEN, "head_dim": 8, "norm_topk_prob": False, "decoder_sparse_step": 2}, [1, 3]
    ),
    "olmoe": Case(
        "Olmoe", {"intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3}, [0, 1, 2, 3]
    ),
    "olmoe-renormalised": Case(
        "Olmoe",
        {"intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True},
        [0, 1, 2, 3],
    ),
    "deepseek2-greedy": Case(
        "DeepseekV2",
        {
            **_V2,
            "topk_method": "greedy",
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.0,
        },
        [1, 2, 3],
    ),
    "deepseek2-groups": Case(
        "DeepseekV2",
        {
            **_V2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 16.0,
        },
        [0, 1, 2, 3],
    ),
    "deepseek3": Case(
        "DeepseekV3",
        {**_V3, "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 2},
        [2, 3],
    ),
    "deepseek3-plain-weights": Case(
        "DeepseekV3",
        {
            **_V3,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
        },
        [1, 2, 3],
    ),
    "deepseek3-no-groups": Case(
        "DeepseekV3",
        {**_V3, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 3},
        [3],
    ),
    "glm4": Case(
        "Glm4Moe",
        {**_GLM, "n_routed_experts": 6, "n_shared_experts": 2},
        [1, 2, 3],
    ),
    "glm4-groups": Case(
        "Glm4Moe",
        {
            **_GLM,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 3,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
        },
        [3],
    ),
    "gpt-oss": Case("GptOss", _GPT, [0, 1, 2, 3]),
    "gpt-oss-square": Case("GptOss", {**_GPT, "intermediate_size": 16}, [0, 1, 2, 3]),  # 2F = D
    "llama4": Case("Llama4", _LLAMA4, [0, 1, 2, 3]),
    "llama4-every-second": Case("Llama4", {**_LLAMA4, "interleave_moe_layer_step": 2}, [1, 3]),
    "llama4-listed": Case("Llama4", {**_LLAMA4, "moe_layers": [0, 3]}, [0, 3]),
    "kimi2": Case(  # DeepSeek's code with Kimi-K2's settings
        "DeepseekV3",
        {
            **_V3,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.827,
        },
        [1, 2, 3],
        {"model_type": "kimi_k2", "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    ),
}


def _tokens(count: int = 50) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 32), dtype=np.float32)


def _block(decoder: Any) -> Any:
    """A decoder layer's MoE block; Mixtral's had another name before transformers 5."""
    names = ("mlp", "feed_forward", "block_sparse_moe")
    return next(getattr(decoder, name) for name in names if hasattr(decoder, name))


def _block_output(block: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        y = block(torch.from_numpy(x)[None])
    return (y[0] if isinstance(y, tuple) else y).reshape(x.shape).numpy()


def _compare(theirs: Any, case: Case, ours: Model) -> None:
    """Every MoE block on its own, its choices, and the stack of blocks with norms and residuals."""
    x = _tokens()
    assert len(ours.layers) == len(case.moe_layers)
    h = torch.from_numpy(x)
    for layer, number in zip(ours.layers, case.moe_layers, strict=True):
        decoder = theirs.model.layers[number]
        block = _block(decoder)
        np.testing.assert_allclose(moe_forward(layer, x), _block_output(block, x), atol=1e-5, rtol=1e-5)
        _compare_choices(block, layer, x)
        with torch.no_grad():
            normed = decoder.post_attention_layernorm(h).numpy()
        h = h + torch.from_numpy(_block_output(block, normed))
    np.testing.assert_allclose(reference_forward(ours, x), h.numpy(), atol=5e-5, rtol=5e-5)


def _compare_choices(block: Any, layer: Layer, x: np.ndarray) -> None:
    if int(transformers.__version__.split(".")[0]) < 5:
        return  # its gates answer with logits only, or take other shapes
    with torch.no_grad():
        answer = (block.gate if hasattr(block, "gate") else block.router)(torch.from_numpy(x))
    ours = route(layer, x)
    if answer[0].shape == answer[1].shape:  # Llama 4's: scores of all experts, 0 where not chosen, and logits
        weights, experts = (np.asarray(part) for part in answer[0].topk(layer.spec.top_k))
    else:
        weights, experts = (np.asarray(part) for part in answer[1:])
    dense = np.zeros((2, len(x), experts.max() + ours.experts.max() + 1), np.float32)
    np.put_along_axis(dense[0], experts, weights, axis=1)
    np.put_along_axis(dense[1], ours.experts.astype(np.int64), ours.weights, axis=1)
    np.testing.assert_array_equal(dense[0] > 0, dense[1] > 0)
    np.testing.assert_allclose(dense[0], dense[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_loaded_blocks_equal_the_transformers_blocks(name: str, tmp_path: Path) -> None:
    theirs = CASES[name].build()
    _compare(theirs, CASES[name], _saved(theirs, CASES[name], tmp_path))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2", "deepseek3"])
def test_half_precision_shards_load_as_float32(name: str, dtype: str, tmp_path: Path) -> None:
    theirs = CASES[name].build().to(getattr(torch, dtype))
    ours = _saved(theirs, CASES[name], tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    _compare(theirs.float(), CASES[name], ours)


@pytest.mark.parametrize("name", CASES)
def test_fused_experts_load(name: str, tmp_path: Path) -> None:
    theirs = CASES[name].build()
    if not hasattr(_block(theirs.model.layers[-1]).experts, "gate_up_proj"):
        pytest.skip("this transformers version keeps experts one by one")
    _compare(theirs, CASES[name], _saved(theirs, CASES[name], tmp_path, save_original_format=False))


def test_clamps_equal_those_of_transformers(tmp_path: Path) -> None:
    theirs = CASES["gpt-oss"].build()
    layer = _saved(theirs, CASES["gpt-oss"], tmp_path).layers[0]
    x = 10 * _tokens()
    beyond = np.abs(x @ layer.experts[0].up) > 7
    assert 0.1 < beyond.mean() < 0.9
    np.testing.assert_allclose(
        moe_forward(layer, x), _block_output(theirs.model.layers[0].mlp, x), atol=1e-4, rtol=1e-4
    )


def test_mxfp4_equals_what_transformers_makes_of_it() -> None:
    packing = pytest.importorskip("transformers.integrations.mxfp4")
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 256, (3, 8, 2, 16), np.uint8)
    scales = rng.integers(100, 140, (3, 8, 2), np.uint8)
    theirs = packing.convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(scales))
    ours = mxfp4(codes, scales)  # [E, out, in], theirs [E, in, out]
    np.testing.assert_array_equal(ours.transpose(0, 2, 1), theirs.float().numpy())


def test_base_model_without_prefix_loads(tmp_path: Path) -> None:
    case = CASES["deepseek3"]
    theirs = case.build()
    theirs.model.save_pretrained(tmp_path)
    _compare(theirs, case, load_checkpoint(tmp_path))


# What the published config.json files say beyond PRESETS; the rest is taken from our tables.
_PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-8x7b": ("Mixtral", {}),
    "mixtral-8x22b": ("Mixtral", {}),
    "qwen3-30b-a3b": ("Qwen3Moe", {"norm_topk_prob": True}),
    "qwen3-235b-a22b": ("Qwen3Moe", {"norm_topk_prob": True}),
    "olmoe": ("Olmoe", {}),
    "deepseek-v2-lite": ("DeepseekV2", {"n_shared_experts": 2, "first_k_dense_replace": 1}),
    "deepseek-v3": ("DeepseekV3", {"n_shared_experts": 1, "first_k_dense_replace": 3}),
    "gpt-oss-20b": ("GptOss", {}),
    "gpt-oss-120b": ("GptOss", {}),
    "llama-4-scout": ("Llama4", {}),
}


@pytest.mark.parametrize("name", _PUBLISHED)
def test_preset_parameters_equal_those_of_the_transformers_model(name: str) -> None:
    # a few layers: whole models take minutes to set up, and test_spec knows the published totals
    spec = dataclasses.replace(PRESETS[name], layers=PRESETS[name].dense_layers + 2)
    attention = ATTENTION[name]
    family, more = _PUBLISHED[name]
    config = _config(
        family,
        vocab_size=attention.vocabulary,
        hidden_size=spec.d_model,
        num_hidden_layers=spec.layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.rope_dim or attention.head_dim,
        intermediate_size=spec.dense_d_ff or spec.d_ff,
        moe_intermediate_size=spec.d_ff,
        num_local_experts=spec.experts,
        num_experts=spec.experts,
        n_routed_experts=spec.experts,
        num_experts_per_tok=spec.top_k,
        q_lora_rank=attention.q_rank or None,
        kv_lora_rank=attention.kv_rank,
        qk_nope_head_dim=attention.head_dim,
        qk_rope_head_dim=attention.rope_dim,
        v_head_dim=attention.value_dim,
        pad_token_id=None,
        **more,
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    counted = sum(weight.numel() for weight in model.parameters())
    counted += sum(b.numel() for n, b in model.named_buffers() if "correction_bias" in n)
    assert parameters(spec, attention)["total"] == counted
