"""Runs priced from their folders and at once, on the `memory` transport; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.drivers.record import load_columns, save_columns
from rayemu.hardware import HardwareError, load_hardware
from rayemu.pricing.graph import EXPERT
from rayemu.pricing.memory import PricingError
from rayemu.pricing.recorded import load_recorded, price_recorded
from rayemu.report.table import one_line
from rayemu.running.run import run_scenario
from rayemu.scenario import Scenario
from tests.pricing.graphs import TOY

PARTS = ("route", "dispatch", "queue", "compute", "combine")
DATA: dict[str, Any] = {
    "name": "small",
    "model": {"preset": "mixtral-8x7b", "scale": 128, "layers": 2},
    "cluster": {"nodes": 2, "modules_per_node": 4, "transport": "memory"},
    "stream": {"kind": "zipf", "vocabulary": 512},
    "placement": {"copies": 1},
    "run": {"batches": 4, "batch_tokens": 32, "seed": 3},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("priced") / "run"
    with threadpool_limits(1):
        run_scenario(Scenario.from_dict(DATA), folder, trace=True, hardware=[load_hardware(TOY)])
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def priced(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["price", *arguments])


def refused(*arguments: str) -> str:
    """The one line that a refused command says."""
    result = priced(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    return str(line)


def test_a_run_is_priced_at_the_full_width_of_its_model(finished: Path) -> None:
    run = load_recorded(finished)
    figures, plan = price_recorded(run, load_hardware(TOY))
    graph, toy = run.graph, load_hardware(TOY)
    assert run.model.d_model == 4096 and figures["tokens"] == 128 and figures["batches"] == 4
    assert int(graph.rows[graph.kind == EXPERT].sum()) == 2 * 2 * 128  # K choices in L layers
    passes = [toy.expert_seconds(4096, 14336, int(rows)) for rows in graph.rows[graph.kind == EXPERT]]
    took = (plan.end - plan.start)[graph.kind == EXPERT]
    np.testing.assert_allclose(took, passes)
    assert sum(figures["critical_path"].values()) == pytest.approx(figures["step_emu_s"], rel=1e-12)
    assert figures["step_emu_s"] > max(passes)
    held = figures["memory"]["expert_bytes"]
    assert sum(held) == 2 * 8 * 3 * 4096 * 14336 * 2  # layers, experts, matrices, fp16


def test_pricing_at_once_is_pricing_from_the_folder(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    again = price_recorded(load_recorded(finished), load_hardware(TOY))[0]
    assert summary["priced"] == json.loads(json.dumps(again))
    assert summary["passed"] and summary["tokens_per_wall_s"] != summary["priced"]["tokens_per_emu_s"]


def test_no_figure_of_a_run_is_without_its_clock(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    times = [key for key in (*summary, *summary["priced"]) if key.endswith("_s")]
    clocks = ("_wall_s", "_virtual_s", "_emu_s")
    assert all(key.endswith(clocks) or key == "wall_s" for key in times)
    assert not [key for key in summary if key.endswith("_emu_s")], "emulated time is in its own section"


def test_a_trace_has_the_schedule_beside_the_run(finished: Path) -> None:
    events = json.loads((finished / "trace.json").read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert len(names) == len([e for e in events if e["name"] == "process_name"]), "one process, one number"
    emulated = {pid for pid, name in names.items() if name.startswith("emulated: toy")}
    run = load_recorded(finished)
    plan = price_recorded(run, load_hardware(TOY))[1]
    spans = [e for e in events if e["pid"] in emulated and e["ph"] == "X" and "expert" in e["name"]]
    assert len(spans) == int((run.graph.kind == EXPERT).sum())
    assert sum(e["dur"] for e in spans) == pytest.approx(
        float((plan.end - plan.start)[run.graph.kind == EXPERT].sum()) * 1e6, rel=1e-6
    )
    begins, ends = ([e for e in events if e["pid"] in emulated and e["ph"] == ph] for ph in "be")
    assert len(begins) == len(ends) > 0


def test_one_hardware_is_an_object_and_several_are_a_list(finished: Path) -> None:
    one = json.loads(priced(str(finished), "--hardware", str(TOY), "--json").output)
    assert {"step_emu_s", "tokens_per_emu_s", "joules_per_token", "critical_path", "utilisation"} <= set(one)
    assert tuple(one["critical_path"]) == PARTS
    two = json.loads(priced(str(finished), "--hardware", str(TOY), "--hardware", "h100-sxm", "--json").output)
    assert [of["hardware"] for of in two] == ["toy", "h100-sxm"], "as whatif has it"
    assert two[0] == one


def test_several_are_printed_side_by_side(finished: Path) -> None:
    shown = priced(str(finished), "--hardware", str(TOY), "--hardware", "h100-sxm").output
    assert "toy" in shown and "h100-sxm" in shown and "step_emu_s" in shown and "not known" in shown


def test_no_folder_no_record_and_no_hardware(finished: Path, copied: Path, tmp_path: Path) -> None:
    assert "no run is there" in refused(str(tmp_path / "none"), "--hardware", str(TOY))
    assert "--hardware is missing" in refused(str(copied))
    assert "no such hardware" in refused(str(copied), "--hardware", "none")
    (copied / "record.npz").unlink()
    assert "there is no record" in refused(str(copied), "--hardware", str(TOY))
    (copied / "summary.json").unlink()
    assert "the run was not finished" in refused(str(copied), "--hardware", str(TOY))


def test_records_of_version_1_and_cut_ones(copied: Path) -> None:
    path = copied / "record.npz"
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files if name != "version"}
    np.savez(path, **columns)
    assert "record of version 1" in refused(str(copied), "--hardware", str(TOY))
    path.write_bytes(path.read_bytes()[:5000])
    assert "cut" in refused(str(copied), "--hardware", str(TOY))


@pytest.mark.parametrize(
    "change",
    [
        "model.layers=3",
        "model.scale=64",
        "model.top_k=1",
        "cluster.modules_per_node=2",
        "cluster.modules_per_node=8",
        "cluster.nodes=1 cluster.modules_per_node=8",
        "cluster.nodes=4 cluster.modules_per_node=2",
        "model.experts=16",
    ],
)
def test_a_scenario_that_was_changed_after_the_run(copied: Path, change: str) -> None:
    other = Scenario.load(copied / "scenario.yaml").with_overrides(change.split())
    (copied / "scenario.yaml").write_text(other.to_yaml())
    line = refused(str(copied), "--hardware", str(TOY))
    assert "the record is" in line and "scenario" in line


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("checks", {"nothing_lost": False}, "did not hold nothing_lost"),
        ("record_cut", "module 3's disk was full", "cut (module 3's disk was full)"),
        ("tokens_out", 0, "nothing was finished"),
        ("expert_tokens", None, "its layers and experts are ()"),
    ],
)
def test_runs_that_were_not_whole(copied: Path, key: str, value: object, says: str) -> None:
    path = copied / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert says in refused(str(copied), "--hardware", str(TOY))


def test_a_damaged_summary_and_an_empty_record(finished: Path, copied: Path) -> None:
    save_columns(copied / "record.npz", load_columns(copied / "record.npz")[:0])
    assert "nothing was finished or recorded" in refused(str(copied), "--hardware", str(TOY))
    (copied / "record.npz").write_text("a note")
    line = refused(str(copied), "--hardware", str(TOY))
    assert "cut or no record at all" in line and "pickle" not in line
    save_columns(copied / "record.npz", load_columns(finished / "record.npz"))
    (copied / "summary.json").write_text("{")
    assert "summary.json is damaged" in refused(str(copied), "--hardware", str(TOY))


def small_toy(folder: Path) -> Path:
    file = folder / "narrow.yaml"
    file.write_text(TOY.read_text().replace("value: 64 GB,", "value: 100 MB,"))
    return file


def test_what_does_not_fit_is_refused_unless_allowed(finished: Path, tmp_path: Path) -> None:
    file = str(small_toy(tmp_path))
    assert "module 0 needs" in refused(str(finished), "--hardware", file)
    assert "DOES NOT FIT" in priced(str(finished), "--hardware", file, "--allow-overfull").output


def test_a_run_on_hardware_that_cannot_hold_it_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(PricingError, match="module 0 needs"):
        run_scenario(
            Scenario.from_dict(DATA), tmp_path / "run", hardware=[load_hardware(small_toy(tmp_path))]
        )
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_record_says_so_and_does_not_begin_with_hardware(tmp_path: Path) -> None:
    scenario = Scenario.from_dict(DATA | {"run": DATA["run"] | {"batches": 1, "record": False}})
    with pytest.raises(PricingError, match=r"run\.record is false"):
        run_scenario(scenario, tmp_path / "run", hardware=[load_hardware(TOY)])
    assert not (tmp_path / "run").exists()
    with threadpool_limits(1):
        run_scenario(scenario, tmp_path / "run")
    assert "run.record is false" in refused(str(tmp_path / "run"), "--hardware", str(TOY))


def test_a_run_with_unknown_hardware_does_not_begin(tmp_path: Path) -> None:
    arguments = ["run", "smoke", "--out", str(tmp_path / "run"), "--hardware", "none"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "no such hardware" in result.output
    assert not (tmp_path / "run").exists()


@pytest.fixture
def few(tmp_path: Path) -> list[str]:
    """The arguments of a run of one batch."""
    scenario = Scenario.from_dict(DATA | {"run": DATA["run"] | {"batches": 1}})
    (tmp_path / "few.yaml").write_text(scenario.to_yaml())
    return ["run", str(tmp_path / "few.yaml"), "--out", str(tmp_path / "run"), "--hardware", str(TOY)]


def test_both_clocks_are_shown(few: list[str]) -> None:
    shown = CliRunner().invoke(app, few)
    assert shown.exit_code == 0, shown.output
    assert "emulated time on toy when it is over" in shown.output.splitlines()[0]
    for row in ("wall time", "emulated on toy", "critical path"):
        assert row in shown.output


def test_arrivals_that_are_not_priced_are_named(copied: Path) -> None:
    assert "arrivals" not in priced(str(copied), "--hardware", str(TOY)).output
    scenario = Scenario.load(copied / "scenario.yaml").with_overrides(["arrivals.kind=poisson"])
    (copied / "scenario.yaml").write_text(scenario.to_yaml())
    told = priced(str(copied), "--hardware", str(TOY)).output
    assert "arrivals (poisson) are not priced" in told, told
    options = ["--set", "arrivals.kind=poisson", "--hardware", str(TOY), "--modules", "2"]
    planned = CliRunner().invoke(app, ["whatif", "smoke", *options]).output
    assert "arrivals (poisson) are not priced" in planned, planned


def test_a_quiet_run_tells_both_clocks_in_its_line(few: list[str]) -> None:
    (line,) = CliRunner().invoke(app, [*few, "--quiet"]).output.strip().splitlines()
    assert "tokens/s" in line and "; toy: step " in line and "tokens per emulated s" in line


def test_a_run_that_lost_tokens_says_why_it_is_not_priced(tmp_path: Path) -> None:
    faults = [{"kind": "kill", "module": 5, "at": {"batch": 1}}]
    with threadpool_limits(1):
        summary = run_scenario(
            Scenario.from_dict(DATA | {"faults": faults}), tmp_path / "run", hardware=[load_hardware(TOY)]
        )
    assert not summary["passed"]
    assert "did not hold nothing_lost" in summary["priced"]["refused"]
    assert summary["priced"]["hardware"] == "toy"
    assert "toy: not priced: the run did not hold nothing_lost" in one_line(summary, tmp_path)


def test_links_that_do_not_join_the_nodes_are_refused_before_a_run_and_in_a_line(
    finished: Path, tmp_path: Path
) -> None:
    ring = tmp_path / "torus.yaml"
    ring.write_text(
        f"like: {TOY}\nname: torus\nlinks: {{module: {{topology: "
        "{kind: torus, dimensions: {value: [3, 3], source: t}}}}\n"
    )
    said = refused(str(finished), "--hardware", str(ring))
    for part in ("torus: links.module.topology.dimensions: [3, 3] join 9 ends, not 4", "leave it out"):
        assert part in said
    with pytest.raises(HardwareError, match="join 9 ends, not 4"):
        run_scenario(Scenario.from_dict(DATA), tmp_path / "run", hardware=[load_hardware(ring)])
    assert not (tmp_path / "run").exists()
