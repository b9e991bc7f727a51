"""What is near a row: the experts that its home holds, and those of its home's node.

Shapes: T tokens, K choices per token, E experts, M modules.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rayemu.routing.router import Context


class Near(NamedTuple):
    """The experts that each module holds, and those that some module of its node holds, [M, E] both."""

    module: npt.NDArray[np.bool_]
    node: npt.NDArray[np.bool_]


def near(context: Context, rows: int, experts: int) -> Near:
    """Who has what nearby. Raises ValueError where the context does not say where `rows` rows are at home."""
    holders, home, node = context.holders, context.home, context.module_to_node
    if len(home) != rows or holders.shape != (len(node), experts):
        raise ValueError(
            f"context.home has {len(home)} rows of {rows}, context.holders shape {holders.shape} for "
            f"{len(node)} modules of context.module_to_node and {experts} experts; give all three"
        )
    if rows and not (0 <= home.min() and home.max() < len(node)):
        raise ValueError(
            f"context.home goes from {home.min()} to {home.max()}; allowed: 0 to {len(node) - 1}, modules"
        )
    of_node = np.zeros((int(node.max(initial=-1)) + 1, experts), bool)  # [N, E]
    for module in range(len(node)):
        of_node[node[module]] |= holders[module]
    return Near(holders, of_node[node])


def count_choices(context: Context, chosen: npt.NDArray[np.intp], near: Near) -> None:
    """Count the choices [T, K], and those of them that leave the row's module and its node."""
    far = np.int8(2) - near.module.view(np.int8) - near.node.view(np.int8)  # [M, E]: 0 at home, 2 elsewhere
    index = context.home.astype(np.intp)[:, None] * far.shape[1] + chosen  # [T, K], of no use at -1
    found = np.where(chosen >= 0, far.reshape(-1).take(index, mode="clip"), np.int8(-1))
    context.count("choices", int(np.count_nonzero(found >= 0)))
    context.count("choices_outside_module", int(np.count_nonzero(found >= 1)))
    context.count("choices_outside_node", int(np.count_nonzero(found == 2)))
