"""Runs a scenario to see where the time of its batches goes: `rayemu profile`, see docs/profile.md."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rayemu import machine
from rayemu.emulator import Emulator
from rayemu.profiling.account import Window, account, stacks
from rayemu.profiling.queues import queue_times
from rayemu.profiling.speedscope import speedscope
from rayemu.report.progress import Progress
from rayemu.running.folder import RunError, claimed_folder
from rayemu.running.journal import Journal
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
) -> dict[str, Any]:
    """Run a scenario's batches, the first `warm_up` of them unmeasured; return all figures.

    The folder (default: runs/NAME-profile) gets scenario.yaml, events.jsonl, profile.json and
    profile.speedscope.json.
    Batches are handed out as the stream takes them, faults are left out, outputs are not compared. Raises
    RunError for the `memory` transport, which has no processes, for a stream that is too short, and as a run
    does.
    """
    if scenario.cluster.transport == "memory":
        raise RunError(
            "cluster.transport is memory: the simulator has no processes and its times are virtual, so there "
            "is nothing to profile; use --set cluster.transport=zmq (or ray)"
        )
    if scenario.run.batches <= warm_up:
        raise RunError(
            f"run.batches is {scenario.run.batches}, of which the first {warm_up} only warm up: nothing is "
            "left to measure; raise run.batches or lower --warm-up"
        )
    wanted = (out or Path("runs") / f"{scenario.name}-profile").expanduser()
    if (wanted / REPORT).exists() and not overwrite:
        raise RunError(
            f"the folder {wanted} holds a profile; choose another with --out DIR, or replace it with "
            "--overwrite"
        )
    changed = scenario.with_overrides(["run.check=none", "run.record=true"])
    refuse_too_large(changed)
    with claimed_folder(wanted, overwrite) as (folder, file):
        (folder / "scenario.yaml").write_text(scenario.to_yaml(), encoding="utf-8")
        for name in (REPORT, FLAMES, _part(REPORT)):
            (folder / name).unlink(missing_ok=True)  # what an earlier one left
        report = on_progress or (lambda progress: None)
        figures, flames, died = _measure(changed, Journal(file), report, warm_up)
        figures["left_out"] = left_out(scenario, died)
        figures["files"] = {"figures": str(folder / REPORT), "flames": str(folder / FLAMES)}
        (folder / FLAMES).write_text(json.dumps(flames), encoding="utf-8")
        part = folder / _part(REPORT)
        part.write_text(json.dumps(figures, indent=1, allow_nan=False), encoding="utf-8")
        part.replace(folder / REPORT)  # its presence says that the profile is complete
    return figures


def _part(name: str) -> str:
    """A file's name until it is complete."""
    return f"{name}.part"


def left_out(scenario: Scenario, died: Iterable[str] = ()) -> list[str]:
    """What of a scenario is not done while it is profiled; what is not counted of processes that died."""
    found = []
    if scenario.faults:
        found.append(f"{len(scenario.faults)} of its faults are left out")
    if scenario.arrivals.kind != "closed":
        found.append(f"batches come as they are taken, not by arrivals.kind {scenario.arrivals.kind}")
    found += [
        f"{process} died: what it used is not counted, and the start of its replacement is"
        for process in sorted(died)
    ]
    return found


def _measure(
    scenario: Scenario, journal: Journal, report: Callable[[Progress], None], warm_up: int
) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """All figures, the flame graph, and the modules that died."""
    run, spec = scenario.run, scenario.spec
    report(Progress("start", 0, run.batches))
    source = batches_of(scenario)()
    done = tokens = 0
    finished: dict[int, float] = {}  # of measured batches, Unix time
    died: set[str] = set()
    with Emulator(scenario, profile=True) as emulator:

        def note() -> None:
            """Keep what happened."""
            notices = journal.note(emulator.take_notices())
            died.update(f"module {n.facts['module']}" for n in notices if n.kind == "dead")

        for _ in emulator.stream(islice(_batches(source), warm_up)):
            done += 1
            note()
            report(Progress("run", done, run.batches, events=journal.take_new()))
        # The stream has run dry, so that all work on the measured batches lies between the two looks.
        metered, used, begin_s = emulator.meters(), emulator.processor_times(), time.time()
        journal.began = journal.clock()
        for result in emulator.stream(_batches(source)):
            done += 1
            tokens += len(result.y)
            finished[result.batch] = time.time() - (emulator.now - result.finished_at)
            note()
            wall_s, events = time.time() - begin_s, journal.take_new()
            report(Progress("run", done, run.batches, tokens, wall_s, emulator.totals, events))
        end_s = time.time()
        note()
        times = used, emulator.processor_times()
        meters, record = (metered, emulator.meters()), emulator.record()
    if not finished:
        raise RunError(f"the stream has no more than {done} batches, which only warmed up; lower --warm-up")
    window = Window(begin_s, end_s, len(finished), spec.layers)
    figures = {
        "name": scenario.name,
        "cores": machine.cores(),
        "modules": scenario.cluster.modules,
        "warm_up": warm_up,
        "tokens": tokens,
        **account(times, meters, window),
        "queues": queue_times(record, finished),
        "versions": machine.versions(),
    }
    return figures, speedscope(scenario.name, stacks(times, meters)), died


def _batches(source: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    while (x := _taken(source)) is not None:
        yield x


def _taken(source: Iterator[np.ndarray]) -> np.ndarray | None:
    """The next batch, if there is one: a function of its own, to be metered."""
    return next(source, None)
