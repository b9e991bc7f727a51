"""What sections of a scenario are made of: strict frozen models, quantities, strategies with parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializationInfo,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from rayemu.scenario.errors import Problem, close_to, not_one_of, problem_of, refuse, show
from rayemu.units import exact_bytes, exact_rate, exact_seconds, parse_bytes, parse_rate, parse_seconds


class Section(BaseModel):
    """A part of a scenario: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True
    )


def _naming_the_value(parse: Callable[[object], Any]) -> BeforeValidator:
    def checked(value: object) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"{show(value)} {error}") from None

    return BeforeValidator(checked)


WITH_UNITS = {"units": True}  # the context of a dump that people read; other dumps give plain numbers


def _writing(write: Callable[[Any], str]) -> PlainSerializer:
    def written(value: Any, info: SerializationInfo) -> Any:
        return write(value) if info.context == WITH_UNITS and value is not None else value

    return PlainSerializer(written)


Bytes = Annotated[int, _naming_the_value(parse_bytes), _writing(exact_bytes)]
Rate = Annotated[int, _naming_the_value(parse_rate), _writing(exact_rate)]
Seconds = Annotated[float, _naming_the_value(parse_seconds), _writing(exact_seconds)]


def known_in(table: Mapping[str, Any], what: str) -> BeforeValidator:
    """A field's check that its value names a member of a table of strategies."""

    def checked(value: object) -> object:
        if value is not None and (not isinstance(value, str) or value not in table):
            raise ValueError(not_one_of(value, what, table))
        return value

    return BeforeValidator(checked)


LARGEST_INT = 2**63


def parameter_problems(
    strategy: type,
    kind: str,
    given: Mapping[str, Any],
    without: tuple[str, ...] = (),
    own: tuple[str, ...] = ("kind",),
    family: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """What is wrong with a strategy's parameters: names and types against its dataclass fields.

    `own` are keys of the section, which a mistyped name may have meant. A field that is marked as `nested`
    holds other strategies of the `family`, which are looked at too.
    """
    hints = get_type_hints(strategy)
    fields = {f.name: f for f in dataclasses.fields(strategy) if f.init and f.name not in without}
    allowed = list(fields)
    problems = []
    for name, value in given.items():
        if name not in allowed:
            takes = f"takes: {', '.join(allowed)}" if allowed else "takes no parameters"
            also = f"; keys beside them: {', '.join(own)}" if len(own) > 1 else ""
            meant = close_to(name, [*allowed, *own])
            problems.append(Problem((name,), f"is not a parameter of {kind}, which {takes}{also}{meant}"))
            continue
        try:
            finite = ConfigDict(strict=True, allow_inf_nan=False)
            TypeAdapter(hints[name], config=finite).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input ", "it ", 1)
            problems.append(Problem((name,), f"{show(value)} is not allowed; {message}"))
            continue
        if isinstance(value, int) and not -LARGEST_INT <= value < LARGEST_INT:  # NumPy takes no larger ones
            problems.append(Problem((name,), f"{show(value)} is not allowed; allowed: less than 2**63"))
        if family is not None and fields[name].metadata.get("nested"):
            found = _nested_problems(family, value, without)
            problems += [Problem((name, *problem.path), problem.text) for problem in found]
    return problems


def _nested_problems(family: Mapping[str, Any], value: Any, without: tuple[str, ...]) -> list[Problem]:
    """What is wrong with {kind: ..., parameters}, or with those of a list."""
    if not isinstance(value, Mapping):
        listed = [
            (n, problem)
            for n, each in enumerate(value)
            for problem in _nested_problems(family, each, without)
        ]
        return [Problem((n, *problem.path), problem.text) for n, problem in listed]
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in family:
        return [Problem(("kind",), not_one_of(kind, "a strategy", family))]
    params = {name: each for name, each in value.items() if name != "kind"}
    return parameter_problems(family[kind], kind, params, without, family=family)


def build_problems(build: Callable[[], Any], section: str) -> list[Problem]:
    """What building a strategy has against its parameters, as seen from inside `section`."""
    try:
        build()
    except ValueError as error:
        problem = problem_of(error, section)
        return [Problem(problem.path[1:] if problem.path[0] == section else problem.path, problem.text)]
    return []


class Strategy(Section):
    """A section that names a strategy of a family and holds its parameters beside whatever keys of its own.

    Defaults of the parameters are filled in without being marked as set: an override of `kind` must not trip
    over them, see `without_defaults`.
    """

    model_config = ConfigDict(extra="allow")
    FAMILY: ClassVar[Mapping[str, Any]]
    WHAT: ClassVar[str]  # one of the family, as errors call it
    kind: str

    @field_validator("kind", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        if not isinstance(value, str) or value not in cls.FAMILY:
            raise ValueError(not_one_of(value, cls.WHAT, cls.FAMILY))
        return value

    @model_validator(mode="after")
    def _buildable(self) -> Strategy:
        own = tuple(type(self).model_fields)
        problems = parameter_problems(
            self.FAMILY[self.kind], self.kind, self.params, own=own, family=self.FAMILY
        )
        refuse(problems or build_problems(self.build, type(self).__name__.lower()))
        object.__setattr__(self, "__pydantic_extra__", dataclasses.asdict(self.build()))
        return self

    @property
    def params(self) -> dict[str, Any]:
        """The strategy's parameters."""
        return dict(self.model_extra or {})

    def build(self) -> Any:
        """Make the strategy."""
        return self.FAMILY[self.kind](**self.params)


def without_defaults(section: Section, given: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a dump what was filled in, not given: the defaults of strategies' parameters."""
    kept = {}
    for key, value in given.items():
        own = getattr(section, key, None)
        if isinstance(section, Strategy) and key not in section.model_fields_set:
            continue
        kept[key] = without_defaults(own, value) if isinstance(own, Section) else value
    return kept
