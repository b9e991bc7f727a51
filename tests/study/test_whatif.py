"""`rayemu whatif`: figures by hand, the price of the same scenario as it ran, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.scenario import Scenario
from rayemu.study.whatif import Machines, affordable_batches, choices_of, on_modules, parse_modules
from rayemu.traces import Trace, write
from tests.pricing.graphs import TOY

SMALL = ("smoke", "--hardware", "text-pim", "--batches", "2")
PRICED = {"step_emu_s", "tokens_per_emu_s", "joules_per_token", "critical_path", "utilisation", "modules"}


def call(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"})
    return done.exit_code, done.stdout, done.stderr if done.stderr_bytes else ""


def whatif(*arguments: object) -> list[dict[str, Any]]:
    code, text, errors = call("whatif", *arguments, "--json")
    assert code == 0, errors
    return json.loads(text)


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("8..4096", (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)),
        ("8..63", (8, 16, 32)),
        ("12..50", (12, 24, 48)),
        ("5..5", (5,)),
        ("8, 32,16,8", (8, 32, 16)),
        ("64", (64,)),
    ],
)
def test_numbers_of_modules(text: str, modules: tuple[int, ...]) -> None:
    assert parse_modules(text) == modules


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("4096..8", "a range goes upward: 8..4096"),
        ("0", "0 is not allowed; allowed: 1 to 4096"),
        ("0..8", "0 is not allowed"),
        ("8..8192", "8192 is not allowed"),
        ("1e9", "write 8..4096, 8,16,32 or one number"),
        ("1000000000000", "write 8..4096"),
        ("-8", "write 8..4096"),
        ("eight", "write 8..4096"),
        ("8...16", "write 8..4096"),
        ("8,,16", "write 8..4096"),
        ("", "write 8..4096"),
        ("\u0668", "write 8..4096"),
    ],
)
def test_numbers_that_are_refused(text: str, why: str) -> None:
    code, _, errors = call("whatif", *SMALL, f"--modules={text}")
    assert code == 2 and errors.startswith("rayemu: --modules: ") and why in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["smoke"], "--hardware is missing"),
        (["smoke", "--hardware", "abacus"], "abacus"),
        (["nobody", "--hardware", "text-pim"], "nobody: no such file"),
        ([*SMALL, "--modules", "8", "--nodes", "3"], "--nodes 3: 8 modules do not make whole nodes"),
        ([*SMALL, "--modules", "8", "--modules-per-node", "16"], "--modules-per-node 16: 8 modules"),
        ([*SMALL, "--nodes", "2", "--modules-per-node", "4"], "exclude each other"),
        ([*SMALL, "--tokens", "2000000000"], "run.batch_tokens"),
        (["smoke", "--hardware", "text-pim", "--modules", "8", "--batches", "1000000000"], "allowed: up to"),
        ([*SMALL, "--modules", "8", "--tokens", "3000000"], "take fewer --batches, --tokens"),
        ([*SMALL, "--deadline", "soon"], "--deadline: soon"),
        ([*SMALL, "--set", "model.layers=0"], "model.layers"),
        ([*SMALL, "--modules", "2", "--set", "placement.copies=3"], "placement.copies: 3 is not allowed"),
        ([*SMALL, "--modules", "2", "--set", "exchange.codec.node=auto"], "goes by what is measured"),
        (["smoke", "--hardware", "text-pim", "--set", "model={checkpoint: /nowhere}"], "/nowhere"),
        (
            ["smoke", "--hardware", "text-pim", "--modules", "8", "--set", "model={preset: deepseek-v3}"],
            "needs 1",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], why: str) -> None:
    code, _, errors = call("whatif", *arguments)
    assert code == 2 and why in errors, errors
    assert errors.count("\n") == 1 and errors.startswith("rayemu: "), errors


def test_it_is_the_price_of_the_run(tmp_path: Path) -> None:
    """The smallest scenario, run in the memory transport one batch at a time, and the same as a plan."""
    changes = ["run.in_flight=1", "cluster.transport=memory", "model.layers=3"]
    settings = [part for change in changes for part in ("--set", change)]
    assert call("run", "smoke", *settings, "--out", tmp_path / "run", "-q")[0] == 0
    for hardware in ("text-pim", "h100-sxm", TOY):
        code, text, errors = call("price", tmp_path / "run", "--hardware", hardware, "--json")
        assert code == 0, errors
        ran = json.loads(text)
        (planned,) = whatif("smoke", *settings, "--hardware", hardware, "--modules", 2)
        assert planned["choices"] == "the model's own"
        assert PRICED <= set(planned) and set(ran) - set(planned) <= {"missing_causes"}
        assert planned["critical_path"].keys() == ran["critical_path"].keys()
        for what in ("step_emu_s", "tokens_per_emu_s", "joules_per_token"):
            assert planned[what] == pytest.approx(ran[what], rel=0.01), (hardware, what)
        for part, seconds in ran["critical_path"].items():
            assert planned["critical_path"][part] == pytest.approx(seconds, abs=0.01 * ran["step_emu_s"])


def test_modules_without_experts_are_told_of() -> None:
    """Four experts: two modules hold two each, of eight modules four hold none."""
    few, many, most = whatif(*SMALL, "--modules", "2,8,32")
    assert [row["modules_without_experts"] for row in (few, many, most)] == [0, 4, 28]
    assert [row["nodes"] for row in (few, many, most)] == [2, 8, 32]  # as in the scenario, one on a node
    assert few["scaling_efficiency"] == 1.0
    each = [row["tokens_per_emu_s"] / row["modules"] for row in (few, many)]
    assert many["scaling_efficiency"] == pytest.approx(each[1] / each[0])
    for row in (few, many, most):
        assert sum(row["critical_path"].values()) == pytest.approx(row["step_emu_s"])


def test_one_copy_of_everything_fits_from_some_number_of_modules_on() -> None:
    """Mixtral-8x7B's experts at fp16: 8 x 32 x 3 x 4096 x 14336 x 2 B = 90 GB; modules have 64 GB."""
    given = ("smoke", "--hardware", "text-pim", "--set", "model={preset: mixtral-8x7b}", "--modules", "1..8")
    one, *others = sorted(whatif(*given, "--tokens", 8), key=lambda row: row["modules"])
    assert one["modules"] == 1 and "needs" in one["refused"]
    assert [row["modules"] for row in others] == [2, 4, 8]
    assert all(row["memory"]["fits"] for row in others)
    experts = 8 * 32 * 3 * 4096 * 14336 * 2
    assert [row["memory"]["expert_bytes"] for row in others] == [experts // m for m in (2, 4, 8)]
    code, text, _ = call("whatif", *given, "--tokens", 8)
    assert code == 0 and "1 modules: text-pim: module 0 needs" in " ".join(text.split())
    forced = whatif(*given[:-1], "1", "--tokens", 8, "--allow-overfull")
    assert forced[0]["memory"]["fits"] is False and forced[0]["step_emu_s"] > 0


def test_the_bandwidth_for_a_deadline_by_hand() -> None:
    """Two tokens, each for both of two experts on two nodes: a row crosses the node link, 2 us away."""
    model = "model={d_model: 4096, d_ff: 128, experts: 2, top_k: 2, layers: 1}"
    given = ("smoke", "--hardware", TOY, "--modules", 2, "--tokens", 2, "--batches", 1, "--set", model)
    (row,) = whatif(*given, "--deadline", "10 us")
    sent = 2 * 4 * 4096  # and the frame's own bytes, 448 at most
    assert row["bandwidth_needed"].keys() <= {"node", "module"}
    assert sent / 8e-6 < row["bandwidth_needed"]["node"] < (sent + 448) / 8e-6
    (short,) = whatif(*given, "--deadline", "1 us")
    assert "without any bytes the exchange takes" in short["bandwidth_needed"]
    code, text, _ = call("whatif", *given, "--deadline", "10 us")
    assert code == 0 and "2 modules, to dispatch a layer in time: module links 4." in " ".join(text.split())


def test_the_fullest_module_says_what_is_needed() -> None:
    """Four experts on three modules: one of them has two in each of both layers."""
    (row,) = whatif(*SMALL, "--tokens", "1", "--modules", "3")  # so that there are next to no activations
    experts = 2 * 2 * 3 * 64 * 128 * 2
    assert row["memory"]["expert_bytes"] == experts
    assert experts < row["memory"]["needed_bytes"] < 1.2 * experts


def test_the_table_shows_each_number_and_hardware() -> None:
    code, text, _ = call("whatif", *SMALL, "--hardware", "h100-sxm", "--modules", "2..8")
    assert code == 0
    assert [text.count(f"{name} ") >= 6 for name in ("text-pim", "h100-sxm")] == [True, True]
    assert "emulated time" in " ".join(text.split()) and "wall time" in text


def test_nodes_are_the_scenarios_own_or_as_asked() -> None:
    laptop = Scenario.load("laptop")  # four modules on a node
    shapes = {
        (modules, machines): on_modules(
            laptop.with_overrides(["faults=[]"]), Machines((), *machines), modules
        )
        for modules, machines in ((16, (None, None)), (2, (None, None)), (16, (2, None)), (16, (None, 16)))
    }
    found = [(s.cluster.nodes, s.cluster.modules_per_node) for s in shapes.values()]
    assert found == [(4, 4), (1, 2), (2, 8), (1, 16)]


def test_without_batches_there_are_as_many_as_are_soon_planned() -> None:
    laptop = Scenario.load("laptop")
    assert affordable_batches(laptop) == laptop.run.batches == 50
    large = laptop.with_overrides(["model={preset: deepseek-v3}", "run.batch_tokens=4096"])
    assert affordable_batches(large) == 1


def test_large_models_choose_by_the_streams_law() -> None:
    given = ("laptop", "--hardware", "text-pim", "--modules", "256", "--tokens", "64", "--batches", "1")
    model = ("--set", "model={preset: deepseek-v3, layers: 5}", "--set", "placement.copies=1")
    (alike,) = whatif(*given, *model)
    (skewed,) = whatif(*given, *model, "--set", "stream={kind: zipf, alpha: 1}")
    assert (alike["choices"], skewed["choices"]) == ("drawn, all experts alike", "drawn, zipf 1")
    # The same rows go to fewer experts, so fewer weights are read.
    assert skewed["energy_joules"]["experts"] < 0.95 * alike["energy_joules"]["experts"]


def test_a_window_of_a_trace_lasts_for_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows, whose rows go to experts 0 and 1 and to experts 2 and 3, each for three batches."""
    windows = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    write(tmp_path / "loads.npz", "rayemu", Trace(np.array(windows)[:, None]))
    stream = f"stream={{kind: trace, path: {tmp_path / 'loads.npz'}, every: 3}}"
    monkeypatch.setattr("rayemu.study.whatif.MOST_FLOPS", 0)  # or the model itself would choose
    choices, how = choices_of(Scenario.load("smoke").with_overrides([stream]))
    assert how == f"drawn by {tmp_path / 'loads.npz'}"
    used = [{*choices(range(batch, batch + 1), 0).ravel().tolist()} for batch in range(7)]
    assert used == [{0, 1}] * 3 + [{2, 3}] * 3 + [{0, 1}]
