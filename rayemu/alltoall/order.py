"""The order in which a home sends its parcels, of which it makes several at once."""

from __future__ import annotations

from collections.abc import Callable

from rayemu.alltoall.plan import Parcel


def largest_first(parcels: list[Parcel], home: int, modules: int) -> list[Parcel]:
    """Largest parcels first: they take longest, so they start earliest; of equal ones the lower module."""
    return sorted(parcels, key=lambda parcel: -len(parcel.pairs))


def rotation(parcels: list[Parcel], home: int, modules: int) -> list[Parcel]:
    """From the home itself upwards, round and round: homes in step never send to the same module."""
    return sorted(parcels, key=lambda parcel: ((parcel.hop - home) % modules, -len(parcel.pairs)))


Order = Callable[[list[Parcel], int, int], list[Parcel]]
ORDERS: dict[str, Order] = {"largest_first": largest_first, "rotation": rotation}
