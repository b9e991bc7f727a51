"""When to move experts, where to, and whether it is worth it: what a run decides from its own loads.

B batches, L layers, E experts, M modules. Whoever runs batches tells their loads one by one, asks whether a
plan is due, and carries out what is decided; nothing here has a clock, a thread or a network.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rayemu.balance.metrics import average, mean_over_max
from rayemu.balance.migration import match_devices, moves_between
from rayemu.balance.triggers import History, Trigger
from rayemu.placement import Placement, PlacementProblem, check_placement


class Planner(Protocol):
    """A strategy of `rayemu.placement`."""

    def place(self, problem: PlacementProblem) -> Placement:
        """Where the experts should be."""


@dataclass(frozen=True)
class RebalancePolicy:
    """What is asked of a rebalance.

    `window`: batches that a plan is judged by. The older half is planned for and the newer half, which that
    plan has not seen, must gain by it: `gain` is the part of the busiest modules' load that goes, over all
    layers (0.2 is 20 %), None for any. `within`: batches in which it must have saved the time that its moves
    take at `rate` bytes per second and module, None for no such limit.
    """

    trigger: Trigger
    planner: Planner
    window: int = 8
    gain: float | None = 0.2
    within: float | None = None
    rate: float = 100e6


@dataclass(frozen=True, eq=False)
class Decision:
    """What came of a trigger. Balance is mean/max of the modules' loads, averaged over layers: 1 is even.

    All on the newer half of the window: `balance_before` is the present plan's, `promised` that of the plan
    made from the older half, which has not seen these loads, and `fitted` that of the new plan, which has: no
    load that still changes will be as even. `plan` is None where nothing is to be moved. `break_even` in
    batches, None where that is not known.
    """

    reason: str
    why: str
    plan: Placement | None
    balance_before: float
    promised: float
    fitted: float
    gain: float
    moves: int
    moved_bytes: int
    break_even: float | None = None

    def facts(self) -> dict[str, Any]:
        """What a person wants to know of it."""
        return {
            "decision": "stay" if self.plan is None else "move",
            "reason": self.reason,
            "why": self.why,
            "balance_before": round(self.balance_before, 4),
            "promised": round(self.promised, 4),
            "fitted": round(self.fitted, 4),
            "gain": round(self.gain, 4),
            "planned_moves": self.moves,
            "planned_bytes": self.moved_bytes,
            "break_even_batches": None if self.break_even is None else round(self.break_even, 2),
        }


class Rebalancer:
    """Remembers the loads of the last batches, and decides. `problem` is all but loads and present plan."""

    def __init__(self, policy: RebalancePolicy, problem: PlacementProblem) -> None:
        self.policy, self.problem = policy, problem
        remembered = max(2, policy.window, policy.trigger.reach)
        self._loads: deque[np.ndarray] = deque(maxlen=remembered)
        self._observed = self._asked_at = 0  # batches; of them those up to when the trigger fired

    def observe(self, loads: np.ndarray) -> None:
        """Take in the rows of each expert [L, E] in the next batch."""
        self._loads.append(np.asarray(loads, np.float64))
        self._observed += 1

    def recall(self) -> tuple[list[np.ndarray], int]:
        """Return the loads [L, E] of the last batches, and how many passed since the trigger fired."""
        return list(self._loads), self._observed - self._asked_at

    def consider(
        self, loads: list[np.ndarray], since: int, present: Placement, batch_s: float | None = None
    ) -> Decision | None:
        """Ask the trigger about what `recall` gave, and decide if it fires; None if it does not.

        May take long, and may run beside `observe`, in one thread. Raises what trigger and planner raise.
        Whatever comes of it, a trigger that has fired or failed starts anew.
        """
        if len(loads) < 2:
            return None
        history = History(np.array(loads), present, self.problem.modules, since)
        try:
            reason = self.policy.trigger.fires(history)
        except Exception:
            self._asked_at += since
            raise
        if reason is None:
            return None
        self._asked_at += since
        return self.decide(reason, history.loads[-self.policy.window :], present, batch_s)

    def decide(
        self, reason: str, loads: np.ndarray, present: Placement, batch_s: float | None = None
    ) -> Decision:
        """Plan from loads [B, L, E], and judge the plan by the newer half of them.

        `batch_s` is how long a batch takes at present. Raises what the planner raises, and ValueError for a
        plan that a run cannot have.
        """
        policy, problem = self.policy, self.problem
        half = len(loads) // 2
        newer = loads[half:].sum(axis=0)
        tried = self._plan(loads[:half], present)
        plan = match_devices(present, self._plan(loads[half:], present), problem.module_to_node)
        moves = moves_between(present, plan, problem.module_to_node)
        before, unseen, after = (p.module_loads(newer, problem.modules) for p in (present, tried, plan))
        gain = _saved(before, unseen)
        arriving = np.bincount(moves.destination, minlength=problem.modules).max(initial=0)
        moving_s = float(arriving) * problem.expert_bytes / policy.rate
        saved_s = None if batch_s is None else batch_s * _saved(before, after)
        break_even = None if saved_s is None or saved_s <= 0 else moving_s / saved_s
        decision = Decision(
            reason,
            f"a plan from the batches before would have saved {gain:.1%} of the busiest modules' rows",
            plan,
            average(mean_over_max(before), before),
            average(mean_over_max(unseen), unseen),
            average(mean_over_max(after), after),
            gain,
            len(moves),
            moves.bytes(problem.expert_bytes),
            break_even,
        )
        if not len(moves) and not moves.dropped:
            return replace(decision, plan=None, why="the plan is what there is")
        if gain <= 0 or (policy.gain is not None and gain < policy.gain):
            wanted = "more than nothing" if policy.gain is None else f"{policy.gain:.0%}"
            return replace(decision, plan=None, why=f"{decision.why}; {wanted} is wanted")
        if policy.within is not None and (break_even is None or break_even > policy.within):
            pays = "does not pay" if break_even is None else f"pays after {break_even:.1f} batches"
            why = f"{decision.why}; it {pays}, {policy.within:g} are allowed"
            return replace(decision, plan=None, why=why)
        return decision

    def _plan(self, loads: np.ndarray, present: Placement) -> Placement:
        """A plan for loads [B, L, E]."""
        shares = loads / np.maximum(loads.sum(axis=2, keepdims=True), 1)
        known = replace(self.problem, loads=loads.sum(axis=0), variances=shares.var(axis=0), present=present)
        plan = self.policy.planner.place(known)
        copies = self.problem.copies
        layers, experts = copies.shape
        dense = int(np.count_nonzero(~copies.any(axis=1)))
        check_placement(plan, (dense, layers), experts, self.problem.modules)
        return plan


def _saved(before: np.ndarray, after: np.ndarray) -> float:
    """The part of the layers' busiest loads [L, M] that is gone; layers run one after another."""
    was = before.max(axis=-1).sum()
    return float(1 - after.max(axis=-1).sum() / was) if was else 0.0
