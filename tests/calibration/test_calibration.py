"""Calibration: constants come back from times that were made with them; the file says where each is from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu import calibration
from rayemu.calibration import calibrate, measure, runs
from rayemu.calibration.fit import fit_passes
from rayemu.calibration.hardware import description, written
from rayemu.calibration.measure import CODECS, SHAPES, _best, _measured
from rayemu.calibration.runs import FIRST, Ran, fit_costs, predicted, with_costs
from rayemu.emulator import Emulator
from rayemu.hardware import Hardware, HardwareError
from rayemu.model.spec import ModelSpec
from rayemu.protocol.client import BatchResult
from rayemu.scenario import Scenario
from tests.pricing.graphs import Draft

SPEC = ModelSpec(name="m", d_model=64, d_ff=32, experts=4, top_k=1, layers=1)
OVERHEAD, BANDWIDTH, RATE = 2e-5, 5e9, 4e10


def made(tile: int = 1) -> dict[str, float]:
    """Times of a machine whose constants are known: sums written out, not by the code under test."""
    times = {}
    for d, f, rows in SHAPES:
        operations = 2 * 3 * d * f * (-(-rows // tile) * tile)
        moved = 4 * (3 * d * f) + 4 * rows * ((d + 2 * f) + 5 * f + (f + d))  # in and out, silu, product
        times[f"pass {d} {f} {rows}"] = OVERHEAD + moved / BANDWIDTH + operations / RATE
    return {**times, "copy": 1e-10, **{f"{way} {c}": 1e-9 for way in ("encode", "decode") for c in CODECS}}


@pytest.mark.parametrize("tile", [1, 8])
def test_the_constants_of_passes_come_back(tile: int) -> None:
    passes = {shape: made(tile)["pass {} {} {}".format(*shape)] for shape in SHAPES}
    assert np.allclose(fit_passes(passes, tile), (OVERHEAD, BANDWIDTH, RATE), rtol=1e-6)


def this_machine(folder: Path, **costs: float) -> Hardware:
    return written(description(made(), {**FIRST, **costs}, "a processor"), folder / "this-machine.yaml")


def test_the_file_is_a_hardware_with_a_source_for_every_number(tmp_path: Path) -> None:
    hardware = this_machine(tmp_path, frame=3e-4)
    assert hardware.spec.processors is not None
    assert hardware.spec.processors.frame == pytest.approx(3e-4)
    fitted = ("frame", "wake", "bandwidth", "share")
    assert all("calibrate" in hardware.sources[f"processors.{name}"] for name in fitted)
    assert [file.name for file in tmp_path.iterdir()] == ["this-machine.yaml"]


def test_an_unfinished_calibration_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it would claim to be fitted."""

    def interrupted(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "on_every_core", lambda *_: made())
    monkeypatch.setattr(calibration, "ran", lambda *_: None)
    monkeypatch.setattr(calibration, "fit_costs", interrupted)
    file = tmp_path / "this-machine.yaml"
    for before in (None, "of last week"):
        if before is not None:
            file.write_text(before)
        with pytest.raises(KeyboardInterrupt):
            calibration.calibrate(file, print)
        assert [path.read_text() for path in tmp_path.iterdir()] == [before] * (before is not None)
    with pytest.raises(HardwareError):
        written(description(made(), {**FIRST, "wake": -1.0}, "a processor"), file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of last week"]


def a_graph(size: float, batches: int) -> Draft:
    """Batches one after the other: a message there, a pass, a message back."""
    draft, before = Draft([0, 0]), None
    for batch in range(batches):
        sent = draft.send(0, 1, size, after=before, batch=batch)
        done = draft.expert(1, 0, 4, after=sent, batch=batch)
        before = draft.send(1, 0, size, after=done, batch=batch)
    return draft


def pass_seconds(hardware: Hardware, share: float) -> float:
    return float(hardware.expert_seconds(SPEC.d_model, SPEC.d_ff, 4)) / share


def test_messages_and_passes_take_turns_at_the_processors(tmp_path: Path) -> None:
    """One chain by hand: every message costs both ends and wakes who gets it, which then computes at once."""
    hardware = this_machine(tmp_path, frame=1e-3, wake=5e-3, bandwidth=1e6, share=0.5)
    one = Ran("one", a_graph(1e3, 1).graph(), SPEC, 4, 1.0)
    message = 2 * (1e-3 + 1e-3) + 5e-3  # both ends: a frame and a kilobyte at 1 MB/s
    assert predicted(one, hardware) == pytest.approx(2 * message + pass_seconds(hardware, 0.5), rel=1e-6)


def test_as_many_batches_at_once_as_there_are_take_all_processors(tmp_path: Path) -> None:
    """Work of many modules ends no sooner than all processors together can do it."""
    hardware = this_machine(tmp_path, wake=1e-2, share=0.5)
    count = hardware.spec.processors.count if hardware.spec.processors is not None else 0
    draft = Draft([0] * 64)
    for module in range(64):
        draft.expert(module, 0, 4)
    each = pass_seconds(hardware, 0.5) + 1e-2
    took = predicted(Ran("wide", draft.graph(), SPEC, 4, 1.0), hardware)
    assert 64 * each / count <= took * (1 + 1e-9) and took <= 64 * each / count + each


def test_the_costs_of_runs_come_back(tmp_path: Path) -> None:
    hardware = this_machine(tmp_path)
    costs = {"frame": 1.2e-4, "wake": 4e-4, "bandwidth": 6e8, "share": 0.5}
    true = with_costs(hardware, costs)
    burst, passes = Draft([0, 0]), Draft([0, 0])
    for _ in range(40):  # one wakes the module for all
        burst.send(0, 1, 1e3)
        passes.expert(1, 0, 400)
    drafts = {"chain": a_graph(1e3, 20), "large": a_graph(4e6, 20), "burst": burst, "passes": passes}
    runs = [Ran(name, draft.graph(), SPEC, 80, 1.0) for name, draft in drafts.items()]
    runs = [replace(run, wall_s=predicted(run, true)) for run in runs]
    found = fit_costs(hardware, runs)
    assert found == pytest.approx(costs, rel=0.1)
    other = Ran("between", a_graph(1e6, 7).graph(), SPEC, 28, 1.0)
    assert predicted(other, with_costs(hardware, found)) == pytest.approx(predicted(other, true), rel=0.03)


def test_no_share_is_more_than_the_whole(tmp_path: Path) -> None:
    """Passes that were quicker in a run than apart."""
    hardware, passes = this_machine(tmp_path), Draft([0])
    for _ in range(40):
        passes.expert(0, 0, 400)
    run = Ran("quick", passes.graph(), SPEC, 4, 1e-3)
    assert predicted(run, with_costs(hardware, {"share": 1.0})) > 1.5e-3
    assert 0.95 < fit_costs(hardware, [run])["share"] <= 1.0


def test_every_rate_is_measured() -> None:
    found = _measured(0.3)
    assert set(found) == set(made()) and all(0 < seconds < 5 for seconds in found.values())


def test_a_call_takes_the_median_of_its_times_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now, turns = [0.0], []

    def call(turn: int) -> None:
        turns.append(turn)
        now[0] += [100.0, 3.0, 50.0, 1.0, 2.0, 4.0][turn]

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    assert _best(call, 58.0) == 3.0
    assert turns == [0, 1, 2, 3, 4, 5]  # five that count, which take 60 seconds


def test_codecs_are_timed_by_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_best", lambda *_: 1.0)
    assert measure._codec("int8", 0.0) == dict.fromkeys(("encode int8", "decode int8"), 1 / (256 * 1024 * 4))


def test_a_run_is_timed_without_its_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take 100 s each here, a wait 10 s, and the others one; their rows are not in the graph either."""
    model = {"d_model": 16, "d_ff": 8, "experts": 4, "top_k": 2, "layers": 2}
    cluster = {"nodes": 1, "modules_per_node": 2, "transport": "memory"}
    run = {"batches": 3, "batch_tokens": 8, "in_flight": 2, "check": "none"}
    scenario = Scenario.from_dict({"name": "warm", "model": model, "cluster": cluster, "run": run})
    now = [0.0]

    class Slow(Emulator):
        def stream(self, *given: Any, **more: Any) -> Iterator[BatchResult]:
            for result in super().stream(*given, **more):
                now[0] += 100.0 if result.batch < runs.WARM else 1.0
                yield result

        def wait(self, seconds: float) -> None:
            now[0] += 10.0
            super().wait(seconds)

    monkeypatch.setattr(runs, "Emulator", Slow)
    monkeypatch.setattr(runs.time, "perf_counter", lambda: now[0])
    told = runs.ran(scenario)
    assert (told.tokens, told.wall_s, told.graph.gaps) == (24, 3.0, 0)
    assert sorted(set(told.graph.batch.tolist())) == [runs.WARM + number for number in range(3)]


def test_a_script_that_calls_it_unguarded_is_told_so_and_ends(tmp_path: Path) -> None:
    """Its processes import it again, and would again start processes."""
    script = tmp_path / "script.py"
    script.write_text(
        "from rayemu.calibration.measure import on_every_core\nprint('begun')\non_every_core(2, 0.1)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stdout.count("begun") == 3  # each of the two that it started, once
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError") and 'under `if __name__ == "__main__":`' in last


def test_ctrl_c_ends_all_processes_without_a_word_of_theirs(tmp_path: Path) -> None:
    """As a terminal sends it: to all of them, while they measure."""
    script = "import sys; from rayemu.cli import main; sys.argv[1:] = ['calibrate', 'x.yaml']; main()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None and running.stderr is not None
        while "at once" not in running.stdout.readline():
            assert running.poll() is None
        time.sleep(3)  # they have started
        os.killpg(running.pid, signal.SIGINT)
        assert running.stderr.read() == "rayemu: interrupted\n"  # to its end: nobody has it open any more
        assert running.wait(20) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["there/x.yaml", "folder.yaml", "long" * 100 + ".yaml"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "there").write_text("a file")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(OSError):
        calibrate(tmp_path / name, lambda line: pytest.fail(line))


def test_a_link_stays_and_what_is_not_written_whole_leaves_all_as_it_was(tmp_path: Path) -> None:
    file, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    file.write_text("old")
    link.symlink_to(file)

    def fail(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(link, fail)
    with pytest.raises(HardwareError):
        written({"name": "no hardware"}, file)
    assert file.read_text() == "old" and link.is_symlink()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.yaml", "real.yaml"]
