"""The fault plan of a scenario: what goes wrong, where, when and for how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rayemu.scenario.base import Seconds, Section
from rayemu.scenario.errors import Problem, refuse, show

# Per kind: the keys that it takes beside `kind`, `module` and `at`, with their defaults.
FAULTS: dict[str, dict[str, Any]] = {
    "kill": {},
    "hang": {"duration": None},
    "slow": {"duration": None, "factor": 4.0},
    "drop": {"duration": None, "rate": 0.05},
    "delay": {"duration": None, "rate": 0.05, "delay": 0.005},
    "duplicate": {"duration": None, "rate": 0.05},
    "corrupt": {"duration": None, "rate": 0.05},
    "reorder": {"duration": None, "rate": 0.05, "delay": 0.005},
}
MODULE_FAULTS = ("kill", "hang", "slow")  # happen to one module; the others to messages
_KEYS = ("duration", "factor", "rate", "delay")


class At(Section):
    """When a fault begins: as a batch is handed out (0 is the first), or a time after the first one."""

    batch: int | None = Field(default=None, ge=0)
    time: Seconds | None = None

    @model_validator(mode="after")
    def _one(self) -> At:
        if (self.batch is None) == (self.time is None):
            raise ValueError("give either batch (a number) or time (like '1 s')")
        return self


def _module(value: object) -> object:
    if value is not None and value != "random" and (type(value) is not int or value < 0):
        raise ValueError(f"{show(value)} is not allowed; allowed: a module number from 0, or random")
    return value


class Fault(Section):
    """One fault. `module` is a number or "random" (seeded); message faults without one hit every module.

    `duration` (written `for`) in seconds, None until the end of the run; `factor` by how much a slow module
    is slower; `rate` the share of messages hit; `delay` in seconds, how long a delayed message waits and how
    far reordered ones may move.
    """

    kind: Literal["kill", "hang", "slow", "drop", "delay", "duplicate", "corrupt", "reorder"]
    module: Annotated[int | Literal["random"] | None, BeforeValidator(_module)] = None
    at: At = At(batch=0)
    duration: Seconds | None = Field(default=None, alias="for")
    factor: float | None = Field(default=None, gt=1)
    rate: float | None = Field(default=None, gt=0, le=1)
    delay: Seconds | None = None

    @model_validator(mode="after")
    def _complete(self) -> Fault:
        takes = FAULTS[self.kind]
        names = {key: Fault.model_fields[key].alias or key for key in _KEYS}
        problems = [
            Problem(
                (names[key],), f"is not a parameter of {self.kind}, which takes: {_list(self.kind, names)}"
            )
            for key in _KEYS
            if key in self.model_fields_set and key not in takes
        ]
        if self.kind in MODULE_FAULTS and self.module is None:
            problems.append(Problem(("module",), f"is missing; {self.kind} needs a module number or random"))
        if self.duration == 0:
            problems.append(Problem((names["duration"],), "0 is not allowed; it must be more than no time"))
        refuse(problems)
        for key, default in takes.items():
            if getattr(self, key) is None:
                # Filled in without being marked as set, so that an override of `kind` does not trip over it.
                object.__setattr__(self, key, default)
        return self


def _list(kind: str, names: dict[str, str]) -> str:
    return ", ".join(["module", "at", *(names[key] for key in FAULTS[kind])])
