"""How the time of a step grows with the number of modules, the model staying the same."""

from __future__ import annotations

from collections.abc import Callable

from .compare import Effort, Result, measure
from .contenders import entrants
from .measure import speed
from .workload import Workload

MODULES = (2, 4, 8, 16)


def scaling(
    workload: Workload, kinds: list[str], effort: Effort, say: Callable[[str], None]
) -> dict[str, dict[int, Result]]:
    """Measure each kind (hierarchical, flat, ray) on 2, 4, 8 and 16 modules, in rounds.

    The emulator's experts have as many copies as `Size.scenario` gives them.
    """
    results: dict[str, dict[int, Result]] = {kind: {} for kind in kinds}
    position = 0
    for number in range(effort.rounds):
        order = MODULES if number % 2 == 0 else MODULES[::-1]
        for modules in order:
            for kind in kinds:
                (contender,) = entrants([kind], workload, [modules])
                say(f"scaling: round {number + 1} of {effort.rounds}, {contender.title}")
                result = results[kind].setdefault(modules, Result(contender))
                with contender.open(workload) as subject:
                    measure(workload, subject, result, effort, position)
                position += 1
    return {kind: dict(sorted(by_modules.items())) for kind, by_modules in results.items()}


def growth(results: dict[int, Result]) -> dict[int, dict[str, float | None]]:
    """Time of a step relative to that on the fewest modules."""
    if not results:
        return {}
    first = results[min(results)]
    return {
        modules: {
            "latency": speed(first.latency, result.latency),
            "stream": speed(first.stream, result.stream),
        }
        for modules, result in results.items()
    }
