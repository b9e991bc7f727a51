"""Plans as placements and back."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.placement import from_columns
from rayemu.traces import TraceError, make_plan
from rayemu.traces.placements import placement_of, plan_of


def test_a_plan_by_hand() -> None:
    plan = make_plan([[0, 1, 2, 0], [2, 2, 1, 0]], 3, 2, layers=[3, 4])
    placement = placement_of(plan)
    slots = zip(placement.layer.tolist(), placement.expert.tolist(), placement.module.tolist(), strict=True)
    assert list(slots) == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 2, 1),
        (1, 0, 1),
        (1, 1, 1),
        (1, 2, 0),  # its second copy on the same device is of no use
    ]
    again = plan_of(placement, 3, 2, layers=[3, 4])
    assert again.phy2log.tolist() == [[0, 1, 0, 2], [2, -1, 0, 1]] and again.layer_numbers == [3, 4]


def test_dense_layers_have_no_row() -> None:
    columns = np.array([[1, 1, 3, 3], [0, 1, 0, 1], [1, 0, 2, 2]], np.int32)
    plan = plan_of(from_columns(*columns), 2, 3)
    assert plan.layer_numbers == [1, 3]
    assert plan.phy2log.tolist() == [[1, -1, 0, -1, -1, -1], [-1, -1, -1, -1, 0, 1]]


def test_shared_and_empty_slots_are_left_out_and_devices_must_be_known() -> None:
    shared = make_plan([[0, 2, 1, 2]], 2, 2, shared=1)
    assert placement_of(shared).expert.tolist() == [0, 1]
    assert placement_of(make_plan([[0, -1, 1, -1]], 2, 2)).module.tolist() == [0, 1]
    with pytest.raises(TraceError, match="how many devices there are"):
        placement_of(make_plan([[0, 1]]))
