"""Runs a scenario from its first batch to its summary, and keeps what happened in a run folder.

    summary = run_scenario(Scenario.load("laptop"))      # runs/laptop/{scenario.yaml, events.jsonl, ...}

The outputs are kept in memory until the cluster is down, and only then compared with the reference, so that
the comparison does not take cores from what is measured.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rayemu import machine
from rayemu.drivers.decided import RUN_CHOICES, save_choices, summed_up
from rayemu.drivers.record import RECORD, save_columns
from rayemu.emulator import Emulator
from rayemu.hardware import Hardware
from rayemu.model.model import routers_of
from rayemu.numerics import ByElement, blas_threads, denormals_notice, way
from rayemu.protocol.client import BatchResult
from rayemu.protocol.decisions import DECISIONS
from rayemu.protocol.messages import Notice
from rayemu.report.emulated import add_emulated
from rayemu.report.progress import Progress
from rayemu.report.summary import account_tokens, account_traffic, batch_times, latencies, slow_batches
from rayemu.report.trace import save_trace
from rayemu.report.trace import trace as trace_of
from rayemu.running.faults import Injected, due, fault_entry, parameters
from rayemu.running.folder import RunError, claimed_folder
from rayemu.running.journal import Journal, read_journal
from rayemu.running.priced import price_run, refuse_what_cannot_be_priced
from rayemu.running.rebalances import decisions, rebalances
from rayemu.running.slow import slow_routers
from rayemu.scenario import FAULTS, Scenario
from rayemu.streams.aim import aim
from rayemu.traces.arrays import RUN_LOADS, save_loads
from rayemu.units import format_bytes

RANDOM_MODULES = 3  # what a seeded generator is for: placement has 1, message faults 2
COUNTS_S = 3.0  # for the last totals after a run
LOOK_EVERY_S = 0.05  # while no batch has arrived: for faults that are due, and what was reported
NOTICE_WITHIN_S = 1.0  # how long a finished run waits for the detection of its last fault

Report = Callable[[Progress], None]


@dataclass
class Measured:
    """What came out of a run, before it is judged. Times are on the run's clock."""

    results: list[BatchResult] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)  # of each batch as it was handed out
    meant: list[float] = field(default_factory=list)  # when each was meant to be; none in a closed loop
    injected: list[Injected] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    record: np.ndarray = field(default_factory=lambda: np.zeros(0, RECORD))
    began: float = 0.0
    start_wall_s: float = 0.0  # from nothing to a cluster that waits for work
    wall_s: float = 0.0  # from when the first batch could be handed out to the last result
    duplicate_results: int = 0
    reissued_slices: int = 0
    routed: dict[str, float] = field(default_factory=dict)  # what routers count, see `Context`


def run_scenario(
    scenario: Scenario,
    out: Path | None = None,
    on_progress: Report | None = None,
    trace: bool = False,
    overwrite: bool = False,
    hardware: Sequence[Hardware] = (),
) -> dict[str, Any]:
    """Run a scenario and return its summary, which is also in the run folder (default: runs/NAME).

    The folder gets scenario.yaml (as resolved), events.jsonl, record.npz, summary.json, and trace.json if
    `trace`. With `run.check: exact` every output is kept (tokens x width x 4 bytes) and compared bit by bit.
    With `hardware` the run is also priced on it: `summary["priced"]`, and tracks of the trace.
    `summary["passed"]` says whether every check held. Raises PricingError before the run for hardware that
    cannot hold it, RunError for a folder that holds a run already
    (unless `overwrite`) and for what does not fit the memory, and whatever the emulator raises.
    """
    report = on_progress or (lambda progress: None)
    refuse_too_large(scenario)
    refuse_what_cannot_be_priced(scenario, hardware)
    with claimed_folder(out or Path("runs") / scenario.name, overwrite) as (folder, file):
        (folder / "scenario.yaml").write_text(scenario.to_yaml(), encoding="utf-8")
        journal = Journal(file)
        try:
            summary = _run(scenario, folder, journal, report, trace, hardware)
        except KeyboardInterrupt:
            journal.write("interrupted")
            raise
        except Exception as error:
            journal.write("ended", error=f"{type(error).__name__}: {error}")
            raise
        path = folder / "summary.json"
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in summary.items())
        path.with_suffix(".part").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        path.with_suffix(".part").replace(path)  # its presence says that the run is complete
    return summary


