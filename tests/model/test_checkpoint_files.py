"""Which files and tensors of a directory are the model's, and what their values may be."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.model import CheckpointError, Model, checkpoint_spec, load_checkpoint, route
from tests.model.checkpoints import MIXTRAL, V3, mixtral_tensors, save, v3_tensors, write

GATE = "model.layers.0.block_sparse_moe.gate.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def _gate(model: Model) -> np.ndarray:
    gate = model.layers[0].gate
    assert gate is not None
    return gate.weight.T


def _is(model: Model, tensors: dict[str, np.ndarray]) -> bool:
    return np.array_equal(_gate(model), tensors[GATE].astype(np.float32))


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    ours, other = mixtral_tensors(), mixtral_tensors(1)
    write(tmp_path, MIXTRAL, ours)
    adapter = {f"base_model.model.{name}": tensor for name, tensor in other.items()}
    save(tmp_path / "adapter_model.safetensors", adapter)
    save(tmp_path / "a_copy.safetensors", other)
    assert _is(load_checkpoint(tmp_path), ours)
    # shards whose index was lost are the model, too
    write(tmp_path, MIXTRAL, ours, shards=3)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    assert _is(load_checkpoint(tmp_path), ours)


def test_two_sets_of_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    write(tmp_path, MIXTRAL, mixtral_tensors(), shards=3)
    (tmp_path / "model.safetensors.index.json").unlink()
    save(tmp_path / "model-00001-of-00002.safetensors", {})
    with pytest.raises(CheckpointError, match="shards of several models, of 00002 and of 00003 files"):
        load_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write(tmp_path, MIXTRAL, mixtral_tensors(), shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    save(tmp_path / "model-00003-of-00002.safetensors", {GATE: np.zeros((3, 16))})
    with pytest.raises(CheckpointError, match=r"gate.weight is both in model-0000\d-of.* and in model-00003"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "note"),
    [
        ("shards", r"model.safetensors is read; model.safetensors.index.json beside it is ignored"),
        ("gone", r"model.safetensors is read; .* is stale, since model-00001-of-00003.safetensors is not"),
        ("damaged", r"damaged index: .*; model.safetensors is read"),
        ("own", None),
    ],
)
def test_the_single_file_is_read_and_the_index_beside_it_is_noted(
    index: str, note: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, other = mixtral_tensors(), mixtral_tensors(1)
    write(tmp_path, MIXTRAL, other, shards=3)
    save(tmp_path / "model.safetensors", ours)
    path = tmp_path / "model.safetensors.index.json"
    if index == "gone":
        for shard in tmp_path.glob("model-*"):
            shard.unlink()
    elif index == "damaged":
        path.write_text("{")
    elif index == "own":
        path.write_text(json.dumps({"weight_map": dict.fromkeys(ours, "model.safetensors")}))
    with caplog.at_level(logging.WARNING, "rayemu"):
        model = load_checkpoint(tmp_path)
    assert _is(model, ours)
    assert caplog.messages == model.notes
    if note is None:
        assert not model.notes
    else:
        (found,) = model.notes
        assert re.search(note, found)


def test_the_model_s_own_prefix_is_read(tmp_path: Path) -> None:
    """Beside a draft model whose names come first, in another precision, of the same shapes."""
    ours, draft = mixtral_tensors(), mixtral_tensors(1)
    drafted = {name.replace("model.", prefix): t for name, t in draft.items() for prefix in ("mtp.", "a.")}
    write(tmp_path, MIXTRAL, {**drafted, **ours}, shards=2)
    assert _is(load_checkpoint(tmp_path), ours)
    for prefix in ("", "language_model.model.", "model.language_model."):
        renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in ours.items()}
        assert _is(load_checkpoint(write(tmp_path, MIXTRAL, {**drafted, **renamed}, shards=2)), ours)


def test_an_unusual_prefix_is_read_where_there_is_but_one(tmp_path: Path) -> None:
    ours = mixtral_tensors()
    renamed = {name.replace("model.", "net.", 1): tensor for name, tensor in ours.items()}
    assert _is(load_checkpoint(write(tmp_path, MIXTRAL, renamed)), ours)
    write(tmp_path, MIXTRAL, {**renamed, "draft.layers.0.block_sparse_moe.gate.weight": np.zeros((3, 16))})
    with pytest.raises(
        CheckpointError, match=r"gates under several prefixes: draft., net.; allowed: one, or"
    ):
        load_checkpoint(tmp_path)


def _names(tensors: dict[str, Any]) -> list[str]:
    return [name for name in tensors if "layers.0." not in name and "layers.3." not in name]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_in_every_tensor(bad: float, tmp_path: Path) -> None:
    for name in _names(v3_tensors())[:: 1 if np.isnan(bad) else 7]:
        tensors = v3_tensors()
        tensors[name].reshape(-1)[3] = bad
        directory = write(tmp_path, V3, tensors)
        if name.endswith("bias") and bad == -np.inf:
            load_checkpoint(directory)
            continue
        with pytest.raises(CheckpointError) as refusal:
            load_checkpoint(directory)
        where = list(map(int, np.unravel_index(3, tensors[name].shape)))
        assert f"{name} holds {bad} at {where}; allowed: finite numbers" in str(refusal.value)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_values_are_checked_in_every_type(dtype: str, tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    tensors[GATE][2, 5] = np.nan
    with pytest.raises(CheckpointError, match=r"gate.weight holds nan at \[2, 5\]"):
        load_checkpoint(write(tmp_path, MIXTRAL, tensors, dtype))


def test_a_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    tensors[GATE][0, 0] = 1e300
    with pytest.raises(CheckpointError, match=r"gate.weight holds inf at \[0, 0\]"):
        load_checkpoint(write(tmp_path, MIXTRAL, tensors, "F64"))


def test_experts_values_can_be_left_until_they_are_touched(tmp_path: Path) -> None:
    tensors, name = v3_tensors(), "model.layers.2.mlp.experts.5.up_proj.weight"
    tensors[name][1, 2] = np.nan
    model = load_checkpoint(write(tmp_path, V3, tensors), all_values=False)
    assert model.layers[1].experts[4].up.shape == (16, 48)
    with pytest.raises(CheckpointError, match=r"experts.5.up_proj.weight holds nan at \[1, 2\]"):
        model.layers[1].experts[5]
    tensors[BIAS][0] = np.nan
    with pytest.raises(CheckpointError, match=r"e_score_correction_bias holds nan at \[0\]"):
        load_checkpoint(write(tmp_path, V3, tensors), all_values=False)


def test_experts_that_a_bias_excludes_still_leave_k_different_ones(tmp_path: Path) -> None:
    tensors = v3_tensors()
    tensors[BIAS][1:] = -np.inf
    config = {**V3, "n_group": 1, "topk_group": 1}
    model = load_checkpoint(write(tmp_path, config, tensors))
    assert route(model.layers[0], np.ones((2, 16), np.float32)).experts.tolist() == [[0, 1], [0, 1]]


def test_a_config_of_a_larger_model_is_refused_at_once(tmp_path: Path) -> None:
    config = {**MIXTRAL, "num_local_experts": 1_000_000}
    with pytest.raises(CheckpointError, match=r"gate.weight has shape \[3, 16\]; expected \[1000000, 16\]"):
        load_checkpoint(write(tmp_path, config, mixtral_tensors()))


# -- FP8 in blocks ------------------------------------------------------------------------------------

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [4, 6]}
# e4m3 by the OCP OFP8 specification: sign, four bits of exponent (bias 7), three of mantissa
CODES = {0x00: 0.0, 0x01: 2**-9, 0x07: 7 * 2**-9, 0x08: 2**-6, 0x38: 1.0, 0x39: 1.125, 0xC2: -2.5, 0x7E: 448}


def _quantised(seed: int = 4) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A DeepSeek-V3 whose FFNs are FP8 codes with scales, and its values worked out number by number."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for name, tensor in v3_tensors().items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        rows, columns = tensor.shape
        codes = rng.choice(list(CODES), (rows, columns))
        scales = rng.uniform(0.5, 2, (-(-rows // 4), -(-columns // 6))).astype(np.float32)
        tensors[name], tensors[f"{name}_scale_inv"] = codes.astype(np.uint8), scales
        values[name] = np.array(
            [
                [np.float32(CODES[codes[i, j]]) * scales[i // 4, j // 6] for j in range(columns)]
                for i in range(rows)
            ]
        )
    return tensors, values


@pytest.mark.parametrize("shards", [0, 3])
def test_fp8_blocks_by_hand(shards: int, tmp_path: Path) -> None:
    """Blocks of 4 x 6 cut 24 x 16 and 16 x 24 tensors unevenly; scales may lie in another shard."""
    tensors, values = _quantised()
    config = {**V3, "quantization_config": FP8}
    model = load_checkpoint(write(tmp_path, config, tensors, shards=shards))
    expert, stem = model.layers[1].experts[6], "model.layers.2.mlp.experts.6."
    np.testing.assert_array_equal(expert.up[:, :24], values[f"{stem}gate_proj.weight"].T)
    np.testing.assert_array_equal(expert.up[:, 24:], values[f"{stem}up_proj.weight"].T)
    np.testing.assert_array_equal(expert.down, values[f"{stem}down_proj.weight"].T)
    shared = model.layers[0].shared
    assert shared is not None
    wanted = values["model.layers.1.mlp.shared_experts.down_proj.weight"].T
    np.testing.assert_array_equal(shared.down, wanted)
    np.testing.assert_array_equal(Model(model.spec).layers[1].experts[6].down, expert.down)


def test_every_e4m3_code() -> None:
    from rayemu.model.quantised import E4M3

    assert {code: float(E4M3[code]) for code in CODES} == CODES
    finite = np.delete(E4M3[:128], 127)
    assert (np.diff(finite) > 0).all() and finite[-1] == 448 and np.isnan(E4M3[[127, 255]]).all()
    np.testing.assert_array_equal(E4M3[128:], -E4M3[:128])
    torch = pytest.importorskip("torch", reason="install the parity extra: bash launch/test.sh --parity")
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(E4M3, theirs)


def test_fp8_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.experts.6.up_proj.weight"
    config = {**V3, "quantization_config": FP8}
    cases: list[tuple[Any, str]] = [
        (lambda t: t.pop(f"{name}_scale_inv"), f"{name}_scale_inv is missing; expected shape [6, 3]"),
        (lambda t: t.update({f"{name}_scale_inv": np.ones((1, 1))}), "has shape [1, 1]; expected [6, 3]"),
        (lambda t: t.update({name: np.ones((24, 16))}), f"{name} has type F32 beside {name}_scale_inv"),
        (lambda t: t[name].__setitem__((1, 2), 0x7F), f"{name} holds nan at [1, 2]"),
        (lambda t: t[f"{name}_scale_inv"].__setitem__((1, 1), np.inf), f"{name} holds "),
    ]
    for change, message in cases:
        tensors, _ = _quantised()
        change(tensors)
        with pytest.raises(CheckpointError) as refusal:
            load_checkpoint(write(tmp_path, config, tensors))
        assert message in str(refusal.value)
    with pytest.raises(
        CheckpointError, match=r"has type F8_E4M3, but config.json has no quantization_config"
    ):
        load_checkpoint(write(tmp_path, V3, _quantised()[0]))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_quantization_config_left_in_beside_converted_weights_is_refused(
    dtype: str, tmp_path: Path
) -> None:
    config = {**V3, "quantization_config": FP8}
    with pytest.raises(
        CheckpointError, match=rf"says fp8, but the weights are {dtype}; delete the key quantization_config"
    ):
        load_checkpoint(write(tmp_path, config, v3_tensors(), dtype))


@pytest.mark.parametrize(
    "given",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "mxfp4"},
        {"quant_method": "fp8"},
        {**FP8, "fmt": "e5m2"},
        {**FP8, "weight_block_size": [128]},
        {**FP8, "weight_block_size": [0, 128]},
        {**FP8, "weight_block_size": [128, 10**30]},
        "fp8",
    ],
)
def test_other_quantisations_are_refused_with_those_that_are_read(given: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**V3, "quantization_config": given}))
    with pytest.raises(
        CheckpointError,
        match=r"quantization_config is .*; allowed: fp8 .*, mxfp4 .*, or none: .*delete the key",
    ):
        checkpoint_spec(tmp_path)


def test_a_refusal_is_one_line_whatever_the_files_hold(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    refusals = []
    for text in (
        json.dumps({"weight_map": {"a\nb": "c\nd\x1b[2J"}}).encode(),
        json.dumps({"weight_map": {"a\nb": "\ud800/c"}}).encode(),
        json.dumps({"weight_map": {"a": "b" * 300}}).encode(),
        json.dumps({"weight_map": {"a": "b\0c"}}).encode(),
        b"\xff" * 100_000,
        b'{"weight_map": {"' + b"x" * 100_000 + b'": "../model.safetensors"}}',
    ):
        index.write_bytes(text)
        with pytest.raises(CheckpointError) as refusal:
            load_checkpoint(tmp_path)
        refusals.append(str(refusal.value))
    index.unlink()
    save(tmp_path / "model.safetensors", mixtral_tensors())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole.replace(b'"F32"', b'"\\n2"', 1))
    with pytest.raises(CheckpointError, match=r"has type .n2; allowed") as refusal:
        load_checkpoint(tmp_path)
    for text in (*refusals, str(refusal.value)):
        assert text.isprintable() and len(text) < 2100 and text.startswith(str(tmp_path))
