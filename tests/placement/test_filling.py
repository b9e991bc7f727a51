"""Filling modules: level sizes, exchanges that make room, copies that are taken back."""

import numpy as np
import pytest

from rayemu.placement.filling import Filling, level_sizes, trimmed


@pytest.mark.parametrize(
    ("total", "room", "sizes"),
    [
        (7, [9, 9, 9], [3, 2, 2]),
        (7, [1, 9, 9], [1, 3, 3]),
        (0, [1, 1], [0, 0]),
        (5, [0, 5], [0, 5]),
    ],
)
def test_sizes_are_as_level_as_the_room_lets(total: int, room: list[int], sizes: list[int]) -> None:
    assert level_sizes(total, np.array(room)).tolist() == sizes


def test_too_little_room_is_said() -> None:
    with pytest.raises(ValueError, match="memory holds 3 experts of a layer and 4 are to be placed"):
        level_sizes(4, np.array([2, 1]))


def test_a_copy_goes_to_the_cheapest_then_the_emptiest_then_the_first() -> None:
    filling = Filling(4, np.array([2, 2, 2]))
    assert filling.put(0, 5.0) == 0
    assert filling.put(1, 1.0) == 1
    assert filling.put(2, 1.0, np.array([0, 0, 1])) == 1
    assert filling.put(3, 1.0, np.array([0, 0, 1])) == 0


def test_room_is_made_by_an_exchange() -> None:
    """The only room is beside a copy of expert 0, so expert 1 moves there and expert 0 takes its place."""
    filling = Filling(2, np.array([2, 1]))
    filling.put_at(0, 0, 1.0)
    filling.put_at(1, 1, 4.0)
    assert filling.put(0, 1.0) == 1
    assert filling.held.tolist() == [[True, True], [True, False]]
    assert filling.load.tolist() == [5.0, 1.0] and filling.room.tolist() == [0, 0]
    with pytest.raises(ValueError, match="memory has no room for a copy of expert 1"):
        filling.put(1, 1.0)


def test_copies_are_taken_back_where_that_costs_least() -> None:
    assert trimmed(np.array([4, 2, 1]), np.array([100.0, 30, 90]), 5).tolist() == [3, 1, 1]
