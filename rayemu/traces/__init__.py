"""Routing traces: expert loads as other systems record them, in and out, their plans, and their statistics.

    trace = read("expert-load.json")                                   # a Trace, by content
    write("loads.npz", "rayemu", trace)
    plan = read_plan("moe_load_balancer.yaml", num_experts=256)        # a Plan
    write_plan("plan.json", "eplb", phy2log, num_experts=256, num_devices=32)

A format is a class of its own, listed in FORMATS; the file says which one it is, else the caller names it.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.traces.arrays import Npy, Own
from rayemu.traces.errors import TraceError
from rayemu.traces.flame import Flame
from rayemu.traces.histories import Eplb, Vllm
from rayemu.traces.plan import Plan, make_plan
from rayemu.traces.sglang import Sglang
from rayemu.traces.source import Format, Source
from rayemu.traces.trace import NO_EXPERT, Trace, from_choices
from rayemu.traces.trtllm import Trtllm

FORMATS: dict[str, Format] = {
    format.name: format for format in (Own(), Eplb(), Vllm(), Sglang(), Trtllm(), Flame(), Npy())
}
_DAMAGED = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)

__all__ = [
    "FORMATS",
    "NO_EXPERT",
    "Format",
    "Plan",
    "Trace",
    "TraceError",
    "from_choices",
    "make_plan",
    "read",
    "read_plan",
    "read_trace",
    "write",
    "write_plan",
]


def read(path: Path | str, format: str | None = None, **known: Any) -> Trace | Plan:
    """What a file or folder holds: a Trace or a Plan, by its content or as the named format.

    `known` are what the file may not say: `experts`, `devices`, `shared`, `tokens`, `window` (see `Source`).
    Raises TraceError that names the file, what is wrong and what to do.
    """
    path = Path(os.path.expanduser(path))
    source = Source(path, **known)
    chosen = format
    try:
        if not path.exists():
            raise TraceError("no such file or folder")
        family = _named(format) if format is not None else _recognised(source)
        chosen = family.name
        found = family.read(source)
        if isinstance(found, Trace) and source.experts not in (None, found.experts):
            raise TraceError(f"loads of {found.experts} experts; {source.experts} were asked for")
        return found
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _DAMAGED as error:
        what = "more than the memory holds" if isinstance(error, MemoryError) else f"damaged: {error}"
        raise TraceError(f"{path}: as {chosen}: {what}") from None


def read_trace(path: Path | str, format: str | None = None, **known: Any) -> Trace:
    """As `read`, for loads: a plan is refused."""
    found = read(path, format, **known)
    if not isinstance(found, Trace):
        raise TraceError(f"{path}: a plan; expected loads of experts")
    return found


def read_plan(
    path: Path | str,
    format: str | None = None,
    num_experts: int | None = None,
    num_devices: int | None = None,
    shared: int | None = None,
) -> Plan:
    """A plan in any format: `phy2log` [L, R], `num_experts`, `num_devices` (None where nobody says).

    Bare lists [L, R] are a plan here. Raises TraceError; see `make_plan`.
    """
    found = read(path, format, experts=num_experts, devices=num_devices, shared=shared, plan=True)
    if not isinstance(found, Plan):
        raise TraceError(f"{path}: loads of experts; expected a plan")
    return found


def write(path: Path | str, format: str, found: Trace | Plan) -> None:
    """Write a trace or plan. Raises TraceError for what the format cannot hold, and for unwritable paths."""
    path = Path(os.path.expanduser(path))
    try:
        family = _named(format)
        target = path.resolve()  # what a link names, since what is written takes the place of what is there
        if not path.name or path.name == ".." or not target.name:
            raise TraceError("a folder; name what to write in it")
        if not target.parent.is_dir():
            raise TraceError(f"no folder {path.parent}")
        if target.exists() and not target.is_file() and not target.is_dir():
            raise TraceError("neither a file nor a folder, so it would be lost; name another")
        if isinstance(found, Plan):
            family.write_plan(target, found)
        else:
            family.write(target, found)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_plan(
    path: Path | str,
    format: str,
    phy2log: np.ndarray,
    num_experts: int,
    num_devices: int,
    layers: Sequence[int] | None = None,
    shared: int = 0,
) -> None:
    """Write slots [L, R], those of a device in a row, as eplb, vllm, sglang, trtllm, npy or rayemu.

    `layers` [L] are the model's numbers of the layers, 0 to L - 1 without. Raises TraceError.
    """
    write(path, format, make_plan(phy2log, num_experts, num_devices, layers, shared))


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise TraceError(f"{name} is no format; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


def _recognised(source: Source) -> Format:
    for family in FORMATS.values():
        if family.recognises(source):
            return family
    raise TraceError(f"its format is not known; name it with --format, one of {', '.join(FORMATS)}")
