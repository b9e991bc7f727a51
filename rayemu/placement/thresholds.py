"""Copies from thresholds: hot experts are multiplied, cold ones kept together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.filling import Filling, heaviest_first, layer_by_layer, trimmed
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Thresholds:
    """The texts' two rules for hot experts, whichever gives more copies, and one for cold ones.

    An expert with more than `share` of its layer's rows gets int(its share / share) copies more; one with
    more than `over` times the mean load gets ceil(load / mean). One with less than `cold` times the mean is
    consolidated: kept on as few modules as hold such experts without becoming the fullest. (The texts call
    an expert cold below share / 3, which is 0.4 of the mean for 8 experts and nearly every one of 64.)
    Copies beyond `slots` are taken back where that costs least.
    """

    share: float = 0.15
    over: float = 1.5
    cold: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"share: {self.share!r} is not allowed; allowed: above 0 to 1, of a layer's rows"
            )
        if not 1 <= self.over <= 1e6:
            raise ValueError(f"over: {self.over!r} is not allowed; allowed: 1 to 1e6 times the mean load")
        if not 0 <= self.cold <= 1:
            raise ValueError(f"cold: {self.cold!r} is not allowed; allowed: 0 to 1 times the mean load")

    def place(self, problem: PlacementProblem) -> Placement:
        """Fill up to `problem.slots` of a layer. Raises ValueError where memory holds too few."""

        def fill(layer: int, filling: Filling) -> None:
            once, loads = problem.copies[layer] > 0, problem.loads[layer]
            slots = filling.keep_level(int(once.sum()), problem.slots)
            wanted = np.minimum(self.copies(loads), int((filling.room > 0).sum()))
            copies = trimmed(np.where(once, wanted, 0), loads, slots)
            cold = once & (loads < self.cold * loads[once].mean())
            heaviest_first(filling, np.where(cold, 0, copies), loads)
            _consolidate(filling, np.flatnonzero(cold), loads)

        return layer_by_layer(problem, fill)

    def copies(self, loads: np.ndarray) -> np.ndarray:
        """Return the copies [E] that the rules ask for at loads [E]; at least one of each."""
        total, mean = max(loads.sum(), 1e-300), max(loads.mean(), 1e-300)
        by_share = 1 + np.where(loads > self.share * total, loads / (self.share * total), 0).astype(np.int64)
        by_mean = np.where(loads > self.over * mean, np.ceil(loads / mean), 1).astype(np.int64)
        return np.maximum(by_share, by_mean)


def _consolidate(filling: Filling, experts: np.ndarray, loads: np.ndarray) -> None:
    """Put the experts on as few modules as stay below the fullest one's load, or the mean load."""
    limit = max(filling.load.max(), (filling.load.sum() + loads[experts].sum()) / len(filling.load))
    taken = np.zeros(len(filling.load), bool)  # [M] modules that have cold experts already
    for expert in experts[np.argsort(-loads[experts], kind="stable")].tolist():
        fits = taken & (filling.load + loads[expert] <= limit)
        taken[filling.put(expert, loads[expert], ~fits)] = True
