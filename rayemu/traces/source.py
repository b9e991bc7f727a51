"""What all formats share: a file that is looked at, the interface of a format, and tables out of JSON."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.traces.errors import TraceError
from rayemu.traces.plan import Plan
from rayemu.traces.trace import Trace

MOST_NUMBERS = 1 << 28  # in one table
_DEEPEST = 4  # one more than any table has


class Source:
    """A file or folder to read, and what the caller knows about it.

    `experts` are the routed experts of a layer where known, `devices` those of a plan; `tokens` limits how
    many tokens' choices are kept, and `window` is how many tokens make one where the source has no batches.
    """

    def __init__(
        self,
        path: Path,
        experts: int | None = None,
        devices: int | None = None,
        shared: int | None = None,
        tokens: int | None = None,
        window: int = 1 << 16,
        plan: bool = False,
    ) -> None:
        self.path = path
        self.experts, self.devices, self.shared = experts, devices, shared
        self.tokens, self.window = tokens, window
        self.plan = plan  # whether only a plan will do

    @cached_property
    def head(self) -> bytes:
        """The first bytes of the file; none of a folder."""
        if self.path.is_dir():
            return b""
        with open(self.path, "rb") as file:
            return file.read(64)

    @cached_property
    def json(self) -> Any:
        """The file's JSON, or None where it is no JSON (which is told by its first letter)."""
        if self.head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
            return None
        try:
            return json.loads(self.path.read_text("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise TraceError(f"damaged JSON: {error}") from None

    def fields(self) -> dict[str, Any]:
        """The file's JSON object; empty where it is none."""
        return self.json if isinstance(self.json, dict) else {}


class Format:
    """One format of traces or plans, or of both. What it does not hold it refuses."""

    name = ""
    suffix = ""  # of a file that it writes

    def recognises(self, source: Source) -> bool:
        """Whether the content is of this format."""
        raise NotImplementedError

    def read(self, source: Source) -> Trace | Plan:
        """What a source holds. Raises TraceError."""
        raise NotImplementedError

    def write(self, path: Path, trace: Trace) -> None:
        """Write a trace. Raises TraceError for what the format cannot hold."""
        raise TraceError(f"the format {self.name} holds no loads")

    def write_plan(self, path: Path, plan: Plan) -> None:
        """Write a plan. Raises TraceError for what the format cannot hold."""
        raise TraceError(f"the format {self.name} holds no plans; those that do: eplb, vllm, sglang, trtllm")


def table(value: Any, what: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """Nested lists of numbers as an array of one of the allowed dimensions. Raises TraceError."""
    if isinstance(value, np.ndarray):
        found = value
    elif not isinstance(value, list):
        raise TraceError(f"{what}: found {type(value).__name__}; expected nested lists of numbers")
    else:
        _refuse_bomb(value, what)
        try:
            found = np.array(value)
        except (ValueError, OverflowError):
            raise TraceError(f"{what}: {_ragged(value)}") from None
    if found.dtype.kind not in "iuf" or not found.size:
        raise TraceError(f"{what}: found {_kind(found)}; expected nested lists of numbers")
    if found.ndim not in dimensions:
        raise TraceError(
            f"{what}: lists nested {found.ndim} deep; expected {' or '.join(map(str, dimensions))}"
        )
    return found


def integers(value: Any, what: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """As `table`, for whole numbers."""
    found = table(value, what, dimensions)
    if found.dtype.kind == "f":
        raise TraceError(f"{what}: found fractions; expected whole numbers")
    return found


def count(value: Any, what: str) -> int:
    """A positive whole number. Raises TraceError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 20:
        raise TraceError(f"{what}: found {shown(value)}; expected a positive whole number")
    return value


def shown(value: Any) -> str:
    """A value out of a file for an error; of containers the type alone, since they may hold anything."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, (bool, float)) or value is None or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value)
    return type(value).__name__


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)


def _refuse_bomb(value: list[Any], what: str) -> None:
    """Raise TraceError for lists that hold each other: small in a file, and huge as a table."""
    lists = [value]
    for _ in range(_DEEPEST):
        if sum(map(len, lists)) > MOST_NUMBERS:
            raise TraceError(f"{what}: more than {MOST_NUMBERS} numbers")
        lists = [entry for row in lists for entry in row if isinstance(entry, list)]
        if not lists:
            return
    raise TraceError(f"{what}: lists nested more than {_DEEPEST} deep")


def _ragged(value: list[Any]) -> str:
    """Where nested lists have not all the same length, in words."""
    lengths = [len(row) if isinstance(row, list) else -1 for row in value]
    for number, length in enumerate(lengths):
        if length != lengths[0]:
            got = "no list" if length < 0 else f"{length} entries"
            return f"entry {number} has {got}, entry 0 has {lengths[0]}; expected the same everywhere"
    for number, row in enumerate(value):
        if isinstance(row, list) and any(isinstance(entry, list) for entry in row):
            inner = {len(entry) if isinstance(entry, list) else -1 for entry in row}
            if len(inner) > 1:
                return f"entry {number}: {_ragged(row)}"
    return "lists of different lengths, or no numbers"


def _kind(found: np.ndarray) -> str:
    kinds = {"U": "text", "b": "true and false", "O": "a mixture", "S": "text"}
    return "nothing" if not found.size else kinds.get(found.dtype.kind, str(found.dtype))
