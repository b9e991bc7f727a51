"""Hardware from YAML: what is wrong with a file is said in one line, with field, value and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayemu.hardware import HardwareError, load_hardware
from rayemu.hardware.describe import figures

from .toy import TOY, number, toy

BANDWIDTH = "module.banks.bandwidth"


def problems(folder: Path, *changes: str, text: str | bytes = TOY) -> list[str]:
    file = folder / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(HardwareError) as refused:
        load_hardware(file, *changes)
    lines = [line.removeprefix(str(file)).lstrip(": ") for line in refused.value.problems]
    assert all("\n" not in line and len(line) < 400 for line in lines)
    return lines


def test_values_apart_from_their_sources(tmp_path: Path) -> None:
    hardware = toy(tmp_path, "module.banks.count={value: 3, source: counted, remark: twice}")
    assert hardware.spec.module.banks.count == 3
    assert hardware.sources["module.banks.count"] == "counted"
    assert hardware.sources["links.module.latency"] == "made up"
    assert hardware.remarks == {"module.banks.count": "twice"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (f"{BANDWIDTH}.value=0 GB/s", f"{BANDWIDTH}: '0 GB/s' is not allowed; it must be more than 0"),
        (f"{BANDWIDTH}.value=-3 GB/s", f"{BANDWIDTH}: '-3 GB/s' is not allowed; it must be more than 0"),
        (f"{BANDWIDTH}.value=16", f"{BANDWIDTH}: 16 is not allowed; write a number with its unit, like "),
        (f"{BANDWIDTH}.value=16 W", f"{BANDWIDTH}: '16 W' is not allowed; write a number with its unit"),
        (f"{BANDWIDTH}.value=.nan", f"{BANDWIDTH}: nan is not allowed"),
        (f"{BANDWIDTH}.value=.inf", f"{BANDWIDTH}: inf is not allowed"),
        (f"{BANDWIDTH}.value=1e30 GB/s", f"{BANDWIDTH}: '1e30 GB/s' is not allowed; it must be at most 1"),
        (f"{BANDWIDTH}.source=", f"{BANDWIDTH}: '9 B/s' has no source; write {{value: '9 B/s', source: "),
        (f"{BANDWIDTH}.source='  '", f"{BANDWIDTH}: '9 B/s' has no source; write {{value: '9 B/s', source: "),
        (f"{BANDWIDTH}=9 B/s", f"{BANDWIDTH}: '9 B/s' has no source; write {{value: '9 B/s', source: "),
        (f"{BANDWIDTH}=.5 kB/s", f"{BANDWIDTH}: '.5 kB/s' has no source"),
        (f"{BANDWIDTH}.value=null", f"{BANDWIDTH}: None is not allowed; write a number with its unit"),
        ("module.external={source: x}", "module.external: has no value; write {value: "),
        (f"{BANDWIDTH}.sauce=x", f"{BANDWIDTH}.sauce: unknown key; known: value, source"),
        (number("module.banks.bandwith", "9 B/s"), "module.banks.bandwith: unknown key; known: count"),
        ("nonsense=3", "nonsense: unknown key; known: name, about"),
        ("module.banks.count.value=16.5", "module.banks.count: 16.5 is not allowed; it should be"),
        ("module.banks.count.value=0", "module.banks.count: 0 is not allowed; it should be"),
        (f"module.banks.count.value={'9' * 90}", "module.banks.count: "),
        (number("module.banks.share", 1.5), "module.banks.share: 1.5 is not allowed; it should be"),
        (number("module.banks.share", ".nan"), "module.banks.share: nan is not allowed"),
        ("module.compute.precision=fp7", "module.compute.precision: 'fp7' is not allowed; allowed: 'fp64'"),
        ("module.compute.precision=int4", "module.compute.precision: int4 has no rate; "),
        (number("module.compute.rates.fp7", "1 FLOP/s"), "module.compute.rates.fp7: 'fp7' is not allowed"),
        ("module=3", "module: 3 is not allowed; it takes keys: banks"),
        (number("module.banks.limit", "19 B/s"), "module.banks.limit: 19 B/s is more than all banks"),
        (number("energy.parts.hbm", "1 pJ/bit"), "energy.parts: they are 1 pJ/bit together"),
        (number("energy.busy", "0 W"), "energy.busy: 0 W is not more than energy.static, 0 W"),
        (
            "links.module.topology={kind: torus, dimensions: [4, 4]}",
            "links.module.topology.dimensions: [4, 4] ",
        ),
        (
            "links.module.topology={kind: ring, dimensions: {value: [4, 4], source: made up}}",
            "links.module.topology.dimensions: only a torus has them, this is ring",
        ),
        (
            "links.module.topology={kind: ring, arity: {value: 4, source: made up}}",
            "links.module.topology.arity: only a fat tree has it, this is ring",
        ),
        (
            "links.module.topology={kind: fat_tree, arity: {value: 5, source: made up}}",
            "links.module.topology.arity: 5 is not allowed; half of a switch's ports go up: even",
        ),
    ],
)
def test_one_line_with_field_value_and_remedy(tmp_path: Path, change: str, line: str) -> None:
    (said,) = problems(tmp_path, change)
    assert said.startswith(line)


def test_every_number_that_is_missing_is_named(tmp_path: Path) -> None:
    text = "\n".join(line for line in TOY.splitlines() if "bandwidth" not in line)
    paths = ("module.banks.bandwidth", "links.module.bandwidth", "host.bandwidth")
    assert problems(tmp_path, text=text) == [f"{path}: is missing" for path in paths]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TOY + "name: again\n", "the key 'name' is given twice"),
        ("", "None is not a hardware; it takes keys"),
        ("- 1\n", "[1] is not a hardware"),
        (b"\xff\xfe\x00", "cannot be read: it is not UTF-8 text"),
        ("#" * (1 << 21), "is larger than 1 MiB"),
        ("module: &a {x: *a}\n", "holds more than any hardware"),
        ("name: " + "[" * 3000, "lie too deep in each other"),
        ("like: 3\n", "like: 3 is not allowed; write a hardware's name or path"),
        ("like: bad.yaml\n", "like: 'bad.yaml' leads back to itself; write one of them out"),
        ("like: no-such\n", "no such hardware or file"),
    ],
)
def test_files_that_are_no_hardware(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert any(line in said for said in problems(tmp_path, text=text))


def test_aliases_that_multiply_end_soon(tmp_path: Path) -> None:
    """Also where two files of them are laid over each other, which walks through both."""
    levels = "".join(f"l{i}: &l{i} {{a: *l{i - 1}, b: *l{i - 1}, c: *l{i - 1}}}\n" for i in range(1, 40))
    text = f"l0: &l0 {{x: 1}}\n{levels}"
    (tmp_path / "base.yaml").write_text(text)
    for like in ("", "like: base.yaml\n", "like: h100-sxm\n"):
        assert any("holds more than any hardware" in line for line in problems(tmp_path, text=like + text))


def test_a_row_of_files_like_each_other_ends(tmp_path: Path) -> None:
    """Five are read, the sixth is refused, and what leads back to itself is told as that."""
    (tmp_path / "0.yaml").write_text(TOY)
    for n in range(1, 7):
        (tmp_path / f"{n}.yaml").write_text(f"like: {n - 1}.yaml\nname: number {n}\n")
    assert load_hardware(tmp_path / "5.yaml").name == "number 5"
    with pytest.raises(HardwareError, match=r"1\.yaml: like: '0\.yaml' is the 6th in a row; write one"):
        load_hardware(tmp_path / "6.yaml")
    (tmp_path / "0.yaml").write_text("like: ./2.yaml\n")
    with pytest.raises(HardwareError, match=r"0\.yaml: like: '\./2\.yaml' leads back to itself"):
        load_hardware(tmp_path / "2.yaml")


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    for path, said in (
        (str(tmp_path), "cannot be read: Is a directory"),
        ("h100-smx", "(did you mean h100-sxm?)"),
        (str(tmp_path / "none.yaml"), "no such hardware or file"),
        ("x\0y", "is not the path of a file"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("/dev/zero", "is larger than 1 MiB"),
    ):
        with pytest.raises(HardwareError) as refused:
            load_hardware(path)
        assert said in refused.value.problems[0]


def test_a_file_like_another_says_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TOY)
    changed = tmp_path / "changed.yaml"
    changed.write_text(
        "like: base.yaml\nname: changed\nenergy: {compute: null, weights: {value: 2 pJ/bit, source: mine}}\n"
    )
    with pytest.raises(HardwareError, match=r"energy\.compute: is missing"):
        load_hardware(changed)
    changed.write_text("like: base.yaml\nname: changed\nenergy: {weights: {value: 2 pJ/bit, source: mine}}\n")
    hardware = load_hardware(changed)
    assert (hardware.name, hardware.spec.energy.weights) == ("changed", 2e-12)
    assert hardware.sources["energy.weights"] == "mine"
    assert hardware.sources["energy.compute"] == "made up"


def test_another_hardware_has_another_name(tmp_path: Path) -> None:
    """One that is like another, or was changed by assignments, is told apart from it in tables."""
    (tmp_path / "base.yaml").write_text(TOY)
    weights = "energy: {weights: {value: 2 pJ/bit, source: mine}}\n"
    for file, name in (("mine", "mine"), ("toy", "toy (changed)")):  # a file of the base's name, elsewhere
        (tmp_path / f"{file}.yaml").write_text(f"like: base.yaml\n{weights}")
        assert load_hardware(tmp_path / f"{file}.yaml").name == name
    (tmp_path / "third.yaml").write_text("like: mine.yaml\n")
    assert load_hardware(tmp_path / "third.yaml").name == "third"
    base, change = tmp_path / "base.yaml", "module.banks.count.value=3"
    assert load_hardware(base).name == "toy"
    assert load_hardware(base, change).name == "toy (changed)"
    assert load_hardware(base, change, "name=three banks").name == "three banks"


def test_an_assignment_s_example_is_of_hardware(tmp_path: Path) -> None:
    assert problems(tmp_path, "module") == [
        "module: is not an assignment; write a dotted path = a value, like module.banks.count.value=32"
    ]


def test_what_a_file_leaves_out_is_shown_as_assumed(tmp_path: Path) -> None:
    """Numbers that nobody gave have no source but that; words need none."""
    found = {figure.path: (figure.text, figure.source) for figure in figures(toy(tmp_path))}
    assert found["module.banks.count"] == ("2", "made up")
    assert found["module.banks.share"] == ("1.0", "not given: what is assumed where nothing is said")
    assert found["module.compute.precision"] == ("fp16", "")


def test_a_module_that_cannot_hold_its_experts(tmp_path: Path) -> None:
    hardware = toy(tmp_path)  # 100 B a module
    hardware.check_fits([100, 0, 50])
    hardware.check_fits([])
    with pytest.raises(HardwareError) as refused:
        hardware.check_fits([60, 101, 50])
    assert refused.value.problems == (
        "toy: module 1 would hold 101 B of experts and has room for 100 B; take at least 3 modules, "
        "weights of fewer bits, or hardware with more memory",
    )
    fetch = "module.fetch={bandwidth: {value: 4 B/s, source: x}, latency: {value: 1 s, source: x}}"
    toy(tmp_path, fetch).check_fits([1e6])
    with pytest.raises(HardwareError, match="has room for 1 kB"):
        toy(tmp_path, fetch, number("module.fetch.capacity", "1 kB")).check_fits([1e6])


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("h100", "h100-offload or h100-sxm"),
        ("Text-PIM", "text-pim"),
        ("hbm2pim", "hbm2-pim"),
        ("nowhere/upmem.yaml", "upmem"),
    ],
)
def test_a_name_that_is_nearly_one(asked: str, meant: str) -> None:
    with pytest.raises(HardwareError, match=re.escape(f"(did you mean {meant}?)")):
        load_hardware(asked)


def test_names_that_no_message_shows_in_full() -> None:
    for name in ("", "x" * 5000, "a\x1b[31mb"):
        with pytest.raises(HardwareError) as refused:
            load_hardware(name)
        (line,) = refused.value.problems
        assert len(line) < 400 and line.isprintable() and line.startswith(("'", "b'"))


def test_text_that_a_terminal_would_obey_and_names_that_fit_no_table(tmp_path: Path) -> None:
    """All text comes to the terminal: names, sources, remarks."""
    red = r"a\e[31mred"
    for change in (
        f'name="{red}"',
        f'about="{red}"',
        f'{BANDWIDTH}.source="{red}"',
        f'{BANDWIDTH}.remark="{red}"',
    ):
        (line,) = problems(tmp_path, change)
        assert line.isprintable() and "has control characters" in line
        assert line.startswith(change.partition("=")[0])
    for name in ('""', '" "', "n" * 81, r'"a\nb"'):
        (line,) = problems(tmp_path, f"name={name}")
        assert "is not allowed; allowed: a line of 1 to 80 characters" in line


def test_what_is_like_nothing_names_both_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("like: nothing\n")
    with pytest.raises(HardwareError, match=r"mine\.yaml: like: .*nothing: no such hardware"):
        load_hardware(file)


def test_changes_that_are_no_text() -> None:
    with pytest.raises(HardwareError, match=r"\['a=1'\]: is not an assignment"):
        load_hardware("upmem", ["a=1"])  # type: ignore[arg-type]
    assert load_hardware(b"upmem").name == "upmem"  # type: ignore[arg-type]
