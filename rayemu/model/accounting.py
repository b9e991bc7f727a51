"""Parameters, operations and bytes of a whole model, with the parts that are counted but never executed.

rayemu runs MoE blocks only; attention and embeddings are described here so that totals, memory maps and key
and value caches can be stated. Dimensions are those of the unscaled model (sources: presets.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from rayemu.model.spec import ModelSpec


@dataclass(frozen=True)
class Attention:
    """Attention and embeddings of a model: multi-head or grouped, or latent (DeepSeek) with `kv_rank`.

    `vectors` counts weights of one layer beside the matrices: query and key norms, biases, sinks. For latent
    attention `head_dim` is the part of a query head without position, `rope_dim` the part with, `value_dim` a
    value head; `q_rank` 0 means queries are not compressed. `blocks` is the number of attention blocks if it
    is not the number of layers, `norms` that of other norm vectors of width D per layer.
    """

    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    vectors: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    value_dim: int = 0
    tied: bool = False
    blocks: int = 0
    norms: int = 1

    def parameters(self, width: int) -> int:
        """Parameters of one attention block at model width `width`."""
        return self.matrix_parameters(width) + self.vectors + self.q_rank + self.kv_rank  # norms of latents

    def matrix_parameters(self, width: int) -> int:
        """Parameters of one attention block's projections alone."""
        if not self.kv_rank:
            return 2 * width * self.head_dim * (self.heads + self.kv_heads)
        query = self.heads * (self.head_dim + self.rope_dim)
        queries = width * self.q_rank + self.q_rank * query if self.q_rank else width * query
        latent = width * (self.kv_rank + self.rope_dim)
        unfolded = self.kv_rank * self.heads * (self.head_dim + self.value_dim)
        return queries + latent + unfolded + self.heads * self.value_dim * width

    def score_flops(self, context: int) -> int:
        """Operations of one token in one layer over `context` tokens: scores, and the sum of values."""
        value = self.value_dim if self.kv_rank else self.head_dim
        return 2 * context * self.heads * (self.head_dim + self.rope_dim + value)

    def cache_values(self) -> int:
        """Numbers that one token adds to one layer's key and value cache."""
        return self.kv_rank + self.rope_dim if self.kv_rank else 2 * self.kv_heads * self.head_dim

    def embedding_parameters(self, width: int) -> int:
        """Parameters of the input embedding and, unless tied, the output head."""
        return self.vocabulary * width * (1 if self.tied else 2)


# Same sources as PRESETS; the two hypothetical models say nothing of theirs (128-wide heads, 32,000 tokens).
ATTENTION: dict[str, Attention] = {
    "mixtral-8x7b": Attention(32000, 32, 8, 128),
    "mixtral-8x22b": Attention(32000, 48, 8, 128),
    "qwen3-30b-a3b": Attention(151936, 32, 4, 128, vectors=256),
    "qwen3-235b-a22b": Attention(151936, 64, 4, 128, vectors=256),
    "olmoe": Attention(50304, 16, 16, 128, vectors=4096),
    "deepseek-v2-lite": Attention(102400, 16, 16, 128, kv_rank=512, rope_dim=64, value_dim=128),
    "deepseek-v3": Attention(129280, 128, 128, 128, q_rank=1536, kv_rank=512, rope_dim=64, value_dim=128),
    # biases of queries, keys, values and output, a sink per head
    "gpt-oss-20b": Attention(201088, 64, 8, 64, vectors=80 * 64 + 2880 + 64),
    "gpt-oss-120b": Attention(201088, 64, 8, 64, vectors=80 * 64 + 2880 + 64),
    "llama-4-scout": Attention(202048, 40, 8, 128),
    "switch-c-2048": Attention(32128, 32, 32, 64, tied=True, blocks=45),
    "16x110b": Attention(32000, 96, 96, 128),
    "64x156b": Attention(32000, 128, 128, 128),
}


def parameters(spec: ModelSpec, attention: Attention | None = None) -> dict[str, int]:
    """Parameters of the unscaled model by part, with their total and those active per token.

    Parts: experts, router, shared, dense, norms, and with `attention` also attention and embeddings.
    Publishers count active ones in two ways: all but the experts that are not chosen (Mistral, Qwen), or also
    without the input embedding, of which a token reads one row (DeepSeek, OpenAI); both are given.
    """
    full = spec.full()
    moe, expert = full.moe_layers, full.expert_parameters()
    parts = {
        "experts": moe * full.experts * expert,
        "router": moe * full.router_parameters(),
        "shared": moe * full.shared_parameters(),
        "dense": full.dense_layers * full.ffn_parameters(full.dense_d_ff),
        "norms": full.norm * full.layers * full.d_model,
    }
    if attention is not None:
        blocks = attention.blocks or full.layers
        parts["attention"] = blocks * attention.parameters(full.d_model)
        parts["embeddings"] = attention.embedding_parameters(full.d_model)
        parts["norms"] += (full.layers * attention.norms + 1) * full.d_model
    total = sum(parts.values())
    parts["total"] = total
    parts["active"] = total - moe * (full.experts - full.top_k) * expert
    looked_up = 0 if attention is None or attention.tied else attention.vocabulary * full.d_model
    parts["active_without_embedding"] = parts["active"] - looked_up
    return parts


def cache_bytes(spec: ModelSpec, attention: Attention, tokens: int, bits: int = 16) -> int:
    """Bytes of the key and value cache of `tokens` tokens in all layers."""
    return (attention.blocks or spec.layers) * attention.cache_values() * tokens * bits // 8


def flops_per_token(spec: ModelSpec, attention: Attention | None = None, context: int = 0) -> dict[str, int]:
    """Floating-point operations of one token through the unscaled model by part, with their total.

    Two per multiply-add, and none for norms and softmax. Parts: experts (K of them), router, shared, dense,
    and with `attention` also attention (its projections), context (scores and values over `context` tokens,
    keys and values unfolded where they are latent) and head (the output's; to look an embedding up costs
    nothing).
    """
    full = spec.full()
    moe, width = full.moe_layers, full.d_model
    parts = {
        "experts": moe * full.top_k * full.flops_per_row(),
        "router": moe * full.experts * (2 * width + full.biases),
        "shared": moe * (full.ffn_flops(full.shared_d_ff) + 2 * width * full.shared_gate),
        "dense": full.dense_layers * full.ffn_flops(full.dense_d_ff),
    }
    if attention is not None:
        blocks = attention.blocks or full.layers
        parts["attention"] = 2 * blocks * attention.matrix_parameters(width)
        parts["context"] = blocks * attention.score_flops(context)
        parts["head"] = 2 * attention.vocabulary * width
    parts["total"] = sum(parts.values())
    return parts


def activation_bytes(spec: ModelSpec, tokens: int, bits: int = 16) -> dict[str, int]:
    """Bytes that one layer of the unscaled model needs at once for `tokens` tokens, by part and in all.

    Parts: rows (input, normalised, K replies, output), scratch (of the widest expert GEMM), and routing (E
    scores, K expert ids and K weights per token, 4 bytes each). The next layer uses the same memory again.
    """
    full = spec.full()
    scratch = tokens * full.d_ff * (full.matrices - 1) * bits // 8
    parts = {
        "rows": full.activation_bytes(tokens) * bits // 32 - scratch,
        "scratch": scratch,
        "routing": 4 * tokens * (full.experts + 2 * full.top_k),
    }
    parts["total"] = sum(parts.values())
    return parts
