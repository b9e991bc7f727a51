"""A hardware as rows to be shown: every number with its unit and its source, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from rayemu.hardware.banks import row_share
from rayemu.hardware.door import Hardware
from rayemu.hardware.passes import reached_bandwidth
from rayemu.hardware.quantities import KINDS, write

NOT_GIVEN = "not given: what is assumed where nothing is said"
TOP = ("name", "about", "remark")  # not figures


@dataclass(frozen=True)
class Figure:
    """A leaf of a hardware: `value` in SI `unit` ("" for counts, shares and words), `text` for people."""

    path: str
    value: Any
    unit: str
    text: str
    source: str
    remark: str = ""


@dataclass(frozen=True)
class Derived:
    """What follows from the numbers, by which formula."""

    name: str
    value: float
    unit: str
    text: str
    formula: str


def figures(hardware: Hardware) -> list[Figure]:
    """All numbers and choices of a hardware in the order of its fields, without what it leaves out."""
    found = []
    for path, value, kind in _leaves(hardware.spec, ()):
        unit = next((u for u, factor in KINDS[kind].units.items() if factor == 1), "") if kind else ""
        text = write(value, kind) if kind else str(value)
        number = isinstance(value, (int, float, tuple)) and not isinstance(value, bool)
        source = hardware.sources.get(path, NOT_GIVEN if number else "")
        found.append(Figure(path, value, unit, text, source, hardware.remarks.get(path, "")))
    return found


def derived(hardware: Hardware) -> list[Derived]:
    """Bandwidth, rate and ridge, at their peak and as a pass reaches them."""
    banks, compute = hardware.spec.module.banks, hardware.spec.module.compute
    rate = compute.rates[compute.precision]
    inside, reached = banks.count * banks.bandwidth, reached_bandwidth(hardware.spec)
    found = [
        _quantity("internal_bandwidth", inside, "rate", "banks.count x banks.bandwidth"),
        _quantity(
            "internal_bandwidth_reached", reached, "rate", "the same within banks.limit, x banks.share"
        ),
        _quantity("rate", rate, "operations", f"compute.rates.{compute.precision}"),
        _quantity("rate_reached", rate * compute.share, "operations", "the same x compute.share"),
        _ratio(
            "ridge", rate / min(inside, banks.limit or inside), "FLOP/B", "rate / bandwidth within the limit"
        ),
        _ratio(
            "ridge_reached", rate * compute.share / reached, "FLOP/B", "rate / bandwidth, both as reached"
        ),
    ]
    if (fetch := hardware.spec.module.fetch) is not None:
        reached = fetch.bandwidth * fetch.share
        found.append(_quantity("fetched_reached", reached, "rate", "fetch.bandwidth x fetch.share"))
    if banks.rows is not None:
        found.append(
            _ratio(
                "share_by_rows", row_share(banks.rows), "", "what rows opened one by one leave; not in share"
            )
        )
    if (external := hardware.spec.module.external) is not None:
        within = min(inside, banks.limit or inside)
        found.append(
            _ratio("inside_over_outside", within / external, "", "bandwidth within the limit / external")
        )
    return found


def as_data(hardware: Hardware) -> dict[str, Any]:
    """All of it as JSON data."""
    spec = hardware.spec
    leaves = {
        f.path: {"value": f.value, "unit": f.unit, "text": f.text, "source": f.source}
        | ({"remark": f.remark} if f.remark else {})
        for f in figures(hardware)
    }
    follows = {d.name: {"value": d.value, "unit": d.unit, "formula": d.formula} for d in derived(hardware)}
    return {
        "name": spec.name,
        "about": spec.about,
        "remark": spec.remark,
        "figures": leaves,
        "derived": follows,
    }


def _quantity(name: str, value: float, kind: str, formula: str) -> Derived:
    unit = next(unit for unit, factor in KINDS[kind].units.items() if factor == 1)
    return Derived(name, value, unit, write(value, kind), formula)


def _ratio(name: str, value: float, unit: str, formula: str) -> Derived:
    return Derived(name, value, unit, f"{value:.3g} {unit}".strip(), formula)


def _leaves(section: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
    """Dotted path, value and kind of quantity of every field that is there."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is None or (not path and name in TOP):
            continue
        kind = _kind((field.annotation, *field.metadata))
        at = (*path, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, at)
        elif isinstance(value, dict) and any(isinstance(inner, BaseModel) for inner in value.values()):
            for key, inner in value.items():
                yield from _leaves(inner, (*at, key))
        elif isinstance(value, dict):
            yield from ((".".join((*at, key)), number, kind) for key, number in value.items())
        else:
            yield ".".join(at), value, kind


def _kind(annotations: tuple[Any, ...]) -> str:
    """The quantity that an annotation names somewhere inside; "" for none."""
    for inner in annotations:
        if isinstance(inner, str) and inner in KINDS:
            return inner
        if found := _kind((*get_args(inner), *getattr(inner, "__metadata__", ()))):
            return found
    return ""
