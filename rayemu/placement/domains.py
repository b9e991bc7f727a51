"""Failure domains: the fewest copies that survive any k failures of modules or nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Domains:
    """`failures` + 1 copies of each expert, every one in another failure domain: with fewer, some are lost.

    A domain is a module or a `node`. Slots beyond these copies go to the heaviest ones, wherever.
    Experts with most copies, then heavy ones, go first, each copy to the domain with most room and there to
    the emptiest module.
    """

    failures: int = 1
    of: Literal["module", "node"] = "node"

    def __post_init__(self) -> None:
        if self.failures < 0:
            raise ValueError(f"failures: {self.failures!r} is not allowed; allowed: 0 or more")

    def place(self, problem: PlacementProblem) -> Placement:
        """Fill `problem.slots` of a layer. Raises ValueError where domains, slots or memory are too few."""
        domain: np.ndarray = problem.module_to_node if self.of == "node" else np.arange(problem.modules)
        needed, there = self.failures + 1, len(np.unique(domain))
        if needed > there:
            raise ValueError(
                f"failures: {self.failures} is not allowed; allowed: 0 to {there - 1}, with "
                f"{there} {self.of}s, one of which must be left"
            )

        def fill(layer: int, filling: Filling) -> None:
            used, loads = np.flatnonzero(problem.copies[layer]), problem.loads[layer]
            if problem.slots < needed * len(used):
                raise ValueError(
                    f"failures: {self.failures} takes {needed} copies of each expert, {needed * len(used)} "
                    f"slots of a layer, and there are {problem.slots}; set copies: {needed}, or more slots"
                )
            slots = filling.keep_level(needed * len(used), problem.slots)
            copies = np.zeros(problem.experts, np.int64)
            copies[used] = needed
            for _ in range(slots - int(copies.sum())):
                more = (copies > 0) & (copies < problem.modules)
                if more.any():
                    copies[np.where(more, loads / np.maximum(copies, 1), -1.0).argmax()] += 1
            share = loads / np.maximum(copies, 1)
            for expert in np.lexsort((-share, -copies))[: len(used)].tolist():
                for copy in range(copies[expert]):
                    _put(filling, expert, share[expert], domain, apart=copy < needed)

        return layer_by_layer(problem, fill)


def _put(filling: Filling, expert: int, load: float, domain: np.ndarray, apart: bool) -> None:
    """Give a copy to the domain [M] with most room, so that none is left over; `apart` from other copies."""
    room = np.bincount(domain, weights=filling.room)[domain]  # [M]
    free = filling.free(expert)
    if apart:
        free &= ~np.isin(domain, domain[filling.held[expert]])
    if free.any():
        filling.put(expert, load, np.where(free, -room, 1))
    elif apart:
        raise ValueError(
            f"memory leaves no room for a copy of expert {expert} in another failure domain: "
            "give the modules more memory, or survive fewer failures"
        )
