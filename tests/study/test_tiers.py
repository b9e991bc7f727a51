"""`rayemu tiers` and `rayemu banks`: what they print, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.model.model import Model
from rayemu.model.reference import prepare, route
from rayemu.scenario import Scenario
from rayemu.study.tiers import trace_of, uses_of
from rayemu.traces import Trace, from_choices, write


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 16 experts, 300 tokens of top-2; the second layer keeps to its first four experts."""
    rng = np.random.default_rng(0)
    choices = np.stack(
        [rng.permuted(np.tile(np.arange(e), (300, 1)), axis=1)[:, :2] for e in (16, 4)], axis=1
    )
    path = tmp_path_factory.mktemp("traces") / "trace.npz"
    write(path, "rayemu", from_choices(choices, np.array([0, 300]), 16))
    return path


def tiers(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["tiers", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_tiers_of_a_trace(trace: Path) -> None:
    found = tiers(str(trace), "--expert-bytes", "1 GB", "--capacity", "module=10", "--capacity", "remote=4")
    assert found["held_experts"] == {"sram": 0, "module": 10, "remote": 4, "ssd": 4000}
    assert (found["steps"], found["uses"], found["distinct_experts"]) == (300, 1200, 20)
    by_policy = {one["policy"]: one for one in found["policies"]}
    assert list(by_policy) == ["lru", "lfu", "predicted", "belady"]
    assert all(sum(one["shares"].values()) == pytest.approx(1) for one in by_policy.values())
    assert min(one["use_emu_s"] for one in found["policies"]) == by_policy["belady"]["use_emu_s"]
    lru = by_policy["lru"]["shares"]
    ssd, remote, module = 1e-4 + 1 / 7, 2e-7 + 1 / 200, 1e-7 + 1 / 256
    expected = lru["ssd"] * ssd + lru["remote"] * remote + lru["module"] * module
    assert by_policy["lru"]["use_emu_s"] == pytest.approx(expected)


def test_the_size_of_an_expert_by_model(trace: Path) -> None:
    found = tiers(str(trace), "--model", "mixtral-8x7b", "--bits", "8", "--policy", "lru")
    assert found["expert_bytes"] == 3 * 4096 * 14336
    assert found["held_experts"]["module"] == 64_000_000_000 // (3 * 4096 * 14336)


def test_steps_of_tokens_and_of_windows(trace: Path, tmp_path: Path) -> None:
    assert tiers(str(trace), "--expert-bytes", "1 GB", "--batch", "30")["steps"] == 10
    loads = np.zeros((5, 1, 4), np.int64)
    loads[:, 0, 1] = 7
    write(tmp_path / "loads.npz", "rayemu", Trace(loads))
    found = tiers(str(tmp_path / "loads.npz"), "--expert-bytes", "1 GB", "--policy", "lru")
    assert (found["steps"], found["uses"]) == (5, 5)
    assert found["policies"][0]["shares"]["module"] == pytest.approx(4 / 5)


def test_a_scenarios_stream_is_routed_by_its_model(tmp_path: Path) -> None:
    """As the reference routes it: the choices of a run of the same scenario."""
    text = """
name: tiny
model: {d_model: 32, d_ff: 32, experts: 8, top_k: 2, layers: 2}
cluster: {nodes: 1, modules_per_node: 2, transport: memory}
stream: {kind: zipf, vocabulary: 64}
run: {batches: 1, batch_tokens: 40, seed: 3}
"""
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    scenario = Scenario.load(path)
    found = uses_of(trace_of(path, None, {}), 1)
    x = next(iter(scenario.stream.build().batches(40, 32, 3)))
    model = Model(scenario.spec)
    first = route(model.layers[0], prepare(model.layers[0], x)).experts
    expected = sorted({(token, expert) for token, chosen in enumerate(first.tolist()) for expert in chosen})
    mine = found.layer == 0
    assert list(zip(found.step[mine].tolist(), found.expert[mine].tolist(), strict=True)) == expected
    assert tiers(str(path), "--expert-bytes", "1 GB", "--tokens", "25")["steps"] == 25


def test_tables_are_printed(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayemu.study.banks.BATCHES", 1)
    table = CliRunner().invoke(app, ["tiers", str(trace), "--expert-bytes", "1 GB"])
    assert table.exit_code == 0
    assert "belady" in table.output
    banks = CliRunner().invoke(app, ["banks"])
    assert banks.exit_code == 0
    assert "the texts', interleaved" in banks.output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give --model or --expert-bytes"),
        (["--expert-bytes", "3"], "--expert-bytes: '3' is not allowed"),
        (["--model", "mixtral"], "--model: model.preset is 'mixtral'"),
        (["--model", "olmoe", "--policy", "fifo"], "--policy: 'fifo' is not allowed; allowed: lru"),
        (["--model", "olmoe", "--capacity", "l2=3"], "--capacity: 'l2=3' is not allowed; tiers are: sram"),
        (["--model", "olmoe", "--capacity", "ssd=x"], "--capacity: ssd: 'x' is not allowed"),
        (["--model", "olmoe", "--hardware", "h100-sxm"], "h100-sxm: tiers: are missing"),
        (["--expert-bytes", "3 TB"], "text-pim: tiers: they hold 1 experts of 3e+12 bytes, 20 are used"),
    ],
)
def test_what_cannot_be_is_refused(trace: Path, arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(app, ["tiers", str(trace), *arguments])
    assert result.exit_code == 2
    assert line in " ".join(result.output.split())


def test_banks_of_hardware_without_rows_are_refused() -> None:
    result = CliRunner().invoke(app, ["banks", "--hardware", "h100-sxm"])
    assert result.exit_code == 2
    assert "module.banks.rows: is missing" in result.output
