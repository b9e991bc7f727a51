"""YAML text to plain data: scalars as YAML 1.2 reads them; duplicate keys and what fills memory refused."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable
from typing import Any

import yaml

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


class _Short(reprlib.Repr):
    """A repr that does not walk through everything that a few aliases of YAML can stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 200, 200
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: self.maxstring])

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**100 else f"a number of more than {x.bit_length() * 3 // 10} digits"


_SHORT = _Short()


def show(value: object) -> str:
    """The value as YAML data looks in Python, cut where it would hide the message."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


class YamlError(ValueError):
    """A text that is not YAML; `line` and `column` count from 1, and are 0 where nobody knows."""

    def __init__(self, problem: str, line: int = 0, column: int = 0) -> None:
        super().__init__(problem)
        self.line, self.column = line, column


class Loader(yaml.SafeLoader):
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


Loader.yaml_implicit_resolvers = {}
Loader.add_constructor(_INT, Loader.construct_yaml_int)
for _tag, _pattern, _first in SCALARS:
    Loader.add_implicit_resolver(_tag, _pattern, _first)


def _refusal(node: yaml.Node, text: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def parse(text: str) -> Any:
    """Read YAML text. Raises YamlError."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise YamlError(problem, *((mark.line + 1, mark.column + 1) if mark else ())) from None
    except RecursionError:
        raise YamlError("lists or mappings lie too deep in each other") from None
