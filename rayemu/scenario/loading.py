"""YAML text to plain data: strict about duplicate keys, and with dotted overrides."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import yaml

from rayemu.scenario.errors import ScenarioError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads 1e-3 as a number, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} is given twice", node.start_mark
            )
        return mapping


_Loader.yaml_implicit_resolvers = copy.deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str, source: str) -> Any:
    """Reads YAML text. Raises ScenarioError with the source, line and column of a mistake."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ScenarioError([f"{where}: {getattr(error, 'problem', None) or error}"]) from None


def override(data: Any, assignments: Iterable[str]) -> Any:
    """A copy of `data` with assignments like "model.top_k=4" or "faults.0.at.batch=5" applied in order.

    Values are YAML. Raises ScenarioError for an assignment that cannot be read or has nowhere to go.
    """
    data = copy.deepcopy(data)
    problems = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        steps = [step.strip() for step in path.split(".")]
        if not equals or not all(steps):
            problems.append(
                f"{assignment}: is not an assignment; write a dotted path = a value, like model.top_k=4"
            )
            continue
        if steps[0] == "faults" and len(steps) > 1 and isinstance(data, dict):
            data.setdefault("faults", [])  # the one list of a scenario may not be there yet
        try:
            data = _assign(data, steps, parse(value, path))
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
        if not step.isdigit() or int(step) > len(items):
            raise LookupError(f"{step!r} is not a position in a list of {len(items)}; one more appends")
        position = int(step)
        items[position : position + 1] = [
            _assign(items[position] if position < len(items) else None, rest, value)
        ]
        return items
    if data is not None and not isinstance(data, dict):
        raise TypeError(f"{data!r} has no key {step!r}")
    mapping = dict(data or {})
    key: Any = int(step) if step.isdigit() else step
    mapping[key] = _assign(mapping.get(key), rest, value)
    return mapping