def refuse_too_large(scenario: Scenario) -> None:
    """Raise RunError when the run needs more memory than this machine has left: how much, and the remedy.

    Modules count where they run on this machine. An exact check needs the weights once more, and the outputs.
    """
    free = machine.available_bytes()
    cluster, run, spec = scenario.cluster, scenario.run, scenario.spec
    simulated = cluster.transport == "memory"
    elsewhere = simulated or (cluster.address or os.environ.get("RAY_ADDRESS", "local")) != "local"
    parts = {"the modules": 0 if elsewhere else int(scenario.module_bytes().sum())}
    if simulated or run.check == "exact":
        parts["the reference's weights"] = spec.model_bytes()
    if run.check == "exact":
        parts["the outputs to compare"] = 4 * run.batches * run.batch_tokens * spec.d_model
    routed = routers_of(spec)[spec.dense_layers :]
    if choosing := max((router.costs(run.batch_tokens)[1] for router in routed), default=0):
        parts["the choice of experts"] = choosing
    if free is not None and sum(parts.values()) > free:
        listed = ", ".join(f"{format_bytes(size)} for {what}" for what, size in parts.items() if size)
        raise RunError(
            f"the run needs {format_bytes(sum(parts.values()))} of memory ({listed}), and "
            f"{format_bytes(free)} are free; raise model.scale, lower model.layers, placement.copies or "
            "run.batches, or set run.check to none"
        )


def _run(
    scenario: Scenario,
    folder: Path,
    journal: Journal,
    report: Report,
    trace: bool,
    hardware: Sequence[Hardware],
) -> dict[str, Any]:
    if notice := denormals_notice():
        journal.write("fallback", what=notice)
    if "OPENBLAS_CORETYPE" in os.environ:
        kernels = os.environ["OPENBLAS_CORETYPE"]
        journal.write("fallback", what=f"OPENBLAS_CORETYPE={kernels} chose the BLAS kernels")
    if isinstance(way(), ByElement):
        journal.write("fallback", what="no product of this BLAS is exact: they are made element by element")
    if slow := slow_routers(scenario):
        journal.write("slow_routers", what=slow)
    report(Progress("start", 0, scenario.run.batches, events=journal.take_new()))
    inputs = batches_of(scenario)
    with Emulator(scenario) as emulator:
        measured = _measure(emulator, inputs(), journal, report)
    for result, took, median in slow_batches(measured.results):
        journal.write("slow_batch", result.finished_at, batch=result.batch, took_s=took, median_s=median)
    exact, check_wall_s = None, 0.0
    if scenario.run.check == "exact":
        start = time.perf_counter()
        exact = _compare(emulator, measured, inputs(), journal, report)
        check_wall_s = time.perf_counter() - start
    summary = _summary(scenario, emulator, measured, journal, exact, check_wall_s)
    emulated = price_run(scenario, measured.record, summary, hardware)
    journal.write("finished", passed=summary["passed"])
    save_columns(folder / "record.npz", measured.record)
    save_choices(folder / RUN_CHOICES, measured.results)
    save_loads(folder / RUN_LOADS, {r.batch: r.expert_tokens for r in measured.results if r.failure is None})
    if trace:
        nodes = np.repeat(np.arange(scenario.cluster.nodes), scenario.cluster.modules_per_node)
        codecs = [codec.name for codec in emulator.config.codecs]
        events = read_journal(folder / "events.jsonl")
        dense = scenario.spec.dense_layers
        content = trace_of(measured.record, nodes.tolist(), codecs, events, measured.began, dense)
        for one in emulated:
            add_emulated(content, *one, dense)
        save_trace(folder / "trace.json", content)
    return summary


