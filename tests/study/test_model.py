"""`rayemu model`: totals that the models' authors publish, sizes by hand, maps by brute force, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.model.accounting import ATTENTION, activation_bytes, flops_per_token, parameters
from rayemu.model.presets import PRESETS
from rayemu.model.spec import ModelSpec
from rayemu.study.model import account, find

GB = 10**9


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["model", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def facts(*arguments: object) -> dict[str, Any]:
    code, text = run(*arguments, "--json")
    assert code == 0, text
    found: dict[str, Any] = json.loads(text)
    return found


# Figures of the authors' papers and model cards, in billions; what DeepSeek and OpenAI call active leaves the
# input embedding out. DeepSeek's 36.6 (README_WEIGHTS.md) is 37 elsewhere.
@pytest.mark.parametrize(
    ("name", "total", "active", "embedding"),
    [
        ("mixtral-8x7b", 46.7, 12.9, True),
        ("mixtral-8x22b", 141, 39, True),
        ("deepseek-v3", 671, 36.6, False),
        ("qwen3-235b-a22b", 235, 22, True),
        ("gpt-oss-20b", 20.9, 3.6, False),
        ("gpt-oss-120b", 116.8, 5.1, False),
    ],
)
def test_published_totals_within_a_hundredth(name: str, total: float, active: float, embedding: bool) -> None:
    found = facts(name)["parameters"]
    assert found["total"] == pytest.approx(total * 1e9, rel=0.01)
    key = "active" if embedding else "active_without_embedding"
    assert found[key] == pytest.approx(active * 1e9, rel=0.01)


# Published with two digits, and without saying what is counted: one unit of the last digit around both ways.
@pytest.mark.parametrize(
    ("name", "total", "active", "digit"),
    [
        ("qwen3-30b-a3b", 30.5, 3.3, 0.1),
        ("olmoe", 6.9, 1.3, 0.1),
        ("deepseek-v2-lite", 15.7, 2.4, 0.1),
        ("deepseek-v3", 671, 37, 1),
    ],
)
def test_published_totals_of_two_digits(name: str, total: float, active: float, digit: float) -> None:
    found = facts(name)["parameters"]
    assert found["total"] == pytest.approx(total * 1e9, rel=0.01)
    low, high = found["active_without_embedding"] / 1e9, found["active"] / 1e9
    assert low - digit < active < high + digit


def test_the_texts_models_say_that_their_figures_disagree() -> None:
    for name, layers, width, hidden, experts, said in (
        ("16x110b", 120, 12288, 49152, 16, "110 B"),
        ("64x156b", 150, 16384, 65536, 64, "156 B"),
    ):
        found = facts(name)
        assert found["parameters"]["expert"] == layers * 2 * width * hidden
        assert found["bytes"]["fp16"]["router"] == layers * width * experts * 2  # as the text: 47 MB, 314 MB
        note = next(note for note in found["notes"] if "contradicts" in note)
        assert said in note and ("145 B" in note or "322.1 B" in note)
    assert facts("16x110b")["bytes"]["fp16"]["router"] == pytest.approx(47e6, rel=0.01)
    assert facts("64x156b")["bytes"]["fp16"]["router"] == pytest.approx(314e6, rel=0.01)


def test_bytes_at_every_precision_are_those_of_the_text_s_table() -> None:
    """The text's example: 32 layers of 8 experts, two matrices of 8192 x 32768; 34.2 GB each at FP16."""
    spec = ModelSpec("text", 8192, 32768, experts=8, top_k=2, layers=32, activation="gelu")
    model = dataclasses.replace(find("mixtral-8x22b"), spec=spec, attention=None)
    found = account(model, None, None, 32 * 2048, 2048, "fp16")
    for precision, expert, all_of_them in (
        ("fp32", 68.4, 547.2), ("fp16", 34.2, 273.6), ("int8", 17.1, 136.8), ("int4", 8.55, 68.4)
    ):  # fmt: skip
        assert found["bytes"][precision]["experts"] == pytest.approx(all_of_them * GB, rel=0.01)
        assert found["bytes"][precision]["experts"] / 8 == pytest.approx(expert * GB, rel=0.01)
    # activations of 32 x 2048 tokens: 4.3 GB between the matrices; scores and choices of 4 bytes
    shape = found["activation_bytes"]
    assert shape["scratch"] == pytest.approx(4.3 * GB, rel=0.01)
    assert shape["rows"] == 5 * 32 * 2048 * 8192 * 2  # in, normalised, two replies, out
    assert shape["routing"] == 32 * 2048 * (8 + 2 + 2) * 4


