"""Runs a scenario to see where the time of its batches goes: `rayemu profile`, see docs/profile.md."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from rayemu import machine
from rayemu.emulator import Emulator
from rayemu.profiling.account import Window, account
from rayemu.profiling.queues import queue_times
from rayemu.profiling.sampler import EVERY_S
from rayemu.profiling.speedscope import speedscope
from rayemu.report.progress import Progress
from rayemu.running.folder import RunError, claimed_folder
from rayemu.running.run import batches_of, refuse_too_large
from rayemu.scenario import Scenario

WARM_UP = 3  # batches
REPORT, FLAMES = "profile.json", "profile.speedscope.json"


def profile_scenario(
    scenario: Scenario,
    out: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    overwrite: bool = False,
    warm_up: int = WARM_UP,
    every_s: float = EVERY_S,
) -> dict[str, Any]:
    """Run a scenario's batches, the first `warm_up` of them unmeasured; return all figures.

    The folder (default: runs/NAME-profile) gets scenario.yaml, profile.json and profile.speedscope.json. Batches
    are handed out as the stream takes them, faults are left out, outputs are not compared. Raises RunError
    for the `memory` transport, which has no processes, for a stream that is too short, and as a run does.
    """
    if scenario.cluster.transport == "memory":
        raise RunError(
            "cluster.transport is memory: the simulator's processes and times are not real, so there is nothing "
            "to profile; use --set cluster.transport=zmq (or ray)"
        )
    if scenario.run.batches <= warm_up:
        raise RunError(
            f"run.batches is {scenario.run.batches}, of which the first {warm_up} only warm up: nothing is left "
            "to measure; raise run.batches or lower --warm-up"
        )
    changed = scenario.with_overrides(["run.check=none", "run.record=true"])
    refuse_too_large(changed)
    with claimed_folder(out or Path("runs") / f"{scenario.name}-profile", overwrite) as (folder, _):
        (folder / "scenario.yaml").write_text(scenario.to_yaml(), encoding="utf-8")
        for name in (REPORT, FLAMES):
            (folder / name).unlink(missing_ok=True)
        figures, flames = _measure(changed, on_progress or (lambda progress: None), warm_up, every_s)
        figures["left_out"] = left_out(scenario)
        figures["files"] = {"figures": str(folder / REPORT), "flames": str(folder / FLAMES)}
        (folder / FLAMES).write_text(json.dumps(flames), encoding="utf-8")
        (folder / REPORT).write_text(json.dumps(figures, indent=1, allow_nan=False), encoding="utf-8")
    return figures


def left_out(scenario: Scenario) -> list[str]:
    """What of a scenario is not done while it is profiled."""
    found = []
    if scenario.faults:
        found.append(f"{len(scenario.faults)} of its faults are left out")
    if scenario.arrivals.kind != "closed":
        found.append(f"batches come as they are taken, not by arrivals.kind {scenario.arrivals.kind}")
    return found


def _measure(
    scenario: Scenario, report: Callable[[Progress], None], warm_up: int, every_s: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    run, spec = scenario.run, scenario.spec
    report(Progress("start", 0, run.batches))
    batches = batches_of(scenario)()
    done = tokens = 0
    finished: dict[int, float] = {}  # of measured batches, Unix time
    took: list[float] = []
    with Emulator(scenario, profile_every_s=every_s) as emulator:
        for _ in emulator.stream(islice(batches, warm_up)):
            done += 1
            report(Progress("run", done, run.batches))
        # The stream has run dry, so that all work on the measured batches lies between the two looks.
        before, begin_s = emulator.processor_times(), time.time()
        for result in emulator.stream(batches):
            done += 1
            tokens += len(result.y)
            finished[result.batch] = time.time() - (emulator.now - result.finished_at)
            took.append(result.finished_at - result.submitted_at)
            report(Progress("run", done, run.batches, tokens, time.time() - begin_s, emulator.totals))
        end_s, after = time.time(), emulator.processor_times()
        samples, record = emulator.samples(), emulator.record()
    if not finished:
        raise RunError(f"the stream has no more than {done} batches, which only warmed up; lower --warm-up")
    window = Window(begin_s, end_s, len(finished), spec.layers)
    figures = {
        "name": scenario.name,
        "cores": machine.cores(),
        "modules": scenario.cluster.modules,
        "warm_up": warm_up,
        "tokens": tokens,
        "every_s": every_s,
        **account(before, after, samples, window),
        "queues": queue_times(record, finished),
        "versions": machine.versions(),
    }
    return figures, speedscope(scenario.name, samples, window)
