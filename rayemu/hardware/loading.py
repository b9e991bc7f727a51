"""From a YAML file to `Hardware`: values apart from their sources, and everything checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayemu.hardware.spec import Hardware as Spec
from rayemu.plain_yaml import show
from rayemu.scenario.errors import ScenarioError, close_to, lines
from rayemu.scenario.loading import override, parse


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

    `changes` are assignments such as "module.banks.count.value=32". Raises HardwareError, naming the field,
    the value and what is allowed.
    """
    text, where = _read(str(source))
    try:
        data = override(parse(text, where), changes)
    except ScenarioError as error:
        raise HardwareError(error.problems) from None
    if not isinstance(data, dict):
        raise HardwareError([f"{where}: {show(data)} is not a hardware; it takes keys: name, module, ..."])
    sources: dict[str, str] = {}
    remarks: dict[str, str] = {}
    problems: list[str] = []
    plain = _split(data, (), sources, remarks, problems)
    if problems:
        raise HardwareError([f"{where}: {problem}" for problem in problems])
    try:
        spec = Spec.model_validate(plain)
    except ValidationError as error:
        raise HardwareError([f"{where}: {line}" for line in lines(error, Spec)]) from None
    if found := _impossible(spec):
        raise HardwareError([f"{where}: {problem}" for problem in found])
    return Loaded(spec, sources, remarks)


def _read(source: str) -> tuple[str, str]:
    known = packaged()
    path = Path(os.path.expanduser(source))
    if source in known and not path.is_file():
        file = resources.files("rayemu.hardware_presets").joinpath(f"{source}.yaml")
        return file.read_text(encoding="utf-8"), source
    try:
        return path.read_text(encoding="utf-8"), source
    except FileNotFoundError:
        names = f"{', '.join(known)}{close_to(source, known)}"
        raise HardwareError(
            [f"{source}: no such hardware or file; hardware that comes with rayemu: {names}"]
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise HardwareError([f"{source}: cannot be read: {reason}"]) from None


def _split(
    data: Any,
    path: tuple[str, ...],
    sources: dict[str, str],
    remarks: dict[str, str],
    problems: list[str],
) -> Any:
    """Return the values alone; note sources, and complain about numbers that have none."""
    dotted = ".".join(path)
    if isinstance(data, dict):
        if "value" in data:
            unknown = sorted(str(key) for key in set(data) - {"value", "source", "remark"})
            source = data.get("source")
            if unknown:
                problems.append(f"{dotted}.{unknown[0]}: unknown key; known: value, source, remark")
            elif not isinstance(source, str) or not source.strip():
                problems.append(f"{dotted}: {show(data['value'])} has no source; say where it is from")
            else:
                sources[dotted] = source.strip()
                if data.get("remark"):
                    remarks[dotted] = str(data["remark"]).strip()
            return data["value"]
        return {key: _split(v, (*path, str(key)), sources, remarks, problems) for key, v in data.items()}
    number = isinstance(data, (int, float)) and not isinstance(data, bool)
    if number or (isinstance(data, str) and data[:1].isdigit() and path[-1:] not in (("name",), ("about",))):
        problems.append(f"{dotted}: {show(data)} has no source; write {{value: {data}, source: ...}}")
    return data


def _impossible(spec: Spec) -> list[str]:
    """What no field alone can tell."""
    found = []
    compute, banks = spec.module.compute, spec.module.banks
    if compute.precision not in compute.rates:
        rates = ", ".join(compute.rates) or "none"
        found.append(
            f"module.compute.precision: {compute.precision} has no rate; module.compute.rates has: {rates}"
        )
    if banks.limit is not None and banks.limit > banks.count * banks.bandwidth:
        found.append("module.banks.limit: is more than all banks together read; leave it out")
    for name, level in (("bank", spec.links.bank), ("module", spec.links.module), ("node", spec.links.node)):
        topology = level.topology if level is not None else None
        if topology is None:
            continue
        where = f"links.{name}.topology"
        if topology.kind != "torus" and topology.dimensions is not None:
            found.append(f"{where}.dimensions: only a torus has them, this is {topology.kind}")
        if topology.kind != "fat_tree" and topology.arity is not None:
            found.append(f"{where}.arity: only a fat tree has it, this is {topology.kind}")
    return found
