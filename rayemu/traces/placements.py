"""Plans of other systems as placements, and back: module m is device m, and layers are counted from 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayemu.placement.placement import Placement, from_columns
from rayemu.traces.errors import TraceError
from rayemu.traces.plan import EMPTY, Plan, make_plan


def plan_of(placement: Placement, experts: int, modules: int, layers: Sequence[int] | None = None) -> Plan:
    """A placement's slots [L, R], those of each module in a row, in order of experts.

    Every module has as many as the fullest in any layer; the rest is EMPTY. Only layers with experts are in
    it; `layers` are the model's numbers of the placement's layers, else they are counted from 0.
    """
    used = np.unique(placement.layer)
    row = np.searchsorted(used, placement.layer)  # [S]
    order = np.lexsort((placement.expert, placement.module, row))
    place = (
        row[order].astype(np.int64) * modules + placement.module[order]
    )  # [S], which device of which layer
    held = np.bincount(place, minlength=len(used) * modules)
    nth = np.arange(len(order)) - (np.cumsum(held) - held)[place]
    slots = np.full((len(used) * modules, held.max(initial=0)), EMPTY, np.int32)
    slots[place, nth] = placement.expert[order]
    numbers = used.tolist() if layers is None else [int(layers[n]) for n in used]
    return make_plan(slots.reshape(len(used), -1), experts, modules, numbers, 0)


def placement_of(plan: Plan) -> Placement:
    """A plan's routed experts on modules; a second copy on one module is left out. Raises TraceError."""
    if plan.num_devices is None:
        raise TraceError("the plan does not say how many devices there are; add --devices N")
    layer, slot = np.nonzero((plan.phy2log >= 0) & (plan.phy2log < plan.num_experts))
    module = slot // (plan.phy2log.shape[1] // plan.num_devices)
    table = np.unique(np.stack([layer, plan.phy2log[layer, slot], module]), axis=1).astype(np.int32)
    return from_columns(*table)
