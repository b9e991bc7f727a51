"""What the project set out to reach, beside what was reached."""

from __future__ import annotations

from .compare import Result, processor_ratios, ratios
from .measure import pooled, summary
from .output import show_ratio, show_time
from .tables import OURS

# Size, against what, its title, on how many modules; speed relative to the other's that must be and that is
# aimed at, alone and in a stream.
SPEEDS = [
    ("large", "gemms", "the bare GEMMs", 8, (0.85, 0.95), (0.85, 0.95)),
    ("large", "torch", "the transformers block", 8, (0.8, 1.0), (0.8, 1.0)),
    ("small", "ray", "plain Ray", 8, (3.0, 8.0), (3.0, 8.0)),
    *(
        goal
        for size in ("fine", "deepseek")
        for goal in (
            (size, "processes", "the GEMMs by processes", 8, (0.6, 0.85), (0.7, 0.9)),
            (size, "torch", "the transformers block", 8, (1.0, None), (1.0, None)),
        )
    ),
]
FINE_GRAINED = ("fine", "deepseek")
OF_FEWEST = {32: 0.8}  # throughput relative to that on the fewest modules, at least
PROCESSOR = {8: (1.45, 1.15), 32: (1.7, 1.3)}  # processor time relative to the products', at most: must, aim
SERIAL_S = {"modules": 0.010, "coordinator": 0.020}  # of coordinator and driver per batch and layer, by place


def goal_lines(size: str, results: dict[str, Result], place: str) -> list[str]:
    """One line per goal of the size and result: what was reached, what must be, what is aimed at.

    `place` is where it was routed. A goal whose figures were not measured has no line.
    """
    speeds, lines = ratios(results), []
    ours = {n: r for n, r in results.items() if n in OURS or r.contender.kind in OURS}
    for goal_size, other, title, modules, alone, stream in SPEEDS:
        for name, result in ours.items():
            both = speeds[name].get(other)
            if goal_size != size or not both or both["latency"] is None or _modules(result) != modules:
                continue
            lines.append(
                f"{size}, {name}: {show_ratio(both['latency'])} times as fast as {title} one at a time "
                f"({_bounds(*alone)}), {show_ratio(both['stream'])} in a stream ({_bounds(*stream)})"
            )
    if size in FINE_GRAINED:
        for name, result in ours.items():
            lines += _fine_grained(size, name, result, results, place)
    return lines


def _fine_grained(size: str, name: str, result: Result, results: dict[str, Result], place: str) -> list[str]:
    lines, modules = [], _modules(result)
    fewest = ratios(results)[name].get("fewest")
    if fewest and fewest["stream"] is not None and modules in OF_FEWEST:
        lines.append(
            f"{size}, {name}: {show_ratio(fewest['stream'])} of the throughput on the fewest modules "
            f"(must {OF_FEWEST[modules]:g})"
        )
    used = processor_ratios(results)[name]
    if used["stream"] is not None and modules in PROCESSOR:
        lines.append(
            f"{size}, {name}: {show_ratio(used['stream'])} times the processor time of the GEMMs by "
            f"processes in a stream, {show_ratio(used['latency'])} one at a time "
            f"({_bounds(*PROCESSOR[modules])}, at most)"
        )
    serial = summary(pooled(result.processor.get("stream", {}).get("serial", []))).get("median_s")
    if serial is not None and place in SERIAL_S:
        lines.append(
            f"{size}, {name}: coordinator and driver use {show_time(serial)} of processor time per batch and "
            f"layer, routed at {place} (must {show_time(SERIAL_S[place])}, at most)"
        )
    return lines


def _modules(result: Result) -> int:
    return result.contender.modules or 8  # as many as every size has


def _bounds(must: float, aim: float | None) -> str:
    return f"must {must:g}" if aim is None else f"must {must:g}, aim {aim:g}"
