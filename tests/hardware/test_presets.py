"""The hardware that comes with rayemu: complete, with sources, and what its figures say of each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from rayemu import cli
from rayemu.hardware import load_hardware, packaged
from rayemu.hardware.describe import NOT_GIVEN, as_data, derived, figures
from rayemu.hardware.spec import Hardware as Spec

NAMES = packaged()


def test_those_that_are_promised() -> None:
    promised = "text-pim hbm2-pim attacc-hbm3-pim attacc-hbm3-pim-16x gddr6-aim upmem h100-sxm h100-offload"
    assert set(promised.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_says_where_it_is_from(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.name == name
    for figure in figures(hardware):
        if figure.source not in ("", NOT_GIVEN):
            assert len(figure.source) > 6, figure
            if figure.source.startswith("derived"):
                assert ":" in figure.source, "a derived number says by which formula"
    given = {figure.path for figure in figures(hardware)}
    assert set(hardware.sources) <= given, "a source without a figure is not shown"


@pytest.mark.parametrize("name", NAMES)
def test_sources_stand_on_their_own(name: str) -> None:
    text = " ".join(load_hardware(name).sources.values())
    assert not re.search(r"/work|shared/|anchors", text, re.IGNORECASE)


def test_ridges_of_real_parts_and_of_the_texts_module() -> None:
    """FLOP per byte: 1.2288 / 1.2288, 512 / 512, 6.0336 / 6.0336, 1000 / 256, 989 / 3.35."""
    expected = {"hbm2-pim": 1, "gddr6-aim": 1, "attacc-hbm3-pim": 1, "attacc-hbm3-pim-16x": 1}
    expected |= {"text-pim": 3.90625, "h100-sxm": 295.22}
    for name, ridge in expected.items():
        found = {figure.name: figure.value for figure in derived(load_hardware(name))}
        assert found["ridge"] == pytest.approx(ridge, rel=1e-4)


def test_peak_and_reached() -> None:
    found = {figure.name: figure.value for figure in derived(load_hardware("attacc-hbm3-pim"))}
    assert found["internal_bandwidth"] == pytest.approx(16 * 670.4e9)
    assert found["internal_bandwidth_reached"] == pytest.approx(9 * 670.4e9)
    assert found["inside_over_outside"] == pytest.approx(9)
    h100 = {figure.name: figure.value for figure in derived(load_hardware("h100-sxm"))}
    assert h100["internal_bandwidth_reached"] == pytest.approx(3.0e12, rel=1e-3)


def test_data_in_si_units() -> None:
    data = as_data(load_hardware("h100-sxm"))
    assert data["figures"]["module.banks.bandwidth"] == {
        "value": 3.35e12,
        "unit": "B/s",
        "text": "3.35 TB/s",
        "source": "NVIDIA H100 data sheet, SXM5: 3.35 TB/s",
    }
    assert data["figures"]["energy.parts.interposer"]["unit"] == "J/bit"
    assert data["figures"]["energy.links.module"]["value"] == pytest.approx(1.3e-12)
    assert data["figures"]["module.compute.precision"]["source"] == ""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(
        cli.app, ["hardware", *arguments], catch_exceptions=False, env={"COLUMNS": "180"}
    )


def test_the_command_lists_and_shows() -> None:
    shown = invoke()
    assert shown.exit_code == 0
    assert re.search(r"text-pim +256 GB/s +1 TFLOP/s +3\.91 FLOP/B +64 GB ", shown.stdout)
    assert "h100-offload" in shown.stdout and re.search(r"h100-offload.* 256 GB", shown.stdout)
    narrow = CliRunner().invoke(cli.app, ["hardware"], env={"COLUMNS": "80"}).stdout
    assert re.search(r"text-pim +256 GB/s +1 TFLOP/s +3\.91 FLOP/B +64 GB *\n", narrow)
    one = invoke("text-pim")
    assert re.search(r"module\.banks\.bandwidth +16 GB/s +text 000", one.stdout)
    assert "four times that of real parts" in one.stdout
    assert [d["name"] for d in json.loads(invoke("--json").stdout)] == NAMES
    changed = json.loads(invoke("text-pim", "--json", "--set", "module.banks.count.value=32").stdout)
    assert changed["derived"]["internal_bandwidth"]["value"] == 32 * 16e9


def test_the_command_refuses_in_one_line() -> None:
    for arguments in (
        ("text-pin",),
        ("/",),
        ("text-pim", "--set", "module.banks.count.value=0"),
        ("--set", "a=1"),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1 and refused.stderr.startswith("rayemu: ")


def test_every_field_is_documented() -> None:
    """A key that a file may have is in docs/hardware.md: as `key`, or `.key` after the one above it."""
    told = re.findall(r"`([a-z_.]+)`", (Path(__file__).parents[2] / "docs" / "hardware.md").read_text())
    documented = {word for name in told for word in name.split(".")}

    def keys(section: type[BaseModel]) -> Iterator[str]:
        for name, field in section.model_fields.items():
            yield name
            for inner in (field.annotation, *get_args(field.annotation)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from keys(inner)

    assert sorted({*keys(Spec)} - documented) == []
