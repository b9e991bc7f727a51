"""The comparison: rounds in which every contender has its turn, so that noise hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from .contenders import Contender, Light, Subject
from .measure import Run, pooled, repeat, speed, summary
from .processor import Meter
from .torch_block import TorchUnavailable
from .workload import F32, Workload

SETTLE_S = 1.5  # after a cluster was stopped: its processes end and the processor calms down


@dataclass(frozen=True)
class Effort:
    """How much is measured in a turn: at least so many samples, for at least so long."""

    rounds: int
    light_samples: int
    light_s: float
    samples: int
    seconds: float
    stream_batches: int
    streams: int = 2  # streams per turn
    in_flight: int = 4

    def quick(self) -> Effort:
        """Just enough to see that it works."""
        return Effort(1, 1, 0.0, 2, 0.0, min(self.stream_batches, 8), 1, self.in_flight)


EFFORT = {
    "large": Effort(3, 3, 0.0, 4, 0.0, 16, 1),
    "small": Effort(5, 20, 0.2, 50, 1.0, 200),
    "fine": Effort(2, 3, 0.0, 5, 0.0, 40, 1),  # every module has been a home, and its memory was used
    "deepseek": Effort(2, 3, 0.0, 4, 0.0, 20, 1),
}


@dataclass
class Result:
    """What was measured of one contender."""

    contender: Contender
    detail: str = ""
    latency: list[Run] = field(default_factory=list)
    stream: list[Run] = field(default_factory=list)  # seconds per batch
    # processor seconds per batch, of "latency" and "stream", in "all" and by role; see `add_used`
    processor: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    unmeasured: int = 0  # windows of processor time without a figure, see `Meter`
    exact: bool | None = None  # None: it computes no outputs
    difference: float = 0.0
    unavailable: str = ""

    def check(self, workload: Workload, outputs: list[tuple[int, F32]]) -> None:
        """Compare outputs with the reference's."""
        exact, difference = workload.differences(outputs)
        if outputs:
            self.exact = exact and self.exact is not False
            self.difference = max(self.difference, difference)

    def add_used(self, what: str, position: float, used: dict[str, float] | None, batches: int) -> None:
        """Take processor seconds by role: "all" is their sum, "serial" coordinator and driver together."""
        if used is None:
            self.unmeasured += 1
            return
        sums = {**used, "all": sum(used.values())}
        if "coordinator" in used:
            sums["serial"] = used["coordinator"] + used["driver"]
        for name, seconds in sums.items():
            runs = self.processor.setdefault(what, {}).setdefault(name, [])
            runs.append(Run(position, (seconds / batches,)))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: summaries and every sample."""
        return {
            "title": self.contender.title,
            "detail": self.detail,
            "unavailable": self.unavailable or None,
            "exact": self.exact,
            "largest_difference": self.difference,
            "latency": {**summary(pooled(self.latency)), "runs": _runs(self.latency)},
            "stream_per_batch": {**summary(pooled(self.stream)), "runs": _runs(self.stream)},
            "modules": self.contender.modules or None,
            "processor_per_batch": {
                what: {name: {**summary(pooled(runs)), "runs": _runs(runs)} for name, runs in roles.items()}
                for what, roles in self.processor.items()
            }
            or None,
            "processor_windows_without_figure": self.unmeasured,
        }


def compare(
    workload: Workload, contenders: list[Contender], effort: Effort, say: Callable[[str], None]
) -> dict[str, Result]:
    """Measure the contenders on a workload.

    Before and after every turn of a cluster the light contenders have theirs, with no cluster running; so the
    bounds are measured undisturbed, and seconds away from what is compared with them.
    """
    results = {c.name: Result(c) for c in contenders}
    light: dict[str, Light] = {}
    heavy = [c for c in contenders if not c.light]
    position = 0
    with ExitStack() as stack:
        for contender in (c for c in contenders if c.light):
            try:
                light[contender.name] = stack.enter_context(contender.open(workload))
            except TorchUnavailable as error:
                results[contender.name].unavailable = str(error)
                say(f"{contender.title}: {error}")
        for number in range(effort.rounds):
            turns = heavy[number % len(heavy) :] + heavy[: number % len(heavy)] if heavy else []
            for contender in turns:
                _measure_light(workload, light, results, effort, 2 * position)
                say(f"{workload.size.name}: round {number + 1} of {effort.rounds}, {contender.title}")
                with contender.open(workload) as subject:
                    result = results[contender.name]
                    measure(workload, subject, result, effort, 2 * position + 1, _pids(light))
                time.sleep(SETTLE_S)
                position += 1
            if not heavy:
                _measure_light(workload, light, results, effort, 2 * number)
        if heavy:
            _measure_light(workload, light, results, effort, 2 * position)
    return results


def measure(
    workload: Workload,
    subject: Subject,
    result: Result,
    effort: Effort,
    position: float,
    apart: Collection[int] = (),
) -> None:
    """One turn of a cluster: batches one at a time, then streams. Outputs are checked outside the timing.

    Processes in `apart` are not the cluster's.
    """
    result.detail = subject.detail
    meter = Meter(apart)
    outputs: list[tuple[int, F32]] = []

    def step(index: int) -> None:
        outputs.append((index, subject.step(index)))

    repeat(step, 2 if effort.samples < 10 else 10, 0.0)  # warm-up; streams touch memory of their own
    result.check(workload, outputs)
    for _ in subject.stream(range(effort.stream_batches), effort.in_flight):
        pass
    outputs.clear()
    with meter.window():
        taken = repeat(step, effort.samples, effort.seconds)
    result.add_used("latency", position, meter.used, len(taken))
    result.check(workload, outputs)
    result.latency.append(Run(position, tuple(taken)))
    per_batch = []
    for _ in range(effort.streams):
        with meter.window():
            began = time.perf_counter()
            ys = list(subject.stream(range(effort.stream_batches), effort.in_flight))
            per_batch.append((time.perf_counter() - began) / effort.stream_batches)
        result.add_used("stream", position, meter.used, effort.stream_batches)
        result.check(workload, list(enumerate(ys)))
    result.stream.append(Run(position, tuple(per_batch)))


def _measure_light(
    workload: Workload, light: dict[str, Light], results: dict[str, Result], effort: Effort, position: float
) -> None:
    """One turn of all light contenders, sample by sample in turn."""
    if not light:
        return
    taken: dict[str, list[float]] = {name: [] for name in light}
    used: dict[str, list[float]] = {name: [] for name in light}
    for subject in light.values():
        subject.timed(0)
    began, index = time.perf_counter(), 0
    while index < effort.light_samples or time.perf_counter() - began < effort.light_s * len(light):
        for name, subject in light.items():
            seconds, processor_s, y = subject.timed(index)
            taken[name].append(seconds)
            used[name].append(processor_s)
            if y is not None:
                results[name].check(workload, [(index, y)])
        index += 1
    for name, samples in taken.items():
        results[name].detail = light[name].detail
        results[name].latency.append(Run(position, tuple(samples)))
        runs = results[name].processor.setdefault("latency", {}).setdefault("all", [])
        runs.append(Run(position, tuple(used[name])))


def _pids(light: dict[str, Light]) -> set[int]:
    """The processes of the light contenders, which wait while a cluster is measured."""
    return {pid for subject in light.values() for pid in subject.pids}


def ratios(results: dict[str, Result]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Speed of each contender relative to the bound and the baselines: one at a time, and in a stream.

    A stream is compared with the other's stream where it has one, else with its single steps; a cluster with
    the baseline on as many modules where that was measured, and, as "fewest", with itself on the fewest.
    """
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, result in results.items():
        table[name] = {}
        for other in ("gemms", "processes", "reference", "ray", "ray-one-home", "torch"):
            against = results.get(f"{other}-{result.contender.modules}", results.get(other))
            if against is None or against is result:
                continue
            table[name][other] = {
                "latency": speed(result.latency, against.latency),
                "stream": speed(result.stream, against.stream or against.latency),
            }
        fewest = _on_fewest(result, results)
        if fewest is not result:
            table[name]["fewest"] = {
                "latency": speed(result.latency, fewest.latency),
                "stream": speed(result.stream, fewest.stream),
            }
    return table


def _on_fewest(result: Result, results: dict[str, Result]) -> Result:
    """The same contender on the fewest modules."""
    alike = [r for r in results.values() if r.contender.kind == result.contender.kind]
    return min(alike, key=lambda r: r.contender.modules) if result.contender.modules else result


def processor_ratios(results: dict[str, Result]) -> dict[str, dict[str, float | None]]:
    """Processor time of a batch relative to that of the products by processes: one at a time, in a stream."""
    against = results["processes"].processor.get("latency", {}) if "processes" in results else {}
    table: dict[str, dict[str, float | None]] = {}
    for name, result in results.items():
        table[name] = {}
        for what in ("latency", "stream"):
            ours = result.processor.get(what, {}).get("all", [])
            relative = speed(ours, against.get("all", []))
            table[name][what] = None if relative is None else 1.0 / relative
    return table


def _runs(runs: list[Run]) -> list[dict[str, Any]]:
    return [{"position": r.position, "seconds": [round(s, 7) for s in r.seconds]} for r in runs]