def _measure(emulator: Emulator, inputs: Iterable[np.ndarray], journal: Journal, report: Report) -> Measured:
    """Stream all batches through a running emulator, with the faults of its plan."""
    run = emulator.scenario.run
    measured = Measured(start_wall_s=journal.clock() - journal.opened)
    if emulator.scenario.cluster.transport == "memory":
        journal.clock, journal.virtual = (lambda: emulator.now), True
    measured.notices += journal.note(emulator.take_notices())
    journal.write(
        "started", start_wall_s=round(measured.start_wall_s, 3), transport=emulator.scenario.cluster.transport
    )
    plan = _plan(emulator.scenario)
    began, tokens = 0.0, 0

    def tell(phase: str) -> None:
        wall_s = time.perf_counter() - began if measured.digests else 0.0
        events = journal.take_new()
        report(Progress(phase, len(measured.results), run.batches, tokens, wall_s, emulator.totals, events))

    def begin_due(batch: int) -> None:
        """Begin the faults that are due when `batch` is next; message faults act on every module at once."""
        for injected in [i for i in plan if _due(i, batch, journal.clock() - measured.began)]:
            plan.remove(injected)
            fault = injected.fault
            measured.injected.append(replace(injected, began=journal.clock()))
            emulator.inject(fault, injected.module)
            facts = {"fault": fault.kind, "module": injected.module, **parameters(fault)}
            journal.write("fault", measured.injected[-1].began, **facts)

    def wait_until(meant: float) -> None:
        """Let time pass until a batch arrives. What finishes meanwhile comes out after it was handed out."""
        while (left := meant - journal.clock()) > 0:
            emulator.wait(min(left, LOOK_EVERY_S))
            begin_due(-1)
            measured.notices += journal.note(emulator.take_notices())
            tell("run")

    def batches() -> Iterator[np.ndarray]:
        nonlocal began
        times = emulator.scenario.arrivals.build().times(run.seed)
        arrivals = itertools.repeat(None) if times is None else times
        for number, (x, arrival) in enumerate(zip(inputs, arrivals, strict=False)):
            if number == 0:
                measured.began = journal.began = journal.clock()
                began = time.perf_counter()
            measured.digests.append(xxhash.xxh3_64_intdigest(x.data))
            if arrival is not None:
                measured.meant.append(measured.began + arrival)
                wait_until(measured.meant[-1])
            begin_due(number)
            yield x

    tell("run")
    for result in emulator.stream(batches(), yield_failed=True):
        measured.results.append(result)
        tokens += len(result.delivered) if result.failure is None else 0
        if run.check == "none":
            result.y = result.y[:0]  # nobody will look at it
        begin_due(-1)
        measured.notices += journal.note(emulator.take_notices())
        if result.failure is not None:
            failure = result.failure
            journal.write("failed", batch=result.batch, layer=failure.layer, expert=failure.expert)
        tell("run")
    measured.wall_s = time.perf_counter() - began
    _await_detection(emulator, measured, journal)
    _await_counts(emulator, measured)
    measured.routed = dict(emulator.totals.get("routing", {}))
    for injected in plan:
        measured.injected.append(injected)
        journal.write("fault_never_due", fault=injected.fault.kind, due=due(injected.fault))
    measured.record = emulator.record()
    if notices := emulator.take_notices():  # of a record that ends early
        measured.notices += journal.note(notices)
        tell("run")
    measured.duplicate_results = emulator.duplicate_results
    measured.reissued_slices = int(emulator.totals.get("reissued", 0))
    return measured


def batches_of(scenario: Scenario) -> Callable[[], Iterator[np.ndarray]]:
    """What gives the batches of a run x [T, D]; the same ones at each call. RunError where it cannot aim."""
    run, spec = scenario.run, scenario.spec
    try:
        stream = aim(scenario.stream.build(), spec, scenario.placed(), run.seed)
    except ValueError as error:
        raise RunError(str(error)) from None
    return lambda: islice(stream.batches(run.batch_tokens, spec.d_model, run.seed), run.batches)


def _plan(scenario: Scenario) -> list[Injected]:
    """The faults of a scenario, with a module drawn for each "random"."""
    rng = np.random.default_rng([scenario.run.seed, RANDOM_MODULES])
    drawn = rng.integers(scenario.cluster.modules, size=len(scenario.faults)).tolist()
    return [
        Injected(fault, module if fault.module == "random" else fault.module)  # type: ignore[arg-type]
        for fault, module in zip(scenario.faults, drawn, strict=True)
    ]


def _due(injected: Injected, batch: int, since_start: float) -> bool:
    at = injected.fault.at
    return at.batch == batch if at.batch is not None else at.time is not None and since_start >= at.time


def _await_detection(emulator: Emulator, measured: Measured, journal: Journal) -> None:
    """A module that was hit near the end may not have been missed yet: give it a moment."""
    hit = {i.module: i.began for i in measured.injected if FAULTS[i.fault.kind].strikes()}
    deadline = time.monotonic() + NOTICE_WITHIN_S
    while not journal.virtual and time.monotonic() < deadline:
        seen = [n for n in measured.notices if n.kind in ("suspected", "dead")]
        if all(any(n.facts["module"] == m and n.wall_s >= (t or 0.0) for n in seen) for m, t in hit.items()):
            return
        time.sleep(0.01)
        emulator.poll()
        measured.notices += journal.note(emulator.take_notices())


def _await_counts(emulator: Emulator, measured: Measured) -> None:
    """Wait for the coordinator's last word on what happened when batches were routed whole, for a while."""
    until = time.monotonic() + COUNTS_S
    decided = (r.decisions for r in measured.results if r.decisions is not None)
    made = sum(len({part.layer for part, _ in decisions}) for decisions in decided)
    while made and time.monotonic() < until:
        emulator.wait(0.05)
        totals = emulator.totals
        if totals.get("open_batches") == 0 and totals["routing"].get(DECISIONS, 0) >= made:
            return  # these are not those of before the run


