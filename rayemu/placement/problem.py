"""What a placement strategy is given: loads, machine, limits, and the plan that there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rayemu.placement.placement import Placement


@dataclass(frozen=True, eq=False)
class PlacementProblem:
    """Where to put the experts of L layers, E each, on M modules in N nodes.

    A strategy reads what it needs. `copies` is what the user asks for; a strategy that chooses the copies
    itself has `slots` to fill in each layer. Layers whose `copies` are all 0 are dense: no slot is theirs.
    """

    loads: np.ndarray  # [L, E] float64, rows of each expert in some window; all alike where none are known
    copies: np.ndarray  # [L, E] int64
    module_to_node: np.ndarray  # [M] int32
    slots: int  # of a layer
    expert_bytes: int = 0  # of one expert
    memory: np.ndarray | None = None  # [M] float64, bytes for experts of all layers; None: no limit
    coactivation: np.ndarray | None = None  # [L, E, E] tokens that chose both, symmetric, zero diagonal
    transitions: np.ndarray | None = None  # [L - 1, E, E] tokens that chose i in a layer and j in the next
    variances: np.ndarray | None = None  # [L, E] of an expert's share of its layer's rows, window by window
    present: Placement | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def layers(self) -> int:
        """Number of layers L, dense ones included."""
        return len(self.copies)

    @property
    def experts(self) -> int:
        """Number of experts E of a layer."""
        return self.copies.shape[1]

    @property
    def modules(self) -> int:
        """Number of modules M."""
        return len(self.module_to_node)

    @property
    def nodes(self) -> int:
        """Number of nodes N."""
        return int(self.module_to_node.max()) + 1

    @property
    def distances(self) -> np.ndarray:
        """Return the links between modules [M, M]: 0 to itself, 1 in a node, 2 across nodes."""
        far = 1 + (self.module_to_node[:, None] != self.module_to_node)
        np.fill_diagonal(far, 0)
        return far


def problem_of(
    copies: np.ndarray,
    modules: int,
    nodes: int = 1,
    loads: np.ndarray | None = None,
    slots: int | None = None,
    seed: int = 0,
) -> PlacementProblem:
    """Make a problem of `copies [L, E]` (or [E], for one layer), the modules dealt evenly to the nodes."""
    copies = np.atleast_2d(np.asarray(copies, np.int64))
    known = np.ones(copies.shape) if loads is None else np.asarray(loads, np.float64)
    return PlacementProblem(
        known,
        copies,
        (np.arange(modules) * nodes // modules).astype(np.int32),
        int(copies.sum(axis=1).max(initial=0)) if slots is None else slots,
        rng=np.random.default_rng(seed),
    )
