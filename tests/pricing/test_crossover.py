"""One layer by batch size: its events against loops over tokens, closed forms, crossings by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.hardware import load_hardware
from rayemu.model.presets import preset
from rayemu.model.spec import ModelSpec
from rayemu.pricing.crossover import crossings, curve, draw, layer_graph
from rayemu.pricing.graph import COMBINE, DISPATCH, EXPERT, MESSAGE, REPLY, ROUTE
from rayemu.study.crossover import compare
from tests.pricing.graphs import TOY

MODEL = ModelSpec("m", 512, 256, 8, 2, shared_d_ff=128)
PIM = load_hardware(TOY)


@pytest.mark.parametrize(("tokens", "modules"), [(1, 1), (1, 4), (7, 3), (64, 4), (64, 16)])
def test_the_events_are_those_of_a_loop_over_tokens(tokens: int, modules: int) -> None:
    choices = draw(MODEL, tokens, None, seed=1)
    graph = layer_graph(MODEL, choices, np.arange(modules) // 2, row_bytes=1024.0)
    passes: Counter[int] = Counter()
    sends: Counter[tuple[int, int]] = Counter()  # a token's row once to a module; a row back for each choice
    replies: Counter[tuple[int, int]] = Counter()
    for token in range(tokens):
        for expert in choices[token].tolist():
            passes[expert] += 1
            replies[token % modules, expert * modules // 8] += 1
        sends.update((token % modules, there) for there in {*(choices[token] * modules // 8).tolist()})
    routed = (graph.kind == EXPERT) & (graph.expert >= 0)
    assert dict(zip(graph.expert[routed].tolist(), graph.rows[routed].tolist(), strict=True)) == passes
    assert (graph.src[routed] == graph.expert[routed] * modules // 8).all()
    for role, ends, rows in ((DISPATCH, ("src", "dst"), sends), (REPLY, ("dst", "src"), replies)):
        mine = (graph.kind == MESSAGE) & (graph.role == role)
        pairs = zip(*(getattr(graph, end)[mine].tolist() for end in ends), strict=True)
        assert dict(zip(pairs, graph.rows[mine].tolist(), strict=True)) == rows
        assert graph.bytes[mine].tolist() == [1024.0 * sent for sent in graph.rows[mine]]
    homes = min(tokens, modules)
    for kind in (ROUTE, COMBINE):
        assert (graph.kind == kind).sum() == homes and graph.rows[graph.kind == kind].sum() == tokens
    shared = (graph.kind == EXPERT) & (graph.expert < 0)
    assert shared.sum() == homes and graph.rows[shared].sum() == tokens


def test_each_event_waits_for_what_it_needs() -> None:
    graph = layer_graph(MODEL, draw(MODEL, 40, None, seed=2), np.zeros(4, int), row_bytes=1.0)
    for event in range(len(graph)):
        causes = graph.causes[graph.cause_start[event] : graph.cause_start[event + 1]]
        kinds = {(int(graph.kind[c]), int(graph.role[c])) for c in causes}
        kind, role = int(graph.kind[event]), int(graph.role[event])
        if kind == ROUTE:
            assert not len(causes)
        elif kind == MESSAGE and role == DISPATCH:
            assert kinds == {(ROUTE, 0)} and graph.src[causes].tolist() == [graph.src[event]]
        elif kind == EXPERT and graph.expert[event] >= 0:
            assert kinds == {(MESSAGE, DISPATCH)} and (graph.dst[causes] == graph.src[event]).all()
        elif kind == EXPERT:
            assert kinds == {(ROUTE, 0)} and graph.src[causes].tolist() == [graph.src[event]]
        elif kind == MESSAGE:
            assert kinds == {(EXPERT, 0)} and (graph.src[causes] == graph.src[event]).all()
        elif kind == COMBINE:
            assert kinds == {(MESSAGE, REPLY), (EXPERT, 0)}


def test_one_token_on_one_module_takes_its_parts_one_after_the_other() -> None:
    model = ModelSpec("m", 512, 256, 8, 2)
    (point,) = curve(PIM, model, 1, sizes=[1])
    expected = PIM.route_seconds(512, 8, 1) + 2 * PIM.expert_seconds(512, 256, 1)
    assert point["step_emu_s"] == pytest.approx(expected + PIM.combine_seconds(512, 2, 1))
    assert sum(point["critical_path"].values()) == pytest.approx(point["step_emu_s"])


def test_fetching_the_weights_takes_its_time_for_every_expert() -> None:
    fetch = "module.fetch={bandwidth: {value: 1 GB/s, source: t}, latency: {value: 0 s, source: t}}"
    far = load_hardware(TOY, fetch)
    model = ModelSpec("m", 512, 256, 8, 2)
    near, fetched = (curve(hw, model, 1, sizes=[1])[0]["step_emu_s"] for hw in (PIM, far))
    assert fetched - near == pytest.approx(2 * 3 * 512 * 256 * 2 / 1e9)


def test_choices_follow_the_loads_and_are_different_experts() -> None:
    loads = np.array([8.0, 4, 2, 1, 1, 1, 1, 0])
    chosen = draw(MODEL, 4000, loads, seed=0)
    assert all(len(set(row)) == 2 for row in chosen.tolist())
    counts = np.bincount(chosen.reshape(-1), minlength=8)
    assert counts[7] == 0 and counts[0] > counts[1] > counts[2] > counts[3]
    # The first of two without replacement is expert 0 with 8/18; the second with the rest's share of it.
    share = loads / 18
    first = share[0] + sum(share[e] * loads[0] / (18 - loads[e]) for e in range(1, 8))
    assert counts[0] / 4000 == pytest.approx(first, abs=0.03)


@pytest.mark.parametrize("loads", [[1.0] * 7, [1.0] * 7 + [-1.0], [1.0] + [0.0] * 7, [np.nan] * 8])
def test_loads_that_cannot_be_are_refused(loads: list[float]) -> None:
    with pytest.raises(ValueError, match="loads: "):
        draw(MODEL, 4, np.array(loads), seed=0)


def test_crossings_by_hand() -> None:
    sizes = [1, 2, 4, 8]
    falling = [8.0, 4.0, 2.0, 1.0]
    (found,) = crossings(sizes, falling, [np.sqrt(8)] * 4)
    assert found["first"] == 1 and (found["after"], found["by"]) == (2, 4)
    assert found["about"] == pytest.approx(8 / np.sqrt(8))
    assert crossings(sizes, falling, [9.0] * 4) == []
    assert crossings(sizes, falling, falling) == []
    (through,) = crossings(sizes, falling, [4.0] * 4)  # they meet at 2
    assert (through["first"], through["about"]) == (1, pytest.approx(2.0))


def test_the_command_tells_curves_and_crossovers() -> None:
    names = ["attacc-hbm3-pim", "h100-sxm", "h100-offload"]
    options = [option for name in names for option in ("--hardware", name)]
    facts = json.loads(CliRunner().invoke(app, ["crossover", "mixtral-8x7b", *options, "--json"]).output)
    assert list(facts["curves"]) == names
    assert [point["tokens"] for point in facts["curves"]["h100-sxm"]] == [1 << p for p in range(13)]
    offload, resident = (facts["curves"][name] for name in ("h100-offload", "h100-sxm"))
    assert all(o["step_emu_s"] > r["step_emu_s"] for o, r in zip(offload, resident, strict=True))
    (pim_first,) = [
        of for of in facts["crossovers"]
        if of["of"] == "time" and {of["less_before"], of["less_after"]} == {names[0], names[2]}
    ]  # fmt: skip
    assert pim_first["less_before"] == names[0], "small batches are for whom the weights need not move"
    shown = CliRunner().invoke(app, ["crossover", "mixtral-8x7b", *options])
    assert shown.exit_code == 0 and "takes less up to about" in shown.output
    always = {"of": "time", "between": ["h100-sxm", "h100-offload"], "less": "h100-sxm"}
    assert always in facts["no_crossovers"], "a pair that never changes places is told too"
    assert "time: h100-sxm takes less than h100-offload at every size" in " ".join(shown.output.split())


def test_narrow_terminals_cut_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    compared = ["--hardware", "text-pim", "--hardware", "h100-sxm", "--hardware", "upmem"]
    for command in (
        ["crossover", "mixtral-8x7b", *compared],
        ["whatif", "smoke", "--hardware", "text-pim", "--modules", "2,4"],
        ["router"],
    ):
        shown = CliRunner().invoke(app, command)
        assert shown.exit_code == 0 and "\N{HORIZONTAL ELLIPSIS}" not in shown.output, shown.output


def test_whether_all_layers_fit_is_told_and_not_only_the_one() -> None:
    """Mixtral-8x7B's experts are 90 GB at fp16, a layer's 3 GB; a module has 64 GB."""
    model = preset("mixtral-8x7b").full()
    found = [compare([PIM], model, modules, 0.0)["whole_model_fits"]["toy"] for modules in (1, 2)]
    assert found == [False, True]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--hardware", "text-pim"], "two or more"),
        (["--hardware", "text-pim", "--hardware", "none"], "no such hardware"),
        (["--hardware", "text-pim", "--hardware", "text-pim"], "names one twice"),
        (["--hardware", "text-pim", "--hardware", "upmem", "--modules", "0"], "--modules 0"),
        (["--hardware", "text-pim", "--hardware", "upmem", "--zipf", "-1"], "--zipf -1"),
    ],
)
def test_questions_without_an_answer(more: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["crossover", "mixtral-8x7b", *more])
    assert result.exit_code == 2 and says in result.output


def test_more_tokens_take_more_time_in_all_and_less_each() -> None:
    points = curve(PIM, MODEL, 4, sizes=[1, 16, 256])
    steps, each = ([point[key] for point in points] for key in ("step_emu_s", "emu_s_per_token"))
    assert steps == sorted(steps) and each == sorted(each, reverse=True)
