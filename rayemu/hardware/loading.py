"""From a YAML file to `Hardware`: values apart from their sources, and everything checked."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any

from pydantic import ValidationError

from rayemu.hardware.quantities import write
from rayemu.hardware.spec import Hardware as Spec
from rayemu.plain_yaml import show
from rayemu.scenario.errors import ScenarioError, close_to, lines
from rayemu.scenario.loading import override, parse

LARGEST = 1 << 20  # bytes of a file, hundreds of times what any hardware has
LIKE = 5  # files, each like the next
DEEPEST, MOST = 10, 10_000  # levels and entries of its data, which a few aliases of YAML can multiply
LONGEST = 80  # characters of a name, which stands in tables
EXAMPLE = "module.banks.count.value=32"  # of a change
_CHANGED = " (changed)"  # after the name of what another was changed into
_KEYS = ("value", "source", "remark")
_WORDS = ("name", "about", "remark", "precision", "kind", "activations")  # fields that hold no number


class HardwareError(ScenarioError):
    """A hardware that cannot be used; `problems` has one line for each thing that is wrong with it."""


@dataclass(frozen=True)
class Loaded:
    """A checked hardware and where each of its numbers is from: by dotted path, as "links.module.latency"."""

    spec: Spec
    sources: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


def packaged() -> list[str]:
    """The names of the hardware that comes with rayemu."""
    files = resources.files("rayemu.hardware_presets").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load(source: str | os.PathLike[str], changes: tuple[str, ...] = ()) -> Loaded:
    """Load a hardware by the name of a packaged one or by the path of a file.

    `changes` are assignments such as "module.banks.count.value=32"; what they make of it is not of the same
    name, unless they set that. Raises HardwareError, naming the field, the value and what is allowed.
    """
    where = os.fsdecode(source)
    try:
        base = _data(where)
        data = override(base, changes, EXAMPLE)
    except ScenarioError as error:
        raise HardwareError(error.problems) from None
    except RecursionError:
        raise HardwareError([f"{where}: lists or mappings lie in themselves"]) from None
    _refuse_large(data, where)
    sources: dict[str, str] = {}
    remarks: dict[str, str] = {}
    problems: list[str] = []
    plain = _Splitter(sources, remarks, problems).split(data, ())
    try:
        spec = Spec.model_validate(plain)
    except ValidationError as error:
        found = [line.replace(".[key]:", ":") for line in lines(error, Spec)]
        problems = [*found, *(p for p in problems if not any(map(partial(_same, p), found)))]
    else:
        problems += _impossible(spec)
    if problems:
        raise HardwareError([f"{where}: {problem}" for problem in problems])
    if changes and spec.name == base.get("name"):
        spec = spec.model_copy(update={"name": f"{spec.name}{_CHANGED}"})
    return Loaded(spec, sources, remarks)


def _data(source: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a file says, laid over the hardware that it is `like`, if it names one; `above` are like it.

    Such a file that gives no name is named after itself: it is another hardware than the one it is like.
    """
    try:
        text = _read(source)
    except HardwareError as error:
        asked = f"{above[-1]}: like: " if above else ""
        raise HardwareError([f"{asked}{problem}" for problem in error.problems]) from None
    data = parse(text, source)
    if not isinstance(data, dict):
        raise HardwareError([f"{source}: {show(data)} is not a hardware; it takes keys: name, module, ..."])
    _refuse_large(data, source)  # what is laid over each other is walked through
    if "like" not in data:
        return data
    base = data.pop("like")
    if not isinstance(base, str):
        raise HardwareError([f"{source}: like: {show(base)} is not allowed; write a hardware's name or path"])
    path = base
    if base not in packaged():
        path = os.path.join(os.path.dirname(source), os.path.expanduser(base))
    files = *above, source
    if os.path.realpath(path) in map(os.path.realpath, files):
        raise HardwareError([f"{source}: like: {show(base)} leads back to itself; write one of them out"])
    if len(files) > LIKE:
        raise HardwareError(
            [f"{source}: like: {show(base)} is the {LIKE + 1}th in a row; write one of them out"]
        )
    below = _data(path, files)
    merged: dict[str, Any] = _laid_over(below, data)
    if "name" in below and "name" not in data:
        own = os.path.splitext(os.path.basename(source))[0]
        merged["name"] = own if own != below["name"] else f"{own}{_CHANGED}"
    return merged


