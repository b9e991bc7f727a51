"""Cells, tables and goals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from rayemu.benchmarks.compare import Result, processor_ratios, ratios
from rayemu.benchmarks.contenders import CONTENDERS
from rayemu.benchmarks.goals import goal_lines
from rayemu.benchmarks.measure import Run
from rayemu.benchmarks.output import busy_share, noise_warning, pair, show_ratio, show_time, write
from rayemu.benchmarks.overhead import overhead_ratios
from rayemu.benchmarks.scaling import growth
from rayemu.benchmarks.tables import (
    modules_table,
    overhead_table,
    processor_table,
    scaling_table,
    speeds_table,
    times_table,
)
from rayemu.benchmarks.workload import SIZES


def text(table: Table) -> str:
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(table)
    return console.export_text()


def result(name: str, latency: float, stream: float | None = None, exact: bool | None = True) -> Result:
    return Result(
        CONTENDERS[name],
        latency=[Run(0, (latency, 2 * latency, latency))],
        stream=[] if stream is None else [Run(0, (stream,))],
        exact=exact,
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (12.345, "12.3 s"),
        (1.0, "1 s"),
        (0.9996, "1 s"),
        (0.9991, "999 ms"),
        (0.0214, "21.4 ms"),
        (0.000123, "123 us"),
        (2e-7, "0.2 us"),
        (1234.5, "1234 s"),
    ],
)
def test_times_have_units(seconds: float | None, shown: str) -> None:
    assert show_time(seconds) == shown


def test_a_busy_machine_is_told_of() -> None:
    assert noise_warning({"busy_share": None}) is None
    assert noise_warning({"busy_share": 0.05}) is None
    assert "60%" in str(noise_warning({"busy_share": 0.6}))
    share = busy_share(0.05)
    assert share is None or 0.0 <= share <= 1.0


def test_ratios_have_enough_figures() -> None:
    assert [show_ratio(v) for v in (None, 0.8734, 1.254, 14.23)] == ["-", "0.873", "1.25", "14.2"]
    assert pair("-", "-") == "-"
    assert pair("0.9", "-") == "0.9/-"


def test_a_comparison_as_tables() -> None:
    results = {
        "gemms": result("gemms", 0.8, exact=None),
        "torch": Result(CONTENDERS["torch"], unavailable="torch not installed"),
        "hierarchical": result("hierarchical", 1.0, 0.5),
        "ray": result("ray", 2.0, 4.0),
    }
    table = ratios(results)
    assert table["hierarchical"]["gemms"] == {"latency": pytest.approx(0.8), "stream": pytest.approx(1.6)}
    assert table["hierarchical"]["ray"] == {"latency": pytest.approx(2.0), "stream": pytest.approx(8.0)}
    assert table["gemms"]["ray"]["stream"] is None
    assert table["hierarchical"]["torch"]["latency"] is None
    times = text(times_table(SIZES["large"], results))
    assert "torch not" in times and "exact" in times and "8,192" in times
    speeds = text(speeds_table(results, table))
    assert "0.800/1.60" in speeds and "2.00/8.00" in speeds and "torch" not in speeds
    (line,) = goal_lines("large", results, "coordinator")
    assert "0.800 times as fast as the bare GEMMs" in line and "must 0.85" in line


def fine() -> dict[str, Result]:
    """Products that take 0.1 s, and twice as long on the processor; flat on 8 and 32 modules."""
    found = {"processes": result("processes", 0.1, exact=None)}
    found["processes"].processor = {"latency": {"all": [Run(0, (0.2,))]}}
    for modules, seconds, used in ((8, 0.125, 0.25), (32, 0.15625, 0.35)):
        one = Result(
            replace(CONTENDERS["flat"], kind="flat", modules=modules),
            latency=[Run(0, (0.16,))],
            stream=[Run(0, (seconds,))],
            exact=True,
        )
        for what, batches in (("latency", 1), ("stream", 10)):
            by_role = {"driver": 0.004, "coordinator": 0.008, "ray": 0.0, "modules": used - 0.012}
            one.add_used(what, 0, {r: batches * s for r, s in by_role.items()}, batches)
        found["flat" if modules == 8 else "flat-32"] = one
    return found


def test_processor_time_is_shown_relative_to_the_products() -> None:
    results = fine()
    used = processor_ratios(results)
    assert used["flat"] == {"latency": pytest.approx(1.25), "stream": pytest.approx(1.25)}
    assert used["flat-32"]["stream"] == pytest.approx(1.75)
    assert used["processes"] == {"latency": pytest.approx(1.0), "stream": None}
    shown = text(processor_table(SIZES["fine"], results, used))
    assert "250 ms/250 ms" in shown and "1.75/1.75" in shown and "12 ms/12 ms" in shown
    data = results["flat"].as_dict()
    assert data["modules"] == 8
    assert data["processor_per_batch"]["stream"]["serial"]["median_s"] == pytest.approx(0.012)
    results["flat"].add_used("stream", 1, None, 10)  # a process ended meanwhile: no figure
    data = results["flat"].as_dict()
    assert data["processor_per_batch"]["stream"]["all"]["count"] == 1
    assert data["processor_windows_without_figure"] == 1


def test_goals_of_fine_grained_experts() -> None:
    results = fine()
    both = ratios(results)["flat-32"]["fewest"]
    assert both == {"latency": pytest.approx(1.0), "stream": pytest.approx(0.8)}
    assert "fewest" not in ratios(results)["flat"]
    table = modules_table(SIZES["fine"], results, ratios(results))
    assert table is not None and "0.800" in text(table)
    assert modules_table(SIZES["fine"], {"flat": results["flat"]}, ratios(results)) is None
    lines = goal_lines("fine", results, "modules")
    assert [line.split(":")[0] for line in lines] == ["fine, flat"] * 3 + ["fine, flat-32"] * 3
    speed, used, serial, share, used_32, _ = lines
    assert "0.625 times as fast as the GEMMs by processes one at a time (must 0.6, aim 0.85)" in speed
    assert "0.800 in a stream (must 0.7, aim 0.9)" in speed
    assert "1.25 times the processor time" in used and "must 1.45, aim 1.15" in used
    assert "12 ms of processor time per batch and layer, routed at modules (must 10 ms" in serial
    assert "0.800 of the throughput" in share and "must 0.8" in share
    assert "1.75 times" in used_32 and "must 1.7, aim 1.3" in used_32
    assert "must 20 ms" in goal_lines("fine", results, "coordinator")[2]


def test_growth_is_relative_to_the_fewest_modules() -> None:
    by_modules = {4: result("flat", 3.0, 2.0), 2: result("flat", 1.0, 1.0)}
    grown = growth(by_modules)
    assert grown[4] == {"latency": pytest.approx(3.0), "stream": pytest.approx(2.0)}
    assert grown[2] == {"latency": 1.0, "stream": 1.0}
    assert growth({}) == {}
    shown = text(scaling_table(SIZES["small"], {"flat": by_modules}, {"flat": grown}))
    assert "3.00/2.00" in shown


def test_overhead_is_the_median_over_pairs() -> None:
    default, never = result("flat", 1.02, 1.0), result("flat", 1.0, 1.0)
    default.latency.append(Run(3, (1.1,)))
    never.latency.append(Run(2, (1.0,)))
    default.latency.append(Run(4, (0.99,)))
    never.latency.append(Run(5, (1.0,)))
    relative = overhead_ratios({"default": default, "never": never})
    assert relative["latency"] == {
        "median": pytest.approx(0.02),
        "least": pytest.approx(-0.01),
        "most": pytest.approx(0.1),
    }
    shown = text(overhead_table(SIZES["small"], {"default": default, "never": never}, relative))
    assert "+2.0 %" in shown and "-1.0 %" in shown and "+10.0 %" in shown
    recorded = {"default": default, "unrecorded": never}
    assert overhead_ratios(recorded, "unrecorded") == relative
    assert "Cost of the record" in text(overhead_table(SIZES["small"], recorded, relative, "recording"))


def test_results_are_written_whole(tmp_path: Path) -> None:
    write(tmp_path / "new" / "x.json", {"a": 1})
    assert (tmp_path / "new" / "x.json").read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.json"]
    with pytest.raises(ValueError):
        write(tmp_path / "y.json", {"a": float("nan")})
    assert not (tmp_path / "y.json").exists()
