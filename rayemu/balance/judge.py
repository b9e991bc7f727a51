"""The judge of a rebalance: plan on one window, measure on the next, before anything moves.

W windows of loads, L layers, E experts, G devices. A plan always looks good on the loads that it was made
from. Whether it pays depends on whether loads stay as they are, and that shows on the next window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb, inf
from typing import Literal

import numpy as np

from rayemu.balance.loads import Plan, as_placement, checked_loads, device_loads
from rayemu.balance.metrics import imbalance
from rayemu.balance.migration import count_moves, match_devices
from rayemu.balance.predictors import Forecast
from rayemu.placement import Placement

Decision = Literal["recommend", "not now", "too little evidence"]


@dataclass(frozen=True)
class Cost:
    """What moving costs and what balance is worth.

    `expert_bytes` of one expert; `bytes_per_s` at which experts move, all together; `seconds_per_row` of one
    device for one row of one expert; `steps` that a window of loads holds.
    """

    expert_bytes: int
    bytes_per_s: float
    seconds_per_row: float
    steps: int = 1

    def __post_init__(self) -> None:
        if self.expert_bytes < 0:
            raise ValueError(f"expert_bytes: {self.expert_bytes!r} is not allowed; allowed: 0 and above")
        for name in ("bytes_per_s", "seconds_per_row", "steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not allowed; allowed: above 0")


@dataclass(frozen=True)
class Demand:
    """What a rebalance must gain; all that is given must hold.

    `gain`: the part of a step's time under the present plan that the new one must save (0.2 is 20 %).
    `within`: the steps after which it must have saved the time that its moves take. `confidence` of the sign
    test, 0.5 to below 1.
    """

    gain: float | None = 0.2
    within: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.gain is None and self.within is None:
            raise ValueError(
                "gain: None is not allowed without `within`; allowed: 0 up to, but not including, 1"
            )
        if self.gain is not None and not 0 <= self.gain < 1:
            raise ValueError(f"gain: {self.gain!r} is not allowed; allowed: 0 up to, but not including, 1")
        if self.within is not None and not self.within > 0:
            raise ValueError(f"within: {self.within!r} is not allowed; allowed: above 0")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(
                f"confidence: {self.confidence!r} is not allowed; allowed: 0.5 up to, but not including, 1"
            )


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the judge says of the plan made from the last window, and why.

    `pairs` windows could be tried on the next, `won` of them met the demand; `p_value` is the chance of a
    result at least as one-sided if meeting it were a coin's toss. Balance is max/mean averaged over layers,
    on the windows that plans had not seen: of the present plan, of the new ones, and `promised`, what the
    last plan shows on the loads that it was made from. `gain` is the median saved part of a step's time,
    `saved_s` the median of seconds saved per step (one step's layers after one another, each as long as its
    busiest device needs). `break_even_steps` is `moving_s` over `saved_s`, infinite if nothing is saved.
    """

    decision: Decision
    reason: str
    plan: Placement
    pairs: int
    won: int
    p_value: float
    balance_before: float
    balance_after: float
    promised: float
    gain: float
    saved_s: float
    moves: int
    moved_bytes: int
    moving_s: float
    break_even_steps: float


