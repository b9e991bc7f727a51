"""A scenario's text to plain data, with dotted overrides."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import yaml

from rayemu import plain_yaml
from rayemu.scenario.errors import ScenarioError, show

DEEPEST = 20  # steps of a path in an assignment, several times what any scenario has


def parse(text: str, source: str) -> Any:
    """Reads YAML text. Raises ScenarioError with the source, line and column of a mistake."""
    try:
        return plain_yaml.parse(text)
    except plain_yaml.YamlError as error:
        where = f"{source}:{error.line}:{error.column}" if error.line else source
        raise ScenarioError([f"{where}: {error}"]) from None


def _value(text: str, path: str) -> Any:
    """The value of an assignment: YAML, but without comments, since a path may hold " #"."""
    value = parse(text, path)
    ends = (yaml.BlockEndToken, yaml.StreamEndToken)
    tokens = [token for token in yaml.scan(text, Loader=plain_yaml.Loader) if not isinstance(token, ends)]
    comment = text[tokens[-1].end_mark.index :].strip()
    if not comment.startswith("#"):
        return value
    if len(tokens) == 1 or (len(tokens) == 2 and getattr(tokens[1], "plain", False)):
        return text.strip()  # of a plain scalar, or nothing but what looks like a comment
    raise ScenarioError(
        [f"{path}: {show(comment)} would be a comment; leave it out, or put quotes around the value"]
    )


def override(data: Any, assignments: Iterable[str], example: str = "model.top_k=4") -> Any:
    """A copy of `data` with assignments like "model.top_k=4" or "faults.0.at.batch=5" applied in order.

    Values are YAML. Raises ScenarioError for an assignment that cannot be read or has nowhere to go; what it
    shows as an `example` of one is for data of this sort.
    """
    data = copy.deepcopy(data)
    problems = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        steps = [step.strip() for step in path.split(".")]
        if not equals or not all(steps) or len(steps) > DEEPEST:
            shown = assignment if len(assignment) <= 80 else f"{assignment[:76]} ..."
            problems.append(f"{shown}: is not an assignment; write a dotted path = a value, like {example}")
            continue
        if steps[0] == "faults" and len(steps) > 1 and isinstance(data, dict):
            data.setdefault("faults", [])  # the one list of a scenario may not be there yet
        try:
            data = _assign(data, steps, _value(value, path))
        except ScenarioError as error:
            problems += error.problems
        except (LookupError, TypeError) as error:
            problems.append(f"{path}: {error.args[0]}")
    if problems:
        raise ScenarioError(problems)
    return data


def _assign(data: Any, steps: list[str], value: Any) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(data, (list, tuple)):
        items = list(data)
        if not re.fullmatch("[0-9]{1,9}", step) or int(step) > len(items):
            raise LookupError(f"{step!r} is not a position in a list of {len(items)}; one more appends")
        position = int(step)
        items[position : position + 1] = [
            _assign(items[position] if position < len(items) else None, rest, value)
        ]
        return items
    if data is not None and not isinstance(data, dict):
        raise TypeError(f"{show(data)} has no key {step!r}")
    mapping = dict(data or {})
    key: Any = int(step) if re.fullmatch("[0-9]{1,9}", step) else step
    mapping[key] = _assign(mapping.get(key), rest, value)
    return mapping
