"""The fault plan of a scenario: what goes wrong, where, when and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, Field, create_model, model_validator

from rayemu import faults
from rayemu.faults import FAULTS
from rayemu.scenario.base import Seconds, Section, build_problems
from rayemu.scenario.errors import Problem, close_to, refuse, show

_OF_UNIT: dict[str | None, Any] = {"s": Seconds}


class At(Section):
    """When a fault begins: as a batch is handed out (0 is the first), or a time after the first one."""

    batch: int | None = Field(default=None, ge=0)
    time: Seconds | None = None

    @model_validator(mode="after")
    def _one(self) -> At:
        if (self.batch is None) == (self.time is None):
            raise ValueError("give either batch (a number) or time (like '1 s')")
        return self


def _kind(value: object) -> object:
    if not isinstance(value, str) or value not in FAULTS:
        *most, last = map(repr, FAULTS)
        allowed = f"{', '.join(most)} or {last}"
        raise ValueError(f"{show(value)} is not allowed; allowed: {allowed}{close_to(value, list(FAULTS))}")
    return value


def _module(value: object) -> object:
    if value is not None and value != "random" and (type(value) is not int or value < 0):
        raise ValueError(f"{show(value)} is not allowed; allowed: a module number from 0, or random")
    return value


class Planned(Section):
    """What is told of a fault whatever its kind, and how it is checked."""

    kind: Annotated[str, BeforeValidator(_kind)]
    module: Annotated[int | Literal["random"] | None, BeforeValidator(_module)] = None
    at: At = At(batch=0)
    duration: Seconds | None = Field(default=None, alias="for")

    @model_validator(mode="after")
    def _complete(self) -> Planned:
        kind = FAULTS[self.kind]
        names = {key: field.alias or key for key, field in type(self).model_fields.items()}
        takes = [key for key in names if key in kind.parameters() or (key == "duration" and kind.lasts)]
        listed = ", ".join(["module", "at", *(names[key] for key in takes)])
        problems = [
            Problem((names[key],), f"is not a parameter of {self.kind}, which takes: {listed}")
            for key in names
            if key in self.model_fields_set and key not in ("kind", "module", "at", *takes)
        ]
        if kind.of_module and self.module is None:
            problems.append(Problem(("module",), f"is missing; {self.kind} needs a module number or random"))
        if self.duration == 0:
            problems.append(Problem((names["duration"],), "0 is not allowed; it must be more than no time"))
        given = {key: value for key, value in self.parameters.items() if value is not None}
        refuse(problems + build_problems(lambda: kind(**given), "fault"))
        for field in fields(kind):
            # Filled in without being marked as set, so that an override of `kind` does not trip over it.
            object.__setattr__(self, field.name, given.get(field.name, field.default))
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """What its kind takes, by name."""
        return {name: getattr(self, name) for name in FAULTS[self.kind].parameters()}

    @property
    def told(self) -> dict[str, Any]:
        """The fault as `rayemu.faults.fault_of` reads it."""
        lasting = {} if self.duration is None else {"for": self.duration}
        return {"kind": self.kind, **lasting, **self.parameters}


def with_parameters_of(kinds: Mapping[str, type[faults.Fault]]) -> Any:
    """A section that takes the parameters of all these kinds; those of other kinds than its own are None."""
    types: dict[str, Any] = {}
    for kind in kinds.values():
        hints = get_type_hints(kind)
        types |= {one.name: _OF_UNIT.get(one.metadata.get("unit"), hints[one.name]) for one in fields(kind)}
    optional: dict[str, Any] = {name: (given | None, None) for name, given in types.items()}
    return create_model("Planned", __base__=Planned, __module__=__name__, **optional)


_OfAnyKind: Any = with_parameters_of(FAULTS)


class Fault(_OfAnyKind):
    """One fault: its kind is one of `rayemu.faults`, whose parameters it has.

    `module` is a number or "random" (seeded); what is not of a module hits every one without it. `duration`
    (written `for`) in seconds, None until the end of the run.
    """
