"""Membership: who is alive, by several signals, as numbered epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.alltoall import ALIVE, DEAD, SUSPECTED, View
from rayemu.placement import Placement

MOST_BACKOFF = 3  # doublings of the wait before a module that keeps dying is replaced again
PATIENCE = 2.5  # false suspicions stretch the heartbeat deadline, at most to this multiple


@dataclass(slots=True, eq=False)
class _Member:
    heard: float
    heard_before: float = float("-inf")
    suspected_at: float = float("inf")
    replace_at: float = float("inf")
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a member's state, for events and for whoever starts replacements."""

    kind: str  # suspected | recovered | dead | joined | replace
    module: int
    incarnation: int
    signal: str


class Membership:
    """Turns signals (heartbeats, dead processes, silent probes, joins) into views.

    A missed heartbeat makes a module *suspected*: its work goes to replicas at once, and it is welcome
    back as it is. Only a dead process or a long silence makes it *dead* and asks for a replacement.
    """

    def __init__(
        self,
        module_to_node: np.ndarray,
        placement: Placement,
        experts: int,
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
        self.view = View(
            0, module_to_node, np.zeros(modules, np.uint8), np.zeros(modules, np.int32), placement, experts
        )

    def join(self, module: int, incarnation: int, endpoint: str, now: float) -> list[Change]:
        """Take in a module that is ready; a newer incarnation replaces the older."""
        current = int(self.view.incarnations[module])
        if incarnation < current or (incarnation == current and self.members[module].joined):
            return []
        self.members[module] = _Member(now, joined=True)
        self.endpoints[module] = endpoint
        self._set(module, ALIVE, incarnation)
        return [Change("joined", module, incarnation, "join")]

    def heard(self, module: int, incarnation: int, now: float) -> list[Change]:
        """Note a heartbeat sent at `now`; it clears a suspicion. One that is not news changes nothing."""
        member, state = self.members[module], self.view.state[module]
        if now <= member.heard or state == DEAD or incarnation != self.view.incarnations[module]:
            return []
        member.heard_before, member.heard = member.heard, now
        if state != SUSPECTED:
            return []
        member.suspected_at = float("inf")
        if now - member.heard_before < self.most_patient:  # it was merely late: the machine is busy
            self.suspect_after = min(1.25 * self.suspect_after, self.most_patient)
        self._set(module, ALIVE, incarnation)
        return [Change("recovered", module, incarnation, "heartbeat")]

    def suspect(self, module: int, incarnation: int, signal: str, now: float) -> list[Change]:
        """Stop using a module that does not answer, until it is heard again."""
        if incarnation != self.view.incarnations[module] or self.view.state[module] != ALIVE:
            return []
        self.members[module].suspected_at = now
        self._set(module, SUSPECTED, incarnation)
        return [Change("suspected", module, incarnation, signal)]

    def down(self, module: int, incarnation: int, signal: str, now: float) -> list[Change]:
        """Note that the process is gone; its replacement is due a little later."""
        if incarnation != self.view.incarnations[module] or self.view.state[module] == DEAD:
            return []
        member = self.members[module]
        member.joined = False
        member.suspected_at = float("inf")
        member.replace_at = now + self.replace_after * 2 ** min(incarnation, MOST_BACKOFF)
        self._set(module, DEAD, incarnation)
        return [Change("dead", module, incarnation, signal)]

    def tick(self, now: float) -> list[Change]:
        """Judge silences. Call it only after all messages that wait have been handled.

        After a gap in our own attention (a paused machine) the others get one tick to be heard again; only
        one, because on a busy machine gaps are the rule and a silent module must not hide behind them.
        """
        gap, self.checked = now - self.checked, now
        late = max(0.0, gap - self.tick_every)  # what is late here is late everywhere
        self.lateness = max(late if late < self.suspect_after else 0.0, 0.9 * self.lateness)
        self.paused = late > self.suspect_after / 3 and not self.paused
        if self.paused:
            return []
        changes: list[Change] = []
        patience = min(self.suspect_after + 2 * self.lateness, self.most_patient)
        states, incarnations = self.view.state.tolist(), self.view.incarnations.tolist()
        for module, member in enumerate(self.members):
            state, incarnation = states[module], incarnations[module]
            if state == ALIVE and now - member.heard > patience:
                changes += self.suspect(module, incarnation, "heartbeat", now)
            elif state == SUSPECTED and now - member.suspected_at > self.evict_after:
                changes += self.down(module, incarnation, "evicted", now)
            elif state == DEAD and member.replace_at <= now:
                member.replace_at = float("inf")
                changes.append(Change("replace", module, incarnation + 1, ""))
        return changes

    def _set(self, module: int, state: int, incarnation: int) -> None:
        old = self.view
        states, incarnations = old.state.copy(), old.incarnations.copy()
        states[module], incarnations[module] = state, incarnation
        self.view = View(old.epoch + 1, old.module_to_node, states, incarnations, old.placement, old.experts)
