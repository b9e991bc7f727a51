"""The section of a scenario that lets experts move while it runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from rayemu.balance.rebalancer import RebalancePolicy
from rayemu.balance.triggers import TRIGGERS, Every
from rayemu.placement import PLACEMENTS
from rayemu.scenario.base import Rate, Section, Strategy


def _named(value: object) -> object:
    """A strategy's name stands for the strategy with its usual parameters."""
    return {"kind": value} if isinstance(value, str) else value


class Trigger(Strategy):
    """When to think about a new plan: a strategy of `rayemu.balance.triggers` and its parameters."""

    FAMILY = TRIGGERS
    WHAT = "a trigger"
    kind: str


class Planner(Strategy):
    """What makes the plan: a strategy of `rayemu.placement` and its parameters."""

    FAMILY = PLACEMENTS
    WHAT = "a planner"
    kind: str = "balanced"


class Rebalance(Section):
    """When experts move, where to, and what it must gain, see `rayemu.balance.rebalancer`.

    `every: n` is short for the trigger `every` with n batches.
    """

    every: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    trigger: Annotated[Trigger | None, BeforeValidator(_named)] = None
    planner: Annotated[Planner, BeforeValidator(_named)] = Planner()
    window: Annotated[int, Field(ge=2, le=4096)] = 8
    gain: Annotated[float, Field(ge=0, lt=1)] | None = 0.2
    within: Annotated[float, Field(gt=0)] | None = None
    rate: Rate = 100_000_000

    @model_validator(mode="after")
    def _one_trigger(self) -> Rebalance:
        if (self.every is None) == (self.trigger is None):
            given = "neither is given" if self.every is None else "both are given"
            raise ValueError(f"give either every (a number of batches) or trigger (like imbalance); {given}")
        return self

    def policy(self) -> RebalancePolicy:
        """The section as the rebalancer takes it."""
        if self.trigger is not None:
            trigger = self.trigger.build()
        else:
            assert self.every is not None  # see `_one_trigger`
            trigger = Every(self.every)
        return RebalancePolicy(
            trigger, self.planner.build(), self.window, self.gain, self.within, float(self.rate)
        )
