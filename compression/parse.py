"""Codecs written as text or plain data: "sparse(0.1)+int8(group=128)+zstd" or {"int8": {"group": 128}}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import CodecError
from .stage import Stage

_STAGE = re.compile(r"\s*([A-Za-z]\w*)\s*(?:\(([^()]*)\))?\s*(\+|$)")
_INTEGER = re.compile(r"[+-]?\d+")


def parse_stages(spec: str | Mapping[str, Any], table: Mapping[str, type[Stage]]) -> tuple[Stage, ...]:
    """Stages named by a spec.

    Text: stage names joined by "+", parameters in brackets, with or without their names. Mapping: stage
    names, in order, to a mapping of parameters, one bare value for the first parameter, or None.
    Raises CodecError naming what is unknown and what is allowed.
    """
    if isinstance(spec, str):
        return tuple(_make(name, args, kwargs, table) for name, args, kwargs in _read(spec))
    if isinstance(spec, Mapping):
        stages = []
        for name, given in spec.items():
            if isinstance(given, Mapping):
                stages.append(_make(name, [], dict(given), table))
            else:
                stages.append(_make(name, [] if given is None else [given], {}, table))
        return tuple(stages)
    raise CodecError(f"a codec is given as text or as a mapping of stages, not {type(spec).__name__}")


def _read(text: str) -> list[tuple[str, list[Any], dict[str, Any]]]:
    found, position, more = [], 0, True
    while more:
        match = _STAGE.match(text, position)
        if match is None:
            raise CodecError(f"codec {text!r} is unreadable at {text[position:]!r}; try 'int8+zstd'")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for item in (match[2] or "").split(",") if (match[2] or "").strip() else []:
            key, equals, value = item.rpartition("=")
            if not equals:
                args.append(_number(value, text))
            elif key.strip() in kwargs:
                raise CodecError(f"cannot read codec {text!r}: {key.strip()} is given twice")
            else:
                kwargs[key.strip()] = _number(value, text)
        found.append((match[1], args, kwargs))
        position, more = match.end(), match[3] == "+"
    return found


def _number(text: str, spec: str) -> int | float:
    text = text.strip()
    try:
        return int(text) if _INTEGER.fullmatch(text) else float(text)
    except ValueError:
        raise CodecError(f"cannot read codec {spec!r}: {text!r} is not a number") from None


def _make(name: Any, args: list[Any], kwargs: dict[str, Any], table: Mapping[str, type[Stage]]) -> Stage:
    stage = table.get(name) if isinstance(name, str) else None
    if stage is None:
        raise CodecError(f"unknown codec stage {name!r}; known are {', '.join(table)}")
    names = stage.parameter_names()
    unknown = [key for key in kwargs if key not in names]
    if unknown or len(args) > len(names):
        allowed = ", ".join(names) if names else "none"
        raise CodecError(f"{name}: unknown parameter {(unknown or args[-1:])[0]!r}; allowed: {allowed}")
    twice = set(names[: len(args)]) & set(kwargs)
    if twice:
        raise CodecError(f"{name}: {twice.pop()} is given twice")
    return stage(*args, **kwargs)
