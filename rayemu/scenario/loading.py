"""YAML text to plain data: scalars as YAML 1.2 reads them, duplicate keys refused, with dotted overrides."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

from rayemu.scenario.errors import ScenarioError, show

# The core schema of YAML 1.2 (section 10.3.2), and the merge key. In 1.1, which PyYAML reads by itself,
# 010 is 8, 1:30 is 90, `on` is true, 1_0 is 10, and 1e3 is text.
_INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))
SCALARS: list[tuple[str, re.Pattern[str], list[str]]] = [
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_INT, re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        _FLOAT,
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
    (_MERGE, re.compile(r"^<<$"), ["<"]),
]


DEEPEST = 20  # steps of a path in an assignment, several times what any scenario has


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 that refuses a key given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # ids of mappings whose merge keys are resolved; nodes live as long as this
        self._flat: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merge keys; before that the keys are as they were written, and each may be there once."""
        if id(node) not in self._flat:
            self._flat.add(id(node))
            seen = set()
            for written, _ in node.value:
                key = _MERGE if written.tag == _MERGE else self.construct_object(written, deep=True)
                if not isinstance(key, Hashable):
                    raise _refusal(written, f"{show(key)} is not a key; write a name or a number")
                if key in seen:
                    name = "<<" if key == _MERGE else key
                    raise _refusal(written, f"the key {show(name)} is given twice")
                seen.add(key)
            super().flatten_mapping(node)
            # What is merged comes first, and the last one of a key wins. Merges of merges would multiply.
            by_key = {self.construct_object(pair[0], deep=True): pair for pair in node.value}
            node.value = list(by_key.values())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The node's value; what its tag's constructor has against it is a ConstructorError with a place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise _refusal(node, f"{show(node.value)} cannot be read as {tag}") from None

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)


def _refusal(node: yaml.Node, text: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def parse(text: str, source: str) -> Any:
    """Reads YAML text. Raises ScenarioError with the source, line and column of a mistake."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = getattr(error, "problem", None) or error
        raise ScenarioError([f"{where}: {' '.join(str(problem).split())}"]) from None
    except RecursionError:
        raise ScenarioError([f"{source}: lists or mappings lie too deep in each other"]) from None


def _value(text: str, path: str) -> Any:
    """The value of an assignment: YAML, but without comments, since a path may hold " #"."""
    value = parse(text, path)
    ends = (yaml.BlockEndToken, yaml.StreamEndToken)
    tokens = [token for token in yaml.scan(text, Loader=_Loader) if not isinstance(token, ends)]
    comment = text[tokens[-1].end_mark.index :].strip()
    if not comment.startswith("#"):
        return value
    if len(tokens) == 1 or (len(tokens) == 2 and getattr(tokens[1], "plain", False)):
        return text.strip()  # of a plain scalar, or nothing but what looks like a comment
    raise ScenarioError(
        [f"{path}: {show(comment)} would be a comment; leave it out, or put quotes around the value"]
    )


def override(data: Any, assignments: Iterable[str]) -> Any:
    """A copy of `data` with assignments like "model.top_k=4" or "faults.0.at.batch=5" applied in order.

    Values are YAML. Raises ScenarioError for an assignment that cannot be read or has nowhere to go.
    """
    data = copy.deepcopy(data)
    problems = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        steps = [step.strip() for step in path.split(".")]
        if not equals or not all(steps) or len(steps) > DEEPEST:
            shown = assignment if len(assignment) <= 80 else f"{assignment[:76]} ..."
            problems.append(
                f"{shown}: is not an assignment; write a dotted path = a value, like model.top_k=4"
            )
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