def test_caches_by_hand() -> None:
    # grouped: 32 layers, keys and values of 8 heads of 128, two bytes; 4096 tokens are half a GiB
    assert facts("mixtral-8x7b", "--context", 4096)["cache_bytes"] == 32 * 2 * 8 * 128 * 2 * 4096 == 2**29
    # latent: 61 layers of 512 latent and 64 positional values, 70,272 bytes a token in 16 bits
    assert facts("deepseek-v3", "--context", 1000)["cache_bytes"] == 70_272 * 1000
    assert facts("deepseek-v3", "--context", 1000, "--precision", "fp32")["cache_bytes"] == 140_544 * 1000
    assert facts("deepseek-v3", "--context", 1000, "--precision", "int4")["cache_bytes"] == 70_272 * 1000


def test_operations_are_two_per_weight_that_multiplies() -> None:
    for name, vectors in (("mixtral-8x7b", 0), ("qwen3-30b-a3b", 48 * 256)):
        spec, attention = PRESETS[name], ATTENTION[name]
        active = parameters(spec, attention)
        weights = active["active_without_embedding"] - active["norms"] - vectors
        assert flops_per_token(spec, attention)["total"] == 2 * weights
    # over a context: scores of 32 heads of 128 values, and their sum, in 32 layers
    long = flops_per_token(PRESETS["mixtral-8x7b"], ATTENTION["mixtral-8x7b"], 1000)
    assert long["context"] == 32 * 2 * 2 * 32 * 128 * 1000
    latent = flops_per_token(PRESETS["deepseek-v3"], ATTENTION["deepseek-v3"], 1)
    assert latent["context"] == 61 * 2 * 128 * (192 + 128)


@pytest.mark.parametrize("name", PRESETS)
def test_parts_agree_with_what_is_executed(name: str) -> None:
    spec = PRESETS[name]
    assert flops_per_token(spec)["total"] == spec.flops_per_token()
    shape = activation_bytes(spec, 6, bits=32)
    assert shape["rows"] + shape["scratch"] == spec.activation_bytes(6)
    found = facts(name)
    parts = ("experts", "router", "shared", "dense", "norms", "attention", "embeddings")
    assert sum(found["parameters"][part] for part in parts) == found["parameters"]["total"]
    assert found["static_bytes"] == 2 * found["parameters"]["total"]


def test_the_map_by_hand() -> None:
    found = facts("mixtral-8x7b", "--modules", 4, "--tokens", 400, "--context", 2048, "--memory", "64 GB")
    modules = found["modules"]
    assert modules["experts"] == [64, 64, 64, 64]  # 2 of each of 32 layers
    assert modules["expert_bytes"] == 3 * 4096 * 14336 * 2
    beside = modules["beside_experts_bytes"]
    assert beside["router"] == 32 * 4096 * 8 * 2 and beside["norms"] == 65 * 4096 * 2
    assert beside["attention"] == 32 * 4096 * (4096 + 1024 + 1024 + 4096) * 2 // 4
    assert beside["embeddings"] == 2 * 32000 * 4096 * 2 // 4
    assert beside["cache"] == 2048 * 32 * 2 * 8 * 128 * 2 // 4
    assert beside["buffers"] == 100 * 2 * (5 * 4096 + 2 * 14336) + 100 * 4 * 12
    assert modules["total_bytes"] == [64 * modules["expert_bytes"] + sum(beside.values())] * 4
    wide = facts("mixtral-8x7b", "--modules", 4, "--tokens", 400, "--precision", "fp32")["modules"]
    assert wide["beside_experts_bytes"]["buffers"] == 100 * 4 * (5 * 4096 + 2 * 14336) + 100 * 4 * 12
    assert modules["fits"] and modules["modules_needed"] == 2


def test_more_than_an_int64_is_counted_all_the_same() -> None:
    found = facts("64x156b", "--tokens", 1 << 40, "--context", 1 << 40)
    assert found["cache_bytes"] == 150 * 2 * 128 * 128 * 2 << 40
    assert max(found["modules"]["total_bytes"]) > found["cache_bytes"] // 8


def test_copies_of_a_scenario_are_counted_where_they_are() -> None:
    found = facts("laptop")  # 2 layers, 8 experts with 2 copies each, 8 modules, at full width
    assert found["modules"]["experts"] == [4] * 8 and found["source"] == "scenario"
    assert found["parameters"]["experts"] == 2 * 8 * 3 * 4096 * 14336
    assert found["tokens"] == 4 * 512, "four batches are under way"
    assert any("width/8" in note for note in found["notes"])
    assert facts("laptop", "--modules", 5)["modules"]["count"] == 5
    roomy = facts("laptop", "--memory", "9000 GB")["modules"]
    assert roomy["fits"] and roomy["modules_needed"] == 2, "copies are on different modules"
    code, text = run("laptop", "--modules", 1)
    assert code == 2 and "--modules 1 is not allowed; allowed: 2 and above" in text


