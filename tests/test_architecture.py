"""The shape of the house: which folder may import which, and that the packaging knows them all."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "rayemu": "rayemu",
    "cluster": "rayemu.cluster",
    "compression": "rayemu.compression",
    "launch/scenarios": "rayemu.scenarios",
    "launch/hardware": "rayemu.hardware_presets",
    "benchmarks": "rayemu.benchmarks",
}
OURS = ("rayemu", "cluster", "compression", "benchmarks", "launch", "tests")
# From the ground up: a room may import those that come before it, and none that comes after.
ROOMS = (
    "units",
    "plain_yaml",
    "compression",
    "numerics",
    "machine",
    "routing",
    "placement",
    "alltoall",
    "model",
    "balance",
    "traces",
    "arrivals",
    "streams",
    "protocol",
    "faults",
    "scenario",
    "hardware",
    "drivers",
    "pricing",
    "profiling",
    "report",
    "study",
    "cluster",
    "emulator",
    "running",
    "calibration",
    "doctor",
    "cli_errors",
    "cli",
    "benchmarks",
)
# The only ones above `cluster`.
PUBLIC_FACE = {"rayemu/emulator.py", "rayemu/cli/running.py", "rayemu/cli_errors.py", "rayemu/doctor.py"}


def python_files(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def module_name(file: Path) -> str:
    """The name that a file is imported by: cluster/x.py is rayemu.cluster.x."""
    folder = next(f for f in sorted(FOLDERS, key=len, reverse=True) if file.is_relative_to(ROOT / f))
    inside = file.relative_to(ROOT / folder).with_suffix("")
    return ".".join([FOLDERS[folder], *inside.parts]).removesuffix(".__init__")


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names that a module imports, wherever in it, also inside functions and TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = node.level - is_package
            base = module.split(".")[: -above or None] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            yield from (
                a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


def imported_by(file: Path) -> set[str]:
    return set(imports(file.read_text(encoding="utf-8"), module_name(file), file.name == "__init__.py"))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_import_reader_sees_every_form() -> None:
    source = """
import rayemu.cluster.actor as a
from rayemu import cluster
from . import sibling
from .deep import name
from ..other import thing
def f():
    from rayemu.cluster.x import y
    importlib.import_module("rayemu.cluster.lazy")
"""
    expected = {"rayemu.cluster.actor", "rayemu.cluster", "rayemu.cluster.x.y", "rayemu.cluster.lazy"}
    from_module = {"rayemu.a.sibling", "rayemu.a.deep.name", "rayemu.other.thing"}
    assert set(imports(source, "rayemu.a.b", False)) == expected | from_module
    assert set(imports(source, "rayemu.a", True)) == expected | from_module


def test_files_are_named_as_they_are_imported() -> None:
    assert module_name(ROOT / "cluster/x/y.py") == "rayemu.cluster.x.y"
    assert module_name(ROOT / "compression/__init__.py") == "rayemu.compression"
    assert module_name(ROOT / "launch/scenarios/__init__.py") == "rayemu.scenarios"


def in_rooms() -> list[Path]:
    """All files of ours but the package's own, through which one reaches the public face."""
    files = (file for folder in FOLDERS for file in python_files(folder))
    return [
        file
        for file in files
        if module_name(file) not in ("rayemu", "rayemu.scenarios", "rayemu.hardware_presets")
    ]


def reaching_up(room: str, names: set[str]) -> set[str]:
    """Those of the imported names that are of a room above this one."""
    above = ROOMS[ROOMS.index(room) + 1 :]
    return {name for name in names if any(within(name, f"rayemu.{upper}") for upper in above)}


@pytest.mark.parametrize("file", in_rooms(), ids=relative)
def test_arrows_point_one_way(file: Path) -> None:
    room = module_name(file).split(".")[1]
    assert room in ROOMS, "a new room needs its place among the others"
    names = imported_by(file)
    assert not reaching_up(room, names)
    assert not {name for name in names if name.split(".")[0] in set(OURS) - {"rayemu"}}


