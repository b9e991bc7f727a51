"""What is wrong with a scenario, as lines that a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from rayemu.plain_yaml import show


class ScenarioError(ValueError):
    """A scenario that cannot be run; `problems` has one line for each thing that is wrong with it."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Problem(NamedTuple):
    """One finding: where (keys and list positions), and what, naming the value and what is allowed."""

    path: tuple[str | int, ...]
    text: str


def refuse(problems: Iterable[Problem]) -> None:
    """Raises the problems together, for use inside a pydantic validator; does nothing when there are none."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("scenario", "{text}", {"text": problem.text}),
            loc=problem.path,
            input=None,
        )
        for problem in problems
    ]
    if details:
        raise ValidationError.from_exception_data("scenario", details)


def not_one_of(value: object, what: str, known: Iterable[str]) -> str:
    """Says that a name is not in a table, what the table has, and which name may have been meant."""
    known = list(known)
    return f"{show(value)} is not {what}; known: {', '.join(known)}{close_to(value, known)}"


def problem_of(error: ValueError, section: str) -> Problem:
    """Reads another module's ValueError: "section.key is VALUE; allowed: ..." or "key: ..." says where.

    Keys inside of keys, and positions in lists, follow by dots: "section.key.1.inner is VALUE; ...".
    """
    text = str(error)
    if match := re.fullmatch(r"([a-z]\w*(?:\.\w+)+) is (.*); allowed: (.*)", text, re.DOTALL):
        verdict = match[2] if match[2].startswith("no ") else f"{match[2]} is not allowed"
        verdict = f"is {verdict}" if match[2].startswith("no ") else verdict
        return Problem(tuple(match[1].split(".")), f"{verdict}; allowed: {match[3]}")
    if match := re.fullmatch(r"(\w+): (.*)", text, re.DOTALL):
        return Problem((section, match[1]), match[2])
    return Problem((section,), text)


def lines(error: ValidationError, top: type[BaseModel]) -> list[str]:
    """One line per finding of pydantic: the dotted path, the value, what is allowed."""
    found = [
        # pydantic marks what is wrong with a key, rather than with what stands there
        (".".join(str(step) for step in e["loc"] if step != "[key]") or "scenario", _text(e, top))
        for e in error.errors()
    ]
    return [_shortened(" ".join(f"{path}: {text}".split())) for path, text in found]


def _shortened(line: str) -> str:
    """A line without the middle of its longest numbers."""
    return re.sub(r"([0-9]{20})[0-9]{40,}", r"\1...", line)


def _text(error: Any, top: type[BaseModel]) -> str:
    kind, value, message = error["type"], error["input"], error["msg"]
    if kind in ("scenario", "value_error"):
        return str(message).removeprefix("Value error, ")
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        known = _keys(top, error["loc"][:-1])
        return f"unknown key; known: {', '.join(known)}{close_to(error['loc'][-1], known)}"
    if kind == "literal_error":
        allowed, meant = error["ctx"]["expected"], close_to(value, _words(error))
        return f"{show(value)} is not allowed; allowed: {allowed}{meant}"
    if kind == "bool_type":
        return f"{show(value)} is not allowed; allowed: true or false"
    if kind in ("tuple_type", "list_type"):
        return f"{show(value)} is not allowed; allowed: a list"
    if kind == "invalid_key":
        return f"the key {show(value)} is not allowed; allowed: names"
    if kind == "dict_type":
        return f"{show(value)} is not allowed; allowed: a mapping"
    if kind == "model_type":
        keys = _keys(top, error["loc"])
        meant = f" (did you mean {{kind: {value}}}?)" if "kind" in keys and isinstance(value, str) else ""
        return f"{show(value)} is not allowed; it takes keys: {', '.join(keys)}{meant}"
    return f"{show(value)} is not allowed; {re.sub(r'^[A-Z][a-z]+ should', 'it should', message)}"


def _words(error: Any) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def close_to(value: object, known: list[str]) -> str:
    """Ask whether a known name that looks like the value was meant; nothing where there is none."""
    close = difflib.get_close_matches(str(value), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys that the section at `path` knows."""
    for step in path:
        field = next((f for name, f in model.model_fields.items() if step in (name, f.alias)), None)
        if field is None:  # a position in a list of sections: `model` is already the section's class
            continue
        found = _section_in(field.annotation)
        if found is None:
            return []
        model = found
    return [field.alias or name for name, field in model.model_fields.items()]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _section_in(inner)) is not None:
            return found
    return None
