"""A checkpoint's config.json, as published, gives the whole model: the parts that the presets were given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayemu.model.accounting import ATTENTION, parameters
from rayemu.model.checkpoint_whole import whole_checkpoint
from rayemu.model.presets import PRESETS
from rayemu.model.tensor_files import CheckpointError

# What counts of the published config.json files.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "qwen3-235b-a22b": {
        "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 94,
        "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "norm_topk_prob": True, "attention_bias": False, "mlp_only_layers": [], "decoder_sparse_step": 1,
    },
    "olmoe": {
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 50304, "attention_bias": False, "rms_norm_eps": 1e-5,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "num_hidden_layers": 27, "first_k_dense_replace": 1,
        "topk_method": "greedy", "n_group": 1, "num_attention_heads": 16,
        "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_hidden_layers": 61,
        "first_k_dense_replace": 3, "num_attention_heads": 128, "num_key_value_heads": 128,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "vocab_size": 129280, "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088, "attention_bias": True,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "llama-4-scout": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192,
            "intermediate_size_mlp": 16384, "num_local_experts": 16, "num_experts_per_tok": 1,
            "num_hidden_layers": 48, "interleave_moe_layer_step": 1, "num_attention_heads": 40,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 202048, "attention_bias": False,
        },
    },
}  # fmt: skip


def written(path: Path, config: dict[str, Any]) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_count_as_the_presets_do(name: str, tmp_path: Path) -> None:
    spec, attention = whole_checkpoint(written(tmp_path, PUBLISHED[name]))
    assert attention == ATTENTION[name]
    assert parameters(spec, attention) == parameters(PRESETS[name], ATTENTION[name])


# Totals of models that are no presets, as their authors publish them, in billions.
def test_dense_layers_between_and_biases_are_counted(tmp_path: Path) -> None:
    # Qwen1.5-MoE-A2.7B: 14.3 B in all, 2.7 B active; the shared expert has a gate, queries to values biases
    qwen = {
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts": 60,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 151936,
    }  # fmt: skip
    spec, attention = whole_checkpoint(written(tmp_path, qwen))
    found = parameters(spec, attention)
    assert found["total"] == pytest.approx(14.3e9, rel=0.01)
    assert found["active"] == pytest.approx(2.7e9, rel=0.01)
    assert attention.vectors == 3 * 2048
    # GLM-4.5: 355 B in all
    glm = {
        "model_type": "glm4_moe", "hidden_size": 5120, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "num_hidden_layers": 92, "first_k_dense_replace": 3, "head_dim": 128,
        "num_attention_heads": 96, "num_key_value_heads": 8, "attention_bias": True, "use_qk_norm": True,
        "vocab_size": 151552, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5,
    }  # fmt: skip
    spec, attention = whole_checkpoint(written(tmp_path, glm))
    found = parameters(spec, attention)
    assert found["total"] == pytest.approx(355e9, rel=0.01)
    # Llama-4-Maverick: 128 experts in every other layer, dense ones between; 400 B in all, 17 B active
    maverick = json.loads(json.dumps(PUBLISHED["llama-4-scout"]))
    maverick["text_config"] |= {"num_local_experts": 128, "interleave_moe_layer_step": 2}
    spec, attention = whole_checkpoint(written(tmp_path, maverick))
    assert (spec.layers, spec.dense_layers, spec.dense_d_ff) == (48, 24, 16384)
    assert parameters(spec, attention)["total"] == pytest.approx(400e9, rel=0.01)


def test_what_must_be_known_is_asked_for_by_name(tmp_path: Path) -> None:
    for key in ("vocab_size", "num_attention_heads", "kv_lora_rank", "v_head_dim", "intermediate_size"):
        config = {k: v for k, v in PUBLISHED["deepseek-v3"].items() if k != key}
        with pytest.raises(CheckpointError, match=rf"config.json: {key} is missing"):
            whole_checkpoint(written(tmp_path, config))
    # none given: as wide as the model divided by heads, one key head for each
    bare = {k: v for k, v in PUBLISHED["olmoe"].items() if k != "num_key_value_heads"}
    _, attention = whole_checkpoint(written(tmp_path, bare))
    assert (attention.kv_heads, attention.head_dim) == (16, 128)
    tied = {**bare, "tie_word_embeddings": True}
    spec, attention = whole_checkpoint(written(tmp_path, tied))
    found = parameters(spec, attention)
    assert found["embeddings"] == 50304 * 2048 and found["active"] == found["active_without_embedding"]
