"""Membership: who is alive, by several signals, as numbered epochs."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from rayemu.alltoall import ALIVE, DEAD, LEAVING, LOADING, READY, SUSPECTED, View
from rayemu.placement import Placement

MOST_BACKOFF = 3  # doublings of the wait before a module that keeps dying is replaced again
PATIENCE = 2.5  # false suspicions stretch the heartbeat deadline, at most to this multiple
START_S = 120.0  # a replacement that has not joined by then is taken for dead
# As many modules, and as large a share of the live ones, do not hang by chance in the same moment: their
# machine paused, or we did.
CROWD, CROWD_SHARE = 3, 1 / 3


@dataclass(slots=True, eq=False)
class _Member:
    heard: float
    heard_before: float = float("-inf")
    suspected_at: float = float("inf")
    replace_at: float = float("inf")
    newest: int = 0  # incarnation that was started last
    awaited: bool = True  # it has not joined yet
    start_by: float = float("inf")


@dataclass(frozen=True, slots=True)
class MemberChange:
    """One change of a member's state, for events and for whoever starts replacements."""

    kind: str  # suspected | recovered | dead | joined | replace | replacement_failed
    module: int
    incarnation: int
    signal: str
    reason: str = ""


class Membership:
    """Turns signals (heartbeats, dead processes, silent probes, joins) into views.

    A missed heartbeat makes a module *suspected*: its work goes to replicas at once, and it is welcome
    back as it is. Only a dead process or a long silence makes it *dead* and asks for a replacement.

    Every suspicion costs all modules an epoch, so silence that says little is given longer, `evict_after`:
    that of a module whose process is known to be neither stopped nor dead (it wants a core), and that of
    many modules at once. `size` is (L, E).
    """

    def __init__(
        self,
        module_to_node: np.ndarray,
        placement: Placement,
        size: tuple[int, int],
        suspect_after: float,
        evict_after: float,
        replace_after: float,
        replace: bool,
    ) -> None:
        modules = len(module_to_node)
        self.suspect_after, self.evict_after = suspect_after, evict_after
        self.tick_every = suspect_after / 3  # how often `tick` wants to be called
        self.most_patient = PATIENCE * suspect_after
        self.replace_after = replace_after if replace else float("inf")
        self.members = [_Member(float("inf")) for _ in range(modules)]
        self.checked = float("inf")
        self.paused = False
        self.lateness = 0.0
        self.endpoints = [""] * modules
        states, incarnations = np.zeros(modules, np.uint8), np.zeros(modules, np.int32)
        ready = np.full(len(placement), READY, np.uint8)
        self.view = View(0, module_to_node, states, incarnations, placement, ready, *size)
        self.loading_since = np.zeros(len(placement), np.int64)  # [S] epoch that the slot came with

    def join(
        self, module: int, incarnation: int, endpoint: str, holds: np.ndarray, now: float
    ) -> list[MemberChange]:
        """Take in a module that is ready; a newer incarnation replaces the older.

        Of its slots those are ready that it `holds` [2, n] (layers and experts).
        """
        member = self.members[module]
        if incarnation < member.newest + (not member.awaited):
            return []
        self.members[module] = _Member(now, newest=incarnation, awaited=False)
        self.endpoints[module] = endpoint
        self._set(module, ALIVE, incarnation, self._held(module, holds))
        return [MemberChange("joined", module, incarnation, "join")]

    def loaded(self, module: int, incarnation: int, epoch: int, slots: np.ndarray) -> np.ndarray:
        """Take slots [2, n] of a module for ready that loaded in an epoch; return which [n] are news."""
        view = self.view
        if incarnation != view.incarnations[module] or view.state[module] == DEAD:
            return np.zeros(slots.shape[1], bool)
        fresh = (view.slot_state == LOADING) & (self.loading_since <= epoch)
        new = fresh & self._these(module, slots)
        if new.any():
            self.set_slots(view.placement, np.where(new, READY, view.slot_state).astype(np.uint8))
        return np.isin(self._numbers(*slots), self._numbers(view.placement.layer, view.placement.expert)[new])

    def set_slots(self, placement: Placement, slot_state: np.ndarray) -> None:
        """Go on with another table of slots."""
        old = self.view
        self._publish(old.state, old.incarnations, placement, slot_state)

    def _numbers(self, layer: np.ndarray, expert: np.ndarray) -> np.ndarray:
        return layer.astype(np.int64) * self.view.experts + expert

    def _these(self, module: int, slots: np.ndarray) -> np.ndarray:
        """Tell which slots [S] are these [2, n] (layers and experts) of a module."""
        placed = self.view.placement
        named = np.isin(self._numbers(placed.layer, placed.expert), self._numbers(*slots))
        return (placed.module == module) & named

    def _held(self, module: int, holds: np.ndarray) -> np.ndarray:
        """The states of all slots when a module holds just these."""
        states = self.view.slot_state.copy()
        mine = (self.view.placement.module == module) & (states != LEAVING)
        states[mine] = np.where(self._these(module, holds)[mine], READY, LOADING)
        return states

    def heard(self, module: int, incarnation: int, now: float) -> list[MemberChange]:
        """Note a heartbeat sent at `now`; it clears a suspicion. One that is not news changes nothing."""
        member, state = self.members[module], self.view.state[module]
        if now <= member.heard or state == DEAD or incarnation != self.view.incarnations[module]:
            return []
        member.heard_before, member.heard = member.heard, now
        if state != SUSPECTED:
            return []
        if now - member.heard_before < self.most_patient:  # it was merely late: the machine is busy
            self.suspect_after = min(1.25 * self.suspect_after, self.most_patient)
        self._set(module, ALIVE, incarnation)
        return [MemberChange("recovered", module, incarnation, "heartbeat")]

    def suspect(self, module: int, incarnation: int, signal: str, now: float) -> list[MemberChange]:
        """Stop using a module that does not answer, until it is heard again."""
        if incarnation != self.view.incarnations[module] or self.view.state[module] != ALIVE:
            return []
        self.members[module].suspected_at = now
        self._set(module, SUSPECTED, incarnation)
        return [MemberChange("suspected", module, incarnation, signal)]

    def down(
        self, module: int, incarnation: int, signal: str, now: float, reason: str = ""
    ) -> list[MemberChange]:
        """Note that the process is gone; its replacement is due a little later.

        So is the next one if the process was a replacement that had not joined yet.
        """
        member = self.members[module]
        if self.view.state[module] == DEAD:
            if incarnation != member.newest or not member.awaited:
                return []
            kind = "replacement_failed"
        elif incarnation != self.view.incarnations[module]:
            return []
        else:
            kind = "dead"
            self._set(module, DEAD, incarnation)
        member.awaited = False
        member.suspected_at = member.start_by = float("inf")
        member.replace_at = now + self.replace_after * 2 ** min(incarnation, MOST_BACKOFF)
        return [MemberChange(kind, module, incarnation, signal, reason)]

    def tick(self, now: float, running: Container[int] = ()) -> list[MemberChange]:
        """Judge silences. Call it only after all messages that wait have been handled, if that is possible.

        `running` are modules whose process was just seen to be neither stopped nor dead.

        After a gap in our own attention (a paused machine) the others get one tick to be heard again; only
        one, because on a busy machine gaps are the rule and a silent module must not hide behind them.
        """
        gap, self.checked = now - self.checked, now
        late = max(0.0, gap - self.tick_every)  # what is late here is late everywhere
        self.lateness = max(late if late < self.suspect_after else 0.0, 0.9 * self.lateness)
        self.paused = late > self.suspect_after / 3 and not self.paused
        if self.paused:
            return []
        changes: list[MemberChange] = []
        patience = min(self.suspect_after + 2 * self.lateness, self.most_patient)
        states, incarnations = self.view.state.tolist(), self.view.incarnations.tolist()
        silent = [m for m, member in enumerate(self.members) if now - member.heard > patience]
        silent = [m for m in silent if states[m] == ALIVE]
        crowd = len(silent) >= max(CROWD, CROWD_SHARE * states.count(ALIVE))
        for module in silent:
            unclear = crowd or module in running
            if not unclear or now - self.members[module].heard > max(patience, self.evict_after):
                changes += self.suspect(module, incarnations[module], "heartbeat", now)
        for module, member in enumerate(self.members):
            state, incarnation = states[module], incarnations[module]
            if state == SUSPECTED and now - member.suspected_at > self.evict_after:
                changes += self.down(module, incarnation, "evicted", now)
            elif state == DEAD and member.start_by <= now:
                reason = f"it did not join within {START_S:g} s"
                changes += self.down(module, member.newest, "start", now, reason)
            elif state == DEAD and member.replace_at <= now:
                member.newest, member.awaited = member.newest + 1, True
                member.replace_at, member.start_by = float("inf"), now + START_S
                changes.append(MemberChange("replace", module, member.newest, ""))
        return changes

    def _set(self, module: int, state: int, incarnation: int, slot_state: np.ndarray | None = None) -> None:
        old = self.view
        states, incarnations = old.state.copy(), old.incarnations.copy()
        states[module], incarnations[module] = state, incarnation
        if state == DEAD:  # it holds nothing any more
            lost = (old.placement.module == module) & (old.slot_state == READY)
            slot_state = np.where(lost, LOADING, old.slot_state).astype(np.uint8)
        kept = old.slot_state if slot_state is None else slot_state
        self._publish(states, incarnations, old.placement, kept)

    def _publish(
        self, states: np.ndarray, incarnations: np.ndarray, placement: Placement, slot_state: np.ndarray
    ) -> None:
        old = self.view
        size = old.layers, old.experts
        self.view = View(
            old.epoch + 1, old.module_to_node, states, incarnations, placement, slot_state, *size
        )
        if placement is not old.placement:
            self.loading_since = _since(self.view, old, self.loading_since)


def _since(view: View, old: View, before: np.ndarray) -> np.ndarray:
    """The epoch [S] that each slot of a view came with: that of `before` [S'] where it was there already."""

    def keys(of: View) -> np.ndarray:
        placed = of.placement
        return (placed.layer.astype(np.int64) * of.experts + placed.expert) * of.modules + placed.module

    there, now = keys(old), keys(view)
    order = np.argsort(there)
    at = np.searchsorted(there, now, sorter=order)
    known = at < len(there)
    known[known] = there[order[at[known]]] == now[known]
    since = np.full(len(now), view.epoch, np.int64)
    since[known] = before[order[at[known]]]
    return since
