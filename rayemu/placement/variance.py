"""Copies from frequency and variance, by the rule of thumb of the texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.filling import Filling, heaviest_first, layer_by_layer, trimmed
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Variance:
    """Copies by how frequent an expert is and how much that varies, up to `most`.

    They are int(frequency * modules * scale) + int(variance * spread), at least one. `frequency` is the share
    of its layer's rows and `variance` that of this share from window to window. As it stands it is the texts'
    rule (modules / 4, variance * 10, at most 4). Copies beyond `slots` are taken back where that costs least;
    the heaviest copy goes to the emptiest module.
    """

    scale: float = 0.25
    spread: float = 10.0
    most: int = 4

    def __post_init__(self) -> None:
        for name in ("scale", "spread"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not allowed; allowed: 0 to 1e6")
        if self.most < 1:
            raise ValueError(f"most: {self.most!r} is not allowed; allowed: 1 or more copies")

    def place(self, problem: PlacementProblem) -> Placement:
        """Fill up to `problem.slots` of a layer; raises ValueError without `problem.variances`."""
        if problem.variances is None:
            raise ValueError(
                "variance placement needs how the experts' shares vary (variances), and that is not known: "
                "give a trace of several windows, or take thresholds, which needs loads only"
            )
        variances = problem.variances

        def fill(layer: int, filling: Filling) -> None:
            once, loads = problem.copies[layer] > 0, problem.loads[layer]
            slots = filling.keep_level(int(once.sum()), problem.slots)
            wanted = self.copies(loads, variances[layer], problem.modules)
            copies = np.where(once, np.minimum(wanted, (filling.room > 0).sum()), 0)
            heaviest_first(filling, trimmed(copies, loads, slots), loads)

        return layer_by_layer(problem, fill)

    def copies(self, loads: np.ndarray, variances: np.ndarray, modules: int) -> np.ndarray:
        """Return the copies [E] of experts with loads [E] whose shares have `variances [E]`."""
        share = loads / max(loads.sum(), 1e-300)
        wanted = (share * modules * self.scale).astype(np.int64) + (variances * self.spread).astype(np.int64)
        return np.clip(wanted, 1, min(self.most, modules))
