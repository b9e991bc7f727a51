"""A checkpoint's whole model by its config.json alone, to be counted: dense layers and attention too.

What runs are the MoE layers (`checkpoint.py`). Draft layers (multi-token prediction) and vision are left out.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from rayemu.model.accounting import Attention
from rayemu.model.checkpoint_config import Config, read_config
from rayemu.model.checkpoint_families import family_name, spec_from_config, text_config
from rayemu.model.spec import ModelSpec

_LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2")


def whole_checkpoint(directory: str | os.PathLike[str]) -> tuple[ModelSpec, Attention]:
    """The model in `directory` with all its layers, and its attention and embeddings. Raises CheckpointError.

    The spec counts dense layers as leading ones, wherever they are; it is for counting and does not run.
    """
    path = Path(directory).resolve()
    whole = read_config(path)
    spec, config, family = spec_from_config(whole, path), text_config(whole), family_name(whole)
    dense = config.integer("num_hidden_layers") - spec.layers
    if dense:
        width = config.integer("intermediate_size_mlp" if family == "llama4_text" else "intermediate_size")
        spec = dataclasses.replace(spec, layers=spec.layers + dense, dense_layers=dense, dense_d_ff=width)
    return spec, _attention(config, family)


def _attention(config: Config, family: str) -> Attention:
    vocabulary, heads = config.integer("vocab_size"), config.integer("num_attention_heads")
    tied = config.flag("tie_word_embeddings", False)
    if family in _LATENT:
        return Attention(
            vocabulary,
            heads,
            heads,
            config.integer("qk_nope_head_dim"),
            q_rank=config.integer("q_lora_rank") if config.given("q_lora_rank") else 0,
            kv_rank=config.integer("kv_lora_rank"),
            rope_dim=config.integer("qk_rope_head_dim"),
            value_dim=config.integer("v_head_dim"),
            tied=tied,
        )
    kv_heads = config.integer("num_key_value_heads") if config.given("num_key_value_heads") else heads
    width = config.integer("hidden_size")
    head_dim = config.integer("head_dim") if config.given("head_dim") else max(1, width // heads)
    vectors = _vectors(config, family, heads * head_dim, kv_heads * head_dim, head_dim)
    if family == "gpt_oss":
        vectors += heads  # sinks
    return Attention(vocabulary, heads, kv_heads, head_dim, vectors, tied=tied)


def _vectors(config: Config, family: str, query: int, key: int, head_dim: int) -> int:
    """Weights of one layer's query and key norms and biases, as the family's transformers module has them."""
    norms = {"olmoe": query + key, "qwen3_moe": 2 * head_dim}.get(family, 0)
    if family == "glm4_moe" and config.flag("use_qk_norm", False):
        norms = 2 * head_dim
    if family == "qwen2_moe":
        return query + 2 * key if config.flag("qkv_bias", True) else 0
    if family == "mixtral" or not config.flag("attention_bias", family == "gpt_oss"):
        return norms
    output = 0 if family == "glm4_moe" else config.integer("hidden_size")
    return norms + query + 2 * key + output
