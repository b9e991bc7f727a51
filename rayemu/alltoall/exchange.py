"""Exchange shapes: the first hop that a row takes on its way to the module of its expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.alltoall.view import View


def spread_relay(members: np.ndarray, home: int) -> int:
    """Every live module relays for some homes: home h uses member h mod len."""
    return int(members[home % len(members)])


def first_relay(members: np.ndarray, home: int) -> int:
    """Use the lowest live module of the node as the relay of all homes."""
    return int(members[0])


RELAYS = {"spread": spread_relay, "first": first_relay}


@dataclass(frozen=True)
class Flat:
    """Every row goes straight to the module of its expert."""

    def first_hops(self, modules: np.ndarray, view: View, home: int) -> np.ndarray:
        """Map destination modules [n] to first hops [n]."""
        return modules


@dataclass(frozen=True)
class Hierarchical:
    """Rows for another node go once to a relay there, which hands them to its neighbours.

    `relay` is who that is: a member of `RELAYS`.
    """

    relay: str = "spread"

    def __post_init__(self) -> None:
        if self.relay not in RELAYS:
            raise ValueError(f"relay: {self.relay!r} is not a relay choice; known: {', '.join(RELAYS)}")

    def first_hops(self, modules: np.ndarray, view: View, home: int) -> np.ndarray:
        """Map destination modules [n] to first hops [n]: themselves in the home's node, else relays."""
        return view.derive(self, home, lambda: self._hops(view, home))[modules]

    def _hops(self, view: View, home: int) -> np.ndarray:
        """The first hop [M] on the way to each module; in a node without live modules it is itself."""
        relay = np.arange(view.modules, dtype=np.int32)
        for node in range(int(view.module_to_node.max()) + 1):
            members = view.live_in_node(node)
            if node != view.module_to_node[home] and len(members):
                relay[view.module_to_node == node] = RELAYS[self.relay](members, home)
        return relay