def judge(
    loads: np.ndarray,
    present: Plan,
    planner: Callable[[np.ndarray], Plan],
    module_to_node: np.ndarray,
    cost: Cost,
    demand: Demand | None = None,
    forecast: Forecast | None = None,
) -> Verdict:
    """Judge whether `planner` (loads [L, E] to a plan) should replace the `present` plan.

    `loads [W, L, E]` are rows per expert in windows of equal length, oldest first. The rule:

    1. For every window but the last a plan is made from it and measured on the next, beside the present plan.
    The pair is won if the plan meets the demand there; its moves are those from the present plan, with
    devices matched so that few experts move (`match_devices`). 2. A one-sided sign test over the pairs:
    *recommend* if as many wins would come from tosses of a coin with a chance of at most 1 - confidence, *not
    now* if as few would, else *too little evidence*. At 95 % five pairs decide if they all agree, eight with
    one against. A pair that saves nothing is lost. 3. The plan made from the last window is what is
    recommended. If it is the present one, *not now*.

    With a `forecast` (of `rayemu.balance.predictors`, fitted to windows before these) plans are made from
    what it expects after the windows so far, in the place of the last of them: rebalancing before the load is
    there.

    The test supposes that pairs are independent; neighbouring pairs share a window, so with few long windows
    its confidence is a guide. Raises ValueError on bad loads or plans.
    """
    demand = demand or Demand()
    loads = checked_loads(loads, (3,))
    if not len(loads):
        raise ValueError("loads: 0 windows are not allowed; allowed: 1 and above")
    devices = len(module_to_node)
    now = as_placement(present, devices)
    expected = loads if forecast is None else [forecast(loads[: w + 1]) for w in range(len(loads))]
    plans = [as_placement(planner(load), devices) for load in expected]
    matched = range(len(plans)) if demand.within is not None else [len(plans) - 1]  # whose moves matter
    for w in matched:
        plans[w] = match_devices(now, plans[w], module_to_node)
    moves = [count_moves(now, plan) for plan in plans]
    moving_s = [count * cost.expert_bytes / cost.bytes_per_s for count in moves]

    before = _step_seconds(loads[1:], [now] * (len(loads) - 1), devices, cost)  # [W - 1]
    after = _step_seconds(loads[1:], plans[:-1], devices, cost)
    saved = before - after
    gain = saved / np.where(before > 0, before, 1.0)
    met = np.ones(len(saved), bool)
    if demand.gain is not None:
        met &= gain >= demand.gain
    if demand.within is not None:
        met &= np.array(moving_s[:-1]) <= demand.within * saved
    met &= saved > 0
    pairs, won = len(met), int(met.sum())
    saved_s = float(np.median(saved)) if pairs else 0.0
    break_even = moving_s[-1] / saved_s if saved_s > 0 else inf
    decision, p_value = _sign_test(won, pairs, demand.confidence)
    reason = _reason(decision, won, pairs, demand)
    if not moves[-1]:
        decision, reason = "not now", "the plan from the last window holds what the present one holds"
    return Verdict(
        decision,
        reason,
        plans[-1],
        pairs,
        won,
        p_value,
        _mean_imbalance(loads[1:], [now] * pairs, devices),
        _mean_imbalance(loads[1:], plans[:-1], devices),
        float(imbalance(expected[-1], plans[-1], devices)),
        float(np.median(gain)) if pairs else 0.0,
        saved_s,
        moves[-1],
        moves[-1] * cost.expert_bytes,
        moving_s[-1],
        break_even,
    )


def at_least_by_chance(won: int, pairs: int) -> float:
    """Chance that a fair coin, tossed `pairs` times, shows heads at least `won` times."""
    return sum(comb(pairs, k) for k in range(won, pairs + 1)) / 2**pairs


def _sign_test(won: int, pairs: int, confidence: float) -> tuple[Decision, float]:
    many, few = at_least_by_chance(won, pairs), at_least_by_chance(pairs - won, pairs)
    if pairs and many <= 1 - confidence:
        return "recommend", many
    if pairs and few <= 1 - confidence:
        return "not now", few
    return "too little evidence", min(many, few)


def _reason(decision: Decision, won: int, pairs: int, demand: Demand) -> str:
    asked = [f"saved at least {demand.gain:.0%} of a step"] if demand.gain is not None else []
    asked += [f"paid within {demand.within:g} steps"] if demand.within is not None else []
    tried = f"in {won} of {pairs} windows a plan from the one before {' and '.join(asked)}"
    if decision != "too little evidence":
        return tried
    least = next(n for n in range(1, 10_000) if 0.5**n <= 1 - demand.confidence)
    more = f"; at least {least} are needed" if pairs < least else ", which chance could do as well"
    return tried + more


def _step_seconds(loads: np.ndarray, plans: list[Placement], devices: int, cost: Cost) -> np.ndarray:
    """Seconds of a step in each window [W]: layers one after another, each as long as its busiest device."""
    busiest = [device_loads(w, p, devices).max(axis=-1).sum() for w, p in zip(loads, plans, strict=True)]
    return np.array(busiest, np.float64) * cost.seconds_per_row / cost.steps


def _mean_imbalance(loads: np.ndarray, plans: list[Placement], devices: int) -> float:
    figures = [float(imbalance(w, p, devices)) for w, p in zip(loads, plans, strict=True)]
    return float(np.mean(figures)) if figures else 1.0