def _refuse_large(data: Any, where: str) -> None:
    """Raise HardwareError where data has more levels or entries than any hardware, aliases counted again."""
    entries = 0

    def count(value: Any, path: tuple[str, ...]) -> None:
        nonlocal entries
        entries += 1
        if len(path) > DEEPEST or entries > MOST:
            at = ".".join(path[:3])
            raise HardwareError([f"{where}: {at}: holds more than any hardware; write what is meant"])
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if isinstance(inner, (dict, list)):
                count(inner, (*path, str(key)))
            else:
                entries += 1

    count(data, ())


def _laid_over(base: Any, over: Any) -> Any:
    """Mappings key by key, a number with its source as one; what is null is taken away."""
    both = (base, over)
    if not all(isinstance(side, dict) and not set(side) & {"value", "source"} for side in both):
        return over
    merged = {**base, **{key: _laid_over(base.get(key), value) for key, value in over.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def _read(source: str) -> str:
    known = packaged()
    path = os.path.expanduser(source)
    if source in known and not os.path.isfile(path):
        file = resources.files("rayemu.hardware_presets").joinpath(f"{source}.yaml")
        return file.read_text(encoding="utf-8")
    try:
        with open(path, "rb") as opened:
            data = opened.read(LARGEST + 1)
        text = data.decode("utf-8") if len(data) <= LARGEST else ""
    except FileNotFoundError:
        names = f"{', '.join(known)}{_meant(source, known)}"
        raise HardwareError(
            [f"{_short(source)}: no such hardware or file; hardware that comes with rayemu: {names}"]
        ) from None
    except UnicodeDecodeError:
        raise HardwareError([f"{source}: cannot be read: it is not UTF-8 text"]) from None
    except OSError as error:
        raise HardwareError([f"{_short(source)}: cannot be read: {error.strerror}"]) from None
    except ValueError:  # a NUL in the path
        raise HardwareError([f"{show(source)}: is not the path of a file"]) from None
    if len(data) > LARGEST:
        raise HardwareError([f"{source}: is larger than 1 MiB; a hardware is a file of some 100 lines"])
    return text


def _short(source: str) -> str:
    """A name or path for a message."""
    return source if len(source) <= 200 and source.isprintable() and source else show(source)


def _meant(source: str, known: list[str]) -> str:
    """Ask whether the hardware that begins so was meant, or else the one that looks most alike."""
    name = os.path.basename(source).lower().removesuffix(".yaml")
    begin = [one for one in known if name and one.startswith(name)]
    return f" (did you mean {' or '.join(begin)}?)" if begin else close_to(name, known)


@dataclass
class _Splitter:
    """Takes the values out of the data; notes where they are from, and complains where they do not say."""

    sources: dict[str, str]
    remarks: dict[str, str]
    problems: list[str]

    def split(self, data: Any, path: tuple[str, ...]) -> Any:
        if isinstance(data, dict):
            if set(data) & {"value", "source"}:
                return self.quantity(data, ".".join(path))
            return {key: self.split(value, (*path, str(key))) for key, value in data.items()}
        if isinstance(data, list):
            self.problems.append(f"{'.'.join(path)}: {show(data)} has no source; {_written(data)}")
            return tuple(data)
        if isinstance(data, str):
            self.text(data, ".".join(path))
        number = isinstance(data, (int, float)) and not isinstance(data, bool)
        if number or (isinstance(data, str) and re.match(r"\s*[-+]?\.?[0-9]", data)):
            if path[-1:] and path[-1] not in _WORDS:
                self.problems.append(f"{'.'.join(path)}: {show(data)} has no source; {_written(data)}")
        return data

    def text(self, text: str, path: str) -> None:
        """Complain of what a terminal would not show but do."""
        if not all(character.isprintable() or character in "\n\t" for character in text):
            self.problems.append(
                f"{path}: {show(text)} is not allowed; it has control characters, leave them out"
            )

    def quantity(self, data: dict[Any, Any], path: str) -> Any:
        value, source = data.get("value"), data.get("source")
        if unknown := [key for key in data if key not in _KEYS]:
            meant = close_to(unknown[0], list(_KEYS))
            self.problems.append(f"{path}.{unknown[0]}: unknown key; known: {', '.join(_KEYS)}{meant}")
        elif value is None:
            self.problems.append(
                f"{path}: has no value; write {{value: NUMBER UNIT, source: ...}}, or leave it out"
            )
        elif not isinstance(source, str) or not source.strip():
            self.problems.append(f"{path}: {show(value)} has no source; {_written(value)}")
        else:
            self.sources[path] = source.strip()
            self.text(source, f"{path}.source")
            if data.get("remark"):
                self.remarks[path] = str(data["remark"]).strip()
                self.text(self.remarks[path], f"{path}.remark")
        return tuple(value) if isinstance(value, list) else value


def _same(problem: str, other: str) -> bool:
    """Whether two lines are of one field, or the first of something in what the second refuses."""
    one, two = problem.partition(":")[0], other.partition(":")[0]
    return one == two or one.startswith(f"{two}.")


def _written(value: Any) -> str:
    return f"write {{value: {show(value)}, source: where it is from}}"


def _impossible(spec: Spec) -> list[str]:
    """What no field alone can tell."""
    found = []
    if not spec.name.strip() or len(spec.name) > LONGEST or "\n" in spec.name:
        found.append(f"name: {show(spec.name)} is not allowed; allowed: a line of 1 to {LONGEST} characters")
    compute, banks = spec.module.compute, spec.module.banks
    if compute.precision not in compute.rates:
        rates = ", ".join(compute.rates) or "none"
        found.append(
            f"module.compute.precision: {compute.precision} has no rate; module.compute.rates has: {rates}"
        )
    together = banks.count * banks.bandwidth
    if banks.limit is not None and banks.limit > together:
        given, most = write(banks.limit, "rate"), write(together, "rate")
        found.append(
            f"module.banks.limit: {given} is more than all banks together read, {most}; leave it out"
        )
    energy = spec.energy
    if energy.parts and abs(sum(energy.parts.values()) / max(energy.weights, 1e-30) - 1) > 0.01:
        given, parts = (
            write(energy.weights, "energy_per_bit"),
            write(sum(energy.parts.values()), "energy_per_bit"),
        )
        found.append(f"energy.parts: they are {parts} together, energy.weights is {given}; make them agree")
    if energy.busy is not None and energy.busy <= energy.static:
        given, least = write(energy.busy, "power"), write(energy.static, "power")
        found.append(
            f"energy.busy: {given} is not more than energy.static, {least}; it is the limit under load"
        )
    tiers = list((spec.tiers or {}).items())
    for (above, faster), (below, slower) in itertools.pairwise(tiers):
        if slower.latency < faster.latency or slower.bandwidth > faster.bandwidth:
            found.append(f"tiers.{below}: is quicker than {above}, which is before it; put the fastest first")
    for name, level in (("bank", spec.links.bank), ("module", spec.links.module), ("node", spec.links.node)):
        topology = level.topology if level is not None else None
        if topology is None:
            continue
        where = f"links.{name}.topology"
        if topology.kind != "torus" and topology.dimensions is not None:
            found.append(f"{where}.dimensions: only a torus has them, this is {topology.kind}")
        if topology.kind != "fat_tree" and topology.arity is not None:
            found.append(f"{where}.arity: only a fat tree has it, this is {topology.kind}")
        elif topology.arity is not None and topology.arity % 2:
            found.append(
                f"{where}.arity: {topology.arity} is not allowed; half of a switch's ports go up: even"
            )
    return found