def test_a_room_that_reaches_up_is_seen() -> None:
    names = {"rayemu.compression.Codec", "rayemu.model.reference.route", "rayemu.drivers.record", "numpy"}
    assert reaching_up("scenario", names) == {"rayemu.drivers.record"}
    assert reaching_up("numerics", names) == {"rayemu.model.reference.route", "rayemu.drivers.record"}
    assert not reaching_up("benchmarks", names)


def test_every_room_is_there() -> None:
    assert {module_name(file).split(".")[1] for file in in_rooms()} == set(ROOMS)


@pytest.mark.parametrize("file", python_files("compression"), ids=relative)
def test_compression_imports_nothing_of_ours_but_itself(file: Path) -> None:
    names = {name for name in imported_by(file) if name.split(".")[0] in OURS or within(name, "ray")}
    assert not {name for name in names if not within(name, "rayemu.compression")}


@pytest.mark.parametrize("file", python_files("rayemu"), ids=relative)
def test_only_the_public_face_imports_the_cluster(file: Path) -> None:
    names = imported_by(file)
    if relative(file) not in PUBLIC_FACE:
        assert not {name for name in names if within(name, "rayemu.cluster")}
        assert not {name for name in names if within(name, "rayemu.benchmarks")}
        assert not {name for name in names if within(name, "ray")}, "Ray is for cluster/ and the public face"


@pytest.mark.parametrize("file", python_files("rayemu/protocol") + python_files("compression"), ids=relative)
def test_the_protocol_touches_no_socket_clock_thread_or_random_source(file: Path) -> None:
    outside = ("socket", "time", "random", "asyncio", "zmq", "multiprocessing", "selectors")
    names = imported_by(file)
    assert not {name for name in names if any(within(name, module) for module in outside)}
    used = set(re.findall(r"threading\.(\w+)", file.read_text(encoding="utf-8")))
    assert used <= {"local"}, "buffers per thread are fine, threads and locks are not"


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_package_folder_is_packaged() -> None:
    listed = re.search(r"^packages = \[(.*?)\]", pyproject(), re.MULTILINE | re.DOTALL)
    assert listed
    folders = {
        module_name(file) for folder in FOLDERS for file in python_files(folder) if file.name == "__init__.py"
    }
    assert set(re.findall(r'"([^"]+)"', listed[1])) == folders
    for folder in FOLDERS:
        loose = {file.parent for file in python_files(folder) if not (file.parent / "__init__.py").exists()}
        assert not loose, "a folder with modules needs an __init__.py to be packaged"


def test_constraints_are_exact_pins_without_urls() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(
            r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*(; python_version (<|>=) \"3\.\d+\")?", pin
        ), pin
    named = {re.split("[=;]", pin)[0].lower().replace("_", "-") for pin in pins}
    wanted = re.findall(r'"([A-Za-z0-9_.-]+)(?:>=[0-9.]+)"', pyproject())
    assert not {name.lower().replace("_", "-") for name in wanted} - named - {"setuptools"}


def test_importing_rayemu_is_cheap() -> None:
    """Actors import it: it must not pull in Ray, pydantic or NumPy before they are needed."""
    script = (
        "import sys, rayemu\n"
        "heavy = {'ray', 'pydantic', 'numpy', 'yaml', 'typer', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert rayemu.Scenario.__name__ == 'Scenario'\n"
        "assert not {'ray', 'scipy', 'typer', 'rayemu.cluster'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_the_standard_library_s_compression_is_found_from_the_repository_s_root() -> None:
    """Python 3.14 has a package of that name, which gzip and others import."""
    script = (
        "import os, sys, gzip, zipfile, compression\n"
        "assert list(compression.__path__) == [os.path.join(os.path.dirname(os.__file__), 'compression')]\n"
        "assert gzip.decompress(gzip.compress(b'x')) == b'x'\n"
        "assert 'numpy' not in sys.modules, 'it ran our package'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import rayemu

    with pytest.raises(AttributeError, match="nonesuch"):
        rayemu.nonesuch  # noqa: B018
