"""Problems and placements as the tables that `rebalance_experts` and its kin work on.

Every module has the same number of slots there, so some slots may be blank: their experts have the numbers
from E on, no load, and one slot each. Layers are those with experts, modules go by node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.placement import Placement, from_columns
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True, eq=False)
class Table:
    """Loads of experts and blanks [L', E + blanks], slots per module, nodes that groups are kept on."""

    weight: np.ndarray
    per_module: int
    nodes: int
    experts: int
    layers: np.ndarray  # [L'] layers that have experts
    modules: np.ndarray  # [M] modules by node

    @classmethod
    def of(cls, problem: PlacementProblem, slots: int, groups: int, at_least: int = 0) -> Table:
        """Make the table of a problem with `slots` in a layer, `at_least` so many on each module.

        No more slots are made than every module needs to hold every expert. Raises ValueError, with the text
        beginning with "groups", where groups cannot be kept whole on nodes.
        """
        layers = np.flatnonzero(problem.copies.any(1))
        experts, modules = problem.experts, problem.modules
        slots = min(slots, experts * modules)
        per_module = max(-(-slots // modules), at_least) if len(layers) else 0
        blanks = max(per_module * modules - slots, 0)
        if groups > 1:
            _check_groups(problem, groups, slots if blanks else 0)
        weight = np.pad(problem.loads[layers], ((0, 0), (0, blanks)))
        by_node = np.argsort(problem.module_to_node, kind="stable")
        return cls(weight, per_module, problem.nodes if groups > 1 else 1, experts, layers, by_node)

    def placement(self, plan: np.ndarray) -> Placement:
        """The slots of a plan [L', R] that are not blank."""
        device = np.arange(self.per_module * len(self.modules)) // max(self.per_module, 1)
        layer = np.repeat(self.layers, len(device))
        module = np.tile(self.modules[device], len(self.layers))
        expert = plan.ravel()
        real = expert < self.experts
        rows = np.unique(np.stack([layer[real], expert[real], module[real]]), axis=1)  # no second copies
        return from_columns(*rows.astype(np.int32))

    def rows(self, present: Placement) -> np.ndarray:
        """A placement as a plan [L', R]; slots that it lacks go to the heaviest copies, then to blanks."""
        plan = np.full((len(self.layers), len(self.modules), self.per_module), -1)
        real = self.weight.shape[1] - self.experts
        for row, layer in zip(plan, self.layers, strict=True):
            here = present.layer == layer
            for device, module in enumerate(self.modules):
                held = present.expert[here & (present.module == module)]
                row[device, : len(held)] = held
        for row, weight in zip(plan, self.weight[:, : self.experts], strict=True):
            while (row < 0).sum() > real and _add_copy(row, weight):
                pass
            empty = np.flatnonzero(row < 0)
            row.ravel()[empty] = np.resize(np.arange(self.experts, self.weight.shape[1]), len(empty))
        return plan.reshape(len(plan), -1)


def _add_copy(row: np.ndarray, weight: np.ndarray) -> bool:
    """Give an empty slot of `row [M, K]` to what has the heaviest copies; False where none fits.

    It is one of the emptiest module with room that lacks the expert.
    """
    copies = np.bincount(row[row >= 0], minlength=len(weight))
    share = np.append(weight / np.maximum(copies, 1), 0.0)
    room = (row < 0).any(1) & ~(row == np.arange(len(weight))[:, None, None]).any(2)  # [E, M]
    wanted = np.where(room.any(1), np.where(copies == 0, np.inf, share[:-1]), -1.0)
    expert = int(wanted.argmax())
    if wanted[expert] < 0:
        return False
    module = int(np.where(room[expert], share[row].sum(1), np.inf).argmin())
    row[module, int((row[module] < 0).argmax())] = expert
    return True


def _check_groups(problem: PlacementProblem, groups: int, uneven: int) -> None:
    sizes = np.bincount(problem.module_to_node)
    if problem.experts % groups or groups % problem.nodes:
        raise ValueError(
            f"groups: {groups} is not allowed; allowed: 1, or divisors of the {problem.experts} experts that "
            f"are multiples of the {problem.nodes} nodes"
        )
    if len(set(sizes.tolist())) > 1:
        raise ValueError(
            f"groups: {groups} is not allowed; allowed: 1, since nodes have unlike numbers of modules"
        )
    if uneven:
        raise ValueError(
            f"groups: {groups} is not allowed with {uneven} slots of a layer; allowed: 1, or choose extra so "
            f"that the slots are a multiple of the {problem.modules} modules"
        )
