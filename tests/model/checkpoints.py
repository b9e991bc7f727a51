"""Checkpoint directories written tensor by tensor, by the formats' definitions, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
}
V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 16,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
}
USUAL = ("gate_proj", "up_proj", "down_proj")


def save(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """Write a safetensors file; float tensors as `dtype`, bytes as F8_E4M3, or U8 by their name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        kind = dtype
        if tensor.dtype == np.uint8:
            kind, raw = "U8" if name.endswith(("_blocks", "_scales")) else "F8_E4M3", tensor.tobytes()
        elif dtype == "BF16":  # the upper 16 bits
            raw = (np.ascontiguousarray(tensor, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            raw = tensor.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def ffn(
    rng: np.random.Generator, stem: str, names: tuple[str, str, str], inner: int, width: int = 16
) -> dict[str, np.ndarray]:
    shapes = ((inner, width), (inner, width), (width, inner))
    return {f"{stem}{n}.weight": rng.standard_normal(s) for n, s in zip(names, shapes, strict=True)}


def mixtral_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(2):
        stem = f"model.layers.{layer}."
        tensors[f"{stem}post_attention_layernorm.weight"] = rng.standard_normal(16)
        tensors[f"{stem}block_sparse_moe.gate.weight"] = rng.standard_normal((3, 16))
        for e in range(3):
            tensors |= ffn(rng, f"{stem}block_sparse_moe.experts.{e}.", ("w1", "w3", "w2"), 24)
    return tensors


def v3_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    tensors = ffn(rng, "model.layers.0.mlp.", USUAL, 40)  # dense
    for layer in (1, 2, 3):  # layer 3 is a multi-token prediction module, beyond num_hidden_layers
        stem = f"model.layers.{layer}."
        tensors[f"{stem}post_attention_layernorm.weight"] = rng.standard_normal(16)
        tensors[f"{stem}mlp.gate.weight"] = rng.standard_normal((8, 16))
        tensors[f"{stem}mlp.gate.e_score_correction_bias"] = rng.standard_normal(8)
        tensors |= ffn(rng, f"{stem}mlp.shared_experts.", USUAL, 48)
        for e in range(8):
            tensors |= ffn(rng, f"{stem}mlp.experts.{e}.", USUAL, 24)
    return tensors


def write(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    dtype: str = "F32",
    shards: int = 0,
) -> Path:
    """A checkpoint directory; `shards` > 0 spreads the tensors over that many files with an index."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if not shards:
        save(directory / "model.safetensors", tensors, dtype)
        return directory
    files = {name: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, name in enumerate(tensors)}
    for file in set(files.values()):
        save(directory / file, {name: tensors[name] for name in tensors if files[name] == file}, dtype)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return directory
