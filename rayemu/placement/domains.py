"""Failure domains: the fewest copies that survive any k failures of modules or nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer, level_sizes
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Domains:
    """`failures` + 1 copies of each expert, every one in another failure domain: with fewer, some are lost.

    A domain is a module or a `node`. Heavy copies go first, each to the domain with most room, and there to
    the emptiest module; domains are level. Slots beyond these then go to the heaviest ones, wherever.
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
            room = filling.room.copy()
            slots = min(problem.slots, int(room.sum()))
            copies = np.zeros(problem.experts, np.int64)
            copies[used] = needed
            for _ in range(slots - int(copies.sum())):
                more = (copies > 0) & (copies < problem.modules)
                if more.any():
                    copies[np.where(more, loads / np.maximum(copies, 1), -1.0).argmax()] += 1
            share = loads / np.maximum(copies, 1)
            order = used[np.argsort(-share[used], kind="stable")].tolist()
            filling.room = _sizes(needed, len(used), room, domain)
            for expert in order:
                for _ in range(needed):
                    filling.put(expert, share[expert], _fullness(filling, expert, domain))
            filling.room = room - filling.held.sum(axis=0)
            for expert in order:
                for _ in range(copies[expert] - needed):
                    if filling.free(expert).any():
                        filling.put(expert, share[expert])

        return layer_by_layer(problem, fill)


def _sizes(needed: int, experts: int, room: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Share `needed` copies of each expert out to modules [M], level by domain and then within it."""
    sizes = np.zeros_like(room)
    of = np.unique(domain, return_inverse=True)[1]
    most = np.minimum(np.bincount(of, weights=room), experts).astype(np.int64)
    for number, quota in enumerate(level_sizes(needed * experts, most).tolist()):
        sizes[of == number] = level_sizes(quota, room[of == number])
    return sizes


def _fullness(filling: Filling, expert: int, domain: np.ndarray) -> np.ndarray:
    """Rank the modules [M] for a copy: first those of the domain with most room that lacks the expert.

    Always taking of what is largest leaves no room over that only one domain has.
    """
    room = np.bincount(domain, weights=filling.room)[domain]  # [M]
    return np.where(np.isin(domain, domain[filling.held[expert]]), 1, -room)
