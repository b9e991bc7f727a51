"""Pairs of a home that nobody can compute at present: their expert has no copy that the home knows of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.alltoall import View
from rayemu.protocol.slices import HeldSlice, Unit


@dataclass(slots=True, eq=False)
class Parked:
    """Pairs of one expert: its copies are dead, or lack it though our view says otherwise."""

    unit: Unit
    expert: int
    pairs: np.ndarray
    deadline: float

    def missing(self) -> np.ndarray:
        """Return the pairs for which no late answer has come meanwhile."""
        assert self.unit.have is not None
        return self.pairs[~self.unit.have[self.pairs]]


class ParkingLot:
    """All that a home has parked. What it gives back is parked no more."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        self.parked: list[Parked] = []

    def add(self, unit: Unit, expert: int, pairs: np.ndarray, now: float) -> Parked:
        """Park pairs [n] of an expert."""
        parked = Parked(unit, expert, pairs, now + self.retry_after)
        self.parked.append(parked)
        return parked

    def forget(self, held: HeldSlice) -> None:
        """Drop what belongs to a slice."""
        self.parked = [p for p in self.parked if p.unit.slice is not held]

    def settled(self, unit: Unit) -> None:
        """Drop what has been answered after all, of a unit that has got rows."""
        if self.parked:
            self.parked = [p for p in self.parked if p.unit is not unit or len(p.missing())]

    def of(self, layer: int, expert: int) -> list[Parked]:
        """Return what waits for an expert; it stays."""
        return [p for p in self.parked if p.expert == expert and p.unit.layer == layer]

    def take_all(self) -> list[Parked]:
        """Give everything back."""
        taken, self.parked = self.parked, []
        return taken

    def take_served(self, view: View, now: float) -> list[Parked]:
        """Give back what is overdue and has a copy by now."""
        taken = [p for p in self.overdue(now) if len(view.copies.of(p.unit.layer, p.expert))]
        self.parked = [p for p in self.parked if p not in taken]
        return taken

    def overdue(self, now: float) -> list[Parked]:
        """Return what is to be asked about again; it stays."""
        return [p for p in self.parked if p.deadline <= now]

    @property
    def deadline(self) -> float:
        """When something is overdue."""
        return min((p.deadline for p in self.parked), default=float("inf"))
