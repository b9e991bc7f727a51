"""Checkpoints written tensor by tensor, without torch: what is read where, and what is refused and how."""

from __future__ import annotations

import dataclasses
import json
import struct
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
from tests.model.checkpoints import MIXTRAL, V3, mixtral_tensors, v3_tensors, write


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
    with pytest.raises(CheckpointError, match=r"22 unusable tensors: .*; and 17 more$"):
        load_checkpoint(write(tmp_path / "none", MIXTRAL, {"lm_head.weight": np.zeros((2, 2))}))


def test_tensors_of_unknown_type_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "fp8", MIXTRAL, mixtral_tensors())
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(
        CheckpointError, match=r"post_attention_layernorm.weight has type I32; allowed: F32, F16"
    ):
        load_checkpoint(directory)


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
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no \*.safetensors files.*; found adapter_model"):
        load_checkpoint(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "ck", MIXTRAL, mixtral_tensors(), shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003.safetensors: cannot be read.*index.json names it"
    ):
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