def _compare(
    emulator: Emulator,
    measured: Measured,
    inputs: Iterable[np.ndarray],
    journal: Journal,
    report: Report,
) -> bool | None:
    """Whether every finished batch equals the reference bit by bit; None when none was finished.

    Batches are compared side by side, one core each: on a busy machine, BLAS threads that wait for each other
    are several times slower.
    """
    compared, equal, done = 0, 0, 0
    check = emulator.new_check()
    cores = machine.cores()
    emulator.model  # noqa: B018 - made once, before threads ask for it
    items = zip(measured.results, measured.digests, inputs, strict=True)
    with blas_threads(1), ThreadPoolExecutor(cores) as pool:
        while group := list(islice(items, cores)):
            found = pool.map(partial(_mismatch, emulator), group)
            for (result, _, _), (facts, told, counts) in zip(group, found, strict=True):
                for name, amount in counts.items():
                    measured.routed[name] = measured.routed.get(name, 0.0) + amount
                if result.decisions is not None and told:
                    check.take(result.batch, result.decisions, told)
                if result.failure is None:
                    compared += 1
                    equal += not facts
                if facts:
                    journal.write("mismatch", batch=result.batch, **facts)
            done += len(group)
            report(Progress("check", done, len(measured.results), events=journal.take_new()))
    for batch, layer in check.wrong:
        journal.write("mismatch", batch=batch, layer=layer, why="the choices are not the router's")
    if check.checked or check.unchecked:
        journal.write("choices_checked", checked=check.checked, unchecked=check.unchecked)
    return equal == compared and not check.wrong if compared else None


def _mismatch(
    emulator: Emulator, item: tuple[BatchResult, int, np.ndarray]
) -> tuple[dict[str, Any], dict[int, np.ndarray], dict[str, float]]:
    """How a result differs from the reference; empty if it does not, or has failed.

    And by layer what its rows told a router that chose for the whole batch, and what the others counted.
    """
    result, digest, x = item
    if result.failure is not None:
        return {}, {}, {}
    if xxhash.xxh3_64_intdigest(x.data) != digest:
        return {"why": "the stream gave other tokens when it was read again"}, {}, {}
    y, told, counts = emulator.replayed(x, result)  # [T, D]
    other = (y.view(np.uint32) != result.y.view(np.uint32)).any(axis=1)  # [T]
    if not other.any():
        return {}, told, counts
    facts = {
        "why": "the output is not the reference's",
        "tokens": int(other.sum()),
        "first_token": int(other.argmax()),
        "largest_difference": float(np.abs(y[other] - result.y[other]).max()),
    }
    return facts, told, counts


def _rebalances(scenario: Scenario, measured: Measured, clock: str) -> dict[str, Any]:
    """What was decided, and the moves, of a run that could move experts."""
    section, spec = scenario.rebalance, scenario.spec
    if section is None:
        return {}
    what = measured.notices, measured.results, measured.record
    size = spec.layers, scenario.cluster.modules
    moves = rebalances(*what, *size, section.window, clock)
    return {"rebalance_decisions": decisions(measured.notices), "rebalances": moves}


def _summary(
    scenario: Scenario,
    emulator: Emulator,
    measured: Measured,
    journal: Journal,
    exact: bool | None,
    check_wall_s: float,
) -> dict[str, Any]:
    spec, clock = scenario.spec, "virtual" if journal.virtual else "wall"
    tokens = account_tokens(measured.results, spec.layers, spec.experts)
    codecs = [codec.name for codec in emulator.config.codecs]
    checks = {
        "exact": exact,
        "nothing_lost": tokens["tokens_lost"] == 0,
        "nothing_duplicated": tokens["tokens_duplicated"] == 0,
    }
    faults = [
        fault_entry(i, measured.notices, measured.results, measured.began, clock) for i in measured.injected
    ]
    return {
        "name": scenario.name,
        "passed": all(held is not False for held in checks.values()),
        "check": scenario.run.check,
        "checks": checks,
        "exact": exact,
        **tokens,
        "duplicate_results_refused": measured.duplicate_results,
        "reissued_slices": measured.reissued_slices,
        "wall_s": measured.wall_s,
        "tokens_per_wall_s": tokens["tokens_out"] / measured.wall_s if measured.wall_s else None,
        "start_wall_s": measured.start_wall_s,
        "check_wall_s": check_wall_s,
        **batch_times(measured.results, clock),
        **latencies(measured.results, measured.meant, clock),
        "record_cut": next((n.facts["what"] for n in measured.notices if n.kind == "record_cut"), None),
        "ingest_copied_bytes": emulator.totals.get("ingest_copied_bytes"),
        **account_traffic(measured.record, scenario.cluster.modules, codecs),
        "faults": faults,
        **summed_up(measured.results, measured.routed, spec.moe_layers),
        **_rebalances(scenario, measured, clock),
        "seed": scenario.run.seed,
        "versions": machine.versions(),
    }