@pytest.mark.parametrize("name", ["olmoe", "deepseek-v2-lite", "16x110b"])
def test_fewer_modules_than_it_takes_do_not_fit(name: str) -> None:
    """By trying all numbers below, with as many experts in the fullest module as even dealing gives."""
    size = 24 * GB if name == "16x110b" else 3 * GB
    found = facts(name, "--memory", f"{size} B", "--precision", "int4" if name == "16x110b" else "fp16")
    needed, model = found["modules"]["modules_needed"], find(name)
    slots = PRESETS[name].moe_layers * PRESETS[name].experts

    def fits(modules: int) -> bool:
        shape = account(model, modules, None, None, 2048, found["precision"])["modules"]
        most = -(-slots // modules) * shape["expert_bytes"]
        return bool(most + sum(shape["beside_experts_bytes"].values()) <= size)

    assert [fits(modules) for modules in range(1, needed + 3)] == [False] * (needed - 1) + [True] * 3


def test_no_number_of_modules_may_be_enough() -> None:
    code, text = run("16x110b", "--memory", "1 GB")
    assert code == 0 and "does not fit" in text and "No number of modules" in text
    assert facts("16x110b", "--memory", "1 GB")["modules"]["modules_needed"] is None
    code, text = run("mixtral-8x7b", "--memory", "64 GB")
    assert code == 0 and "fits: 10.9 GiB of 59.6 GiB, 18%" in text and "it takes 2 modules" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mixtrl-8x7b"], "mixtrl-8x7b is not known, but mixtral-8x7b"),
        (["zzz"], "zzz is not known; allowed: a scenario, a checkpoint's directory, mixtral-8x7b"),
        (["lapptop"], "but laptop is"),
        ([""], " is not known"),
        (["olmoe", "--memory", "64"], "--memory 64 has no unit"),
        (["olmoe", "--memory", "-1 GB"], "--memory -1 GB is not a size"),
        (["olmoe", "--memory", "0 GB"], "--memory 0 GB is not allowed; allowed: above 0"),
        (["olmoe", "--memory", ""], "--memory is not a size"),
        (["olmoe", "--modules", "-1"], "--modules -1 is not allowed; allowed: 1 to 65536"),
        (["olmoe", "--tokens", "0"], "--tokens 0 is not allowed"),
        (["olmoe", "--context", "-5"], "--context -5 is not allowed"),
        (["olmoe", "--precision", "fp6"], "--precision fp6 is not allowed; allowed: fp32, fp16, int8, int4"),
        (["a\0b"], "is not known"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], says: str) -> None:
    code, text = run(*arguments)
    assert code == 2 and says in text and len(text.splitlines()) == 1, text


def test_unreadable_checkpoints_are_one_line(tmp_path: Path) -> None:
    good = {
        "model_type": "mixtral", "hidden_size": 16, "intermediate_size": 24, "num_local_experts": 3,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "vocab_size": 10, "num_attention_heads": 4,
    }  # fmt: skip
    for change, says in (
        (None, "cannot be read"),
        ({"vocab_size": -3}, "vocab_size is -3; allowed: an integer from 1"),
        ({"num_attention_heads": None}, "num_attention_heads is None"),
        ({"num_local_experts": "many"}, "num_local_experts is 'many'"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
    ):
        if change is not None:
            (tmp_path / "config.json").write_text(json.dumps({**good, **change}))
        code, text = run(tmp_path)
        assert code == 2 and says in text and len(text.splitlines()) == 1, text
    (tmp_path / "config.json").write_text(
        json.dumps({**good, "num_hidden_layers": 1 << 20, "num_local_experts": 1 << 20})
    )
    code, text = run(tmp_path)
    assert code == 2 and "allowed: 4194304 in all" in text and len(text.splitlines()) == 1
    (tmp_path / "config.json").write_text("{")
    code, text = run(tmp_path)
    assert code == 2 and "is not JSON" in text and len(text.splitlines()) == 1
    (tmp_path / "config.json").write_text(json.dumps(good))
    assert facts(tmp_path)["parameters"]["experts"] == 2 * 3 * 3 * 16 * 24


def test_a_shared_expert_s_gate_is_computed_too() -> None:
    """D 4: three matrices of 4 x 3 in each of two layers, two operations a weight, a gate of 4 weights."""
    plain = ModelSpec("m", 4, 8, 5, 2, layers=2, shared_d_ff=3)
    gated = dataclasses.replace(plain, shared_gate=True)
    assert [flops_per_token(spec)["shared"] for spec in (plain, gated)] == [2 * 72, 2 * (72 + 8)]
