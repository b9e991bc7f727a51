"""gpt-oss and Llama 4: fused experts as [E, in, out], interleaved columns, biases, MXFP4 blocks by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.model import CheckpointError, Model, load_checkpoint
from tests.model.checkpoints import USUAL, ffn, write

GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
}
LLAMA4: dict[str, Any] = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text",
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 2,
        "interleave_moe_layer_step": 2,
    },
}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def gpt_oss_tensors() -> dict[str, np.ndarray]:
    rng, tensors = np.random.default_rng(2), {}
    for layer in range(2):
        stem = f"model.layers.{layer}."
        shapes = {
            "post_attention_layernorm.weight": (64,),
            "mlp.router.weight": (3, 64),
            "mlp.router.bias": (3,),
            "mlp.experts.gate_up_proj": (3, 64, 64),
            "mlp.experts.gate_up_proj_bias": (3, 64),
            "mlp.experts.down_proj": (3, 32, 64),
            "mlp.experts.down_proj_bias": (3, 64),
        }
        tensors |= {stem + name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return tensors


def packed_tensors() -> dict[str, np.ndarray]:
    rng, tensors = np.random.default_rng(3), gpt_oss_tensors()
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts."
        for name, rows, blocks in (("gate_up_proj", 64, 2), ("down_proj", 64, 1)):
            del tensors[stem + name]
            codes = rng.integers(0, 256, (3, rows, blocks, 16), np.uint8)
            tensors[f"{stem}{name}_blocks"] = codes
            tensors[f"{stem}{name}_scales"] = rng.integers(120, 130, (3, rows, blocks), np.uint8)
    return tensors


def test_gpt_oss_columns_and_biases(tmp_path: Path) -> None:
    tensors = gpt_oss_tensors()
    model = load_checkpoint(write(tmp_path, GPT_OSS, tensors))
    stem = "model.layers.1.mlp."
    layer, experts = model.layers[1], f"{stem}experts."
    expert = layer.experts[2]
    both, bias = tensors[f"{experts}gate_up_proj"][2], tensors[f"{experts}gate_up_proj_bias"][2]
    for column in range(32):  # column n of the gate and of up lie side by side
        np.testing.assert_array_equal(expert.up[:, column], both[:, 2 * column])
        np.testing.assert_array_equal(expert.up[:, 32 + column], both[:, 2 * column + 1])
        assert expert.up_bias is not None
        assert expert.up_bias[[column, 32 + column]].tolist() == bias[2 * column : 2 * column + 2].tolist()
    np.testing.assert_array_equal(expert.down, tensors[f"{experts}down_proj"][2])
    np.testing.assert_array_equal(expert.down_bias, tensors[f"{experts}down_proj_bias"][2])
    assert layer.gate is not None and layer.gate.selection_bias is None
    np.testing.assert_array_equal(layer.gate.weight, tensors[f"{stem}router.weight"].T)
    np.testing.assert_array_equal(layer.gate.bias, tensors[f"{stem}router.bias"])
    assert expert.activation == model.spec.activation == "clamped_swiglu"
    assert expert.nbytes == model.spec.expert_bytes()
    for array in (expert.up, expert.down, expert.up_bias, expert.down_bias):
        assert array is not None and array.flags.c_contiguous and array.flags.owndata


@pytest.mark.parametrize("shards", [0, 3])
def test_mxfp4_blocks_by_hand(shards: int, tmp_path: Path) -> None:
    """Byte n of a block holds values 2n (its low half) and 2n + 1; blocks lie along the input."""
    tensors = packed_tensors()
    config = {**GPT_OSS, "quantization_config": MXFP4}
    model = load_checkpoint(write(tmp_path, config, tensors, shards=shards))
    experts = "model.layers.1.mlp.experts."
    expert = model.layers[1].experts[2]
    wanted = {}
    for name in ("gate_up_proj", "down_proj"):
        codes, scales = tensors[f"{experts}{name}_blocks"][2], tensors[f"{experts}{name}_scales"][2]
        wanted[name] = np.zeros((codes.shape[1] * 32, len(codes)))  # [in, out]
        for out in range(len(codes)):
            for n in range(len(wanted[name])):
                byte = int(codes[out, n // 32, n % 32 // 2])
                code = byte // 16 if n % 2 else byte % 16
                wanted[name][n, out] = E2M1[code] * 2.0 ** (int(scales[out, n // 32]) - 127)
    np.testing.assert_array_equal(expert.up[:, :32], wanted["gate_up_proj"][:, 0::2])
    np.testing.assert_array_equal(expert.up[:, 32:], wanted["gate_up_proj"][:, 1::2])
    np.testing.assert_array_equal(expert.down, wanted["down_proj"])
    np.testing.assert_array_equal(expert.down_bias, tensors[f"{experts}down_proj_bias"][2])
    np.testing.assert_array_equal(Model(model.spec).layers[1].experts[2].up, expert.up)


_BLOCKS = "model.layers.1.mlp.experts.down_proj_blocks"
_SCALES = "model.layers.1.mlp.experts.down_proj_scales"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(_SCALES), f"{_SCALES} is missing; expected shape [3, 64, 1]"),
        (lambda t: t.pop(_BLOCKS), "down_proj is missing; expected shape [3, 32, 64]"),
        (lambda t: t.update({_SCALES: t[_SCALES][:, :5]}), "has shape [3, 5, 1]; expected [3, 64, 1]"),
        (lambda t: t.update({_BLOCKS: t[_BLOCKS][..., :8]}), "[3, 64, 1, 8]; expected [3, 64, 1, 16]"),
        (lambda t: t.update({_SCALES: np.ones((3, 64, 1))}), f"{_SCALES} has type F32; expected U8"),
        (lambda t: t[_SCALES].__setitem__((1, 2, 0), 255), "down_proj holds nan at [1, 2, 0]"),
        (lambda t: t.update({_SCALES[:-7]: np.ones((3, 32, 64))}), "is there twice"),
        (
            lambda t: t.update({f"{_SCALES}_blocks": t.pop(_SCALES), f"{_SCALES}_scales": t[_BLOCKS]}),
            f"{_SCALES} is missing",
        ),
    ],
)
def test_mxfp4_that_is_not_whole_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    tensors = packed_tensors()
    change(tensors)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(write(tmp_path, {**GPT_OSS, "quantization_config": MXFP4}, tensors))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_mxfp4_and_the_config_must_agree(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"proj_blocks is there, but config.json has no quantization_"):
        load_checkpoint(write(tmp_path, GPT_OSS, packed_tensors()))
    config = {**GPT_OSS, "quantization_config": MXFP4}
    with pytest.raises(CheckpointError, match=r"says mxfp4, but the weights are BF16; delete the key quant"):
        load_checkpoint(write(tmp_path, config, gpt_oss_tensors(), "BF16"))
    with pytest.raises(CheckpointError, match=r"proj_blocks is there, but 48 values are no multiple of 32"):
        load_checkpoint(write(tmp_path, {**config, "intermediate_size": 48}, packed_tensors()))


def test_llama4_as_published(tmp_path: Path) -> None:
    """The prefix of a model that also sees; experts in every second layer; a shared expert."""
    rng, stem = np.random.default_rng(4), "language_model.model.layers.1."
    block = f"{stem}feed_forward."
    tensors = {
        f"{stem}post_attention_layernorm.weight": rng.standard_normal(16, np.float32),
        f"{block}router.weight": rng.standard_normal((3, 16), np.float32),
        f"{block}experts.gate_up_proj": rng.standard_normal((3, 16, 16), np.float32),
        f"{block}experts.down_proj": rng.standard_normal((3, 8, 16), np.float32),
        **ffn(rng, f"{block}shared_expert.", USUAL, 8),
    }
    model = load_checkpoint(write(tmp_path, LLAMA4, tensors))
    (layer,) = model.layers
    np.testing.assert_array_equal(layer.experts[1].up, tensors[f"{block}experts.gate_up_proj"][1])
    np.testing.assert_array_equal(layer.experts[1].down, tensors[f"{block}experts.down_proj"][1])
    assert layer.experts[1].up_bias is None and layer.experts[1].down_bias is None
    assert layer.shared is not None and layer.shared.up.shape == (16, 16)
    assert model.spec.weigh_input and model.spec.shared_d_ff == 8


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (GPT_OSS, {"swiglu_limit": 5.0}, r"swiglu_limit is 5.0; allowed: 7.0"),
        (GPT_OSS, {"swiglu_alpha": 1.0}, r"swiglu_alpha is 1.0; allowed: 1.702"),
        (LLAMA4, {"num_experts_per_tok": 2}, r"text_config.num_experts_per_tok is 2; allowed: 1"),
        (
            LLAMA4,
            {"moe_layers": [2]},
            r"text_config.moe_layers is \[2\]; allowed: a list of integers",
        ),
        (LLAMA4, {"moe_layers": []}, r"num_hidden_layers is 2; allowed: at least one MoE layer"),
        (LLAMA4, {"interleave_moe_layer_step": 0}, r"interleave_moe_layer_step is 0; allowed: an integer"),
        (LLAMA4, {"model_type": "llama"}, r"text_config.model_type is 'llama'; allowed: one of mixtral"),
    ],
)
def test_what_is_not_executed_is_refused(
    config: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    inner = config.get("text_config")
    config = {**config, "text_config": {**inner, **change}} if inner else {**config, **change}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write(tmp_path, config, {}))
