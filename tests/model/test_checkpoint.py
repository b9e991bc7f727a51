"""Checkpoints written tensor by tensor, without torch: what is read where, and what is refused and how."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.model import (
    CheckpointError,
    Model,
    checkpoint_spec,
    load_checkpoint,
    moe_forward,
    reference_forward,
)
from rayemu.model.tensor_files import TensorFile, TensorFiles

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


def save(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """Write a safetensors file by the format's definition."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        if dtype == "BF16":  # the upper 16 bits
            raw = (np.ascontiguousarray(tensor, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            raw = tensor.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _ffn(
    rng: np.random.Generator, stem: str, names: tuple[str, str, str], inner: int
) -> dict[str, np.ndarray]:
    shapes = ((inner, 16), (inner, 16), (16, inner))
    return {f"{stem}{n}.weight": rng.standard_normal(s) for n, s in zip(names, shapes, strict=True)}


def mixtral_tensors() -> dict[str, np.ndarray]:
    rng, tensors = np.random.default_rng(0), {}
    for layer in range(2):
        stem = f"model.layers.{layer}."
        tensors[f"{stem}post_attention_layernorm.weight"] = rng.standard_normal(16)
        tensors[f"{stem}block_sparse_moe.gate.weight"] = rng.standard_normal((3, 16))
        for e in range(3):
            tensors |= _ffn(rng, f"{stem}block_sparse_moe.experts.{e}.", ("w1", "w3", "w2"), 24)
    return tensors


def v3_tensors() -> dict[str, np.ndarray]:
    rng, names = np.random.default_rng(1), ("gate_proj", "up_proj", "down_proj")
    tensors = _ffn(rng, "model.layers.0.mlp.", names, 40)  # dense
    for layer in (1, 2, 3):  # layer 3 is a multi-token prediction module, beyond num_hidden_layers
        stem = f"model.layers.{layer}."
        tensors[f"{stem}post_attention_layernorm.weight"] = rng.standard_normal(16)
        tensors[f"{stem}mlp.gate.weight"] = rng.standard_normal((8, 16))
        tensors[f"{stem}mlp.gate.e_score_correction_bias"] = rng.standard_normal(8)
        tensors |= _ffn(rng, f"{stem}mlp.shared_experts.", names, 48)
        for e in range(8):
            tensors |= _ffn(rng, f"{stem}mlp.experts.{e}.", names, 24)
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


@pytest.mark.parametrize("shards", [0, 3])
def test_tensors_land_where_they_belong(tmp_path: Path, shards: int) -> None:
    tensors = {name: t.astype(np.float32) for name, t in mixtral_tensors().items()}
    model = load_checkpoint(write(tmp_path / "ck", MIXTRAL, tensors, shards=shards))
    assert len(model.layers) == 2 and model.spec.name == "ck"
    layer, stem = model.layers[1], "model.layers.1.block_sparse_moe."
    assert layer.gate is not None and layer.shared is None and layer.residual
    np.testing.assert_array_equal(layer.norm, tensors["model.layers.1.post_attention_layernorm.weight"])
    np.testing.assert_array_equal(layer.gate.weight, tensors[f"{stem}gate.weight"].T)
    expert = layer.experts[2]
    np.testing.assert_array_equal(expert.up[:, :24], tensors[f"{stem}experts.2.w1.weight"].T)
    np.testing.assert_array_equal(expert.up[:, 24:], tensors[f"{stem}experts.2.w3.weight"].T)
    np.testing.assert_array_equal(expert.down, tensors[f"{stem}experts.2.w2.weight"].T)
    assert expert.up.flags.c_contiguous and expert.down.flags.c_contiguous


def test_dense_and_prediction_layers_are_left_out(tmp_path: Path) -> None:
    tensors = {name: t.astype(np.float32) for name, t in v3_tensors().items()}
    model = load_checkpoint(write(tmp_path / "v3", V3, tensors))
    assert len(model.layers) == 2 and all(layer.has_experts for layer in model.layers)
    first = model.layers[0].gate
    assert first is not None and first.selection_bias is not None
    np.testing.assert_array_equal(first.weight, tensors["model.layers.1.mlp.gate.weight"].T)
    np.testing.assert_array_equal(
        first.selection_bias, tensors["model.layers.1.mlp.gate.e_score_correction_bias"]
    )
    assert model.spec.router_params == {"groups": 4, "top_groups": 2, "renormalise": True, "scaling": 2.5}
    assert model.layers[0].shared is not None and model.layers[0].shared.up.shape == (16, 96)


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", 8), ("F16", 11)])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: str, bits: int) -> None:
    tensors = mixtral_tensors()
    model = load_checkpoint(write(tmp_path / "half", MIXTRAL, tensors, dtype))
    down = model.layers[0].experts[0].down
    assert down.dtype == np.float32
    wanted = tensors["model.layers.0.block_sparse_moe.experts.0.w2.weight"].T
    np.testing.assert_allclose(down, wanted, rtol=2.0 ** (1 - bits), atol=1e-6)
    assert not np.array_equal(down, wanted.astype(np.float32))


def test_spec_alone_rebuilds_the_model_and_reads_only_what_is_touched(tmp_path: Path) -> None:
    directory = write(tmp_path / "ck", MIXTRAL, mixtral_tensors(), shards=4)
    model = load_checkpoint(directory)
    x = np.random.default_rng(0).standard_normal((9, 16), dtype=np.float32)
    wanted = reference_forward(model, x)
    other = Model(model.spec)
    other.layers[1].experts[2]
    assert other.layers[1].experts.held == [2] and other.layers[0].experts.held == []
    np.testing.assert_array_equal(reference_forward(other, x), wanted)


def test_layers_and_choices_can_be_cut(tmp_path: Path) -> None:
    spec = checkpoint_spec(write(tmp_path / "ck", MIXTRAL, mixtral_tensors()))
    model = Model(dataclasses.replace(spec, layers=1, top_k=1))
    x = np.ones((3, 16), np.float32)
    assert len(model.layers) == 1 and moe_forward(model.layers[0], x).shape == (3, 16)


def test_all_missing_and_misshaped_tensors_are_named(tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    del tensors["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    del tensors["model.layers.1.post_attention_layernorm.weight"]
    tensors["model.layers.1.block_sparse_moe.gate.weight"] = np.zeros((4, 16))
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(write(tmp_path / "bad", MIXTRAL, tensors))
    text = str(refusal.value)
    assert "3 unusable tensors" in text
    assert "model.layers.0.block_sparse_moe.experts.1.w3.weight is missing; expected shape [24, 16]" in text
    assert "model.layers.1.post_attention_layernorm.weight is missing; expected shape [16]" in text
    assert "model.layers.1.block_sparse_moe.gate.weight has shape [4, 16]; expected [3, 16]" in text


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)22 unusable tensors.*and 12 more"):
        load_checkpoint(write(tmp_path / "none", MIXTRAL, {"lm_head.weight": np.zeros((2, 2))}))


def test_tensors_of_unknown_type_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "fp8", MIXTRAL, mixtral_tensors())
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(
        CheckpointError, match=r"post_attention_layernorm.weight has type I32; allowed: F32, F16"
    ):
        load_checkpoint(directory)


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


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.config.json: cannot be read: No such file"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    with pytest.raises(CheckpointError, match=r"no \*.safetensors files"):
        load_checkpoint(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "ck", MIXTRAL, mixtral_tensors(), shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.safetensors: cannot be read"):
        load_checkpoint(directory)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": 3}']
)
def test_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
        TensorFiles(tmp_path).entry("a")


def _header(fields: Any) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x00",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"\xff\xfe\x00",
        _header({"a": 5}),
        _header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        _header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 0]}}) + bytes(8),
        _header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8),
        _header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + bytes(8),
        _header({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}) + bytes(8),
        _header({"a": {"shape": [2], "data_offsets": [0, 8]}}) + bytes(8),
        _header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}) + bytes(8),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x.safetensors"):
        TensorFile(path)
