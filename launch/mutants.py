"""Mutation testing: small changes of the code, one at a time, and how many of them the tests notice.

Run by launch/mutants.sh. mutmut changes and judges: for each change it runs the tests that pass through the
changed function, the quickest first, and stops at the first that fails. This file gives it what it needs: a
copy of the tree in the layout of the wheel (mutmut does not know the folder mapping), the tests that concern
each package, and a seeded sample of its mutants, since there are 25,000.

mutmut leaves decorated functions (properties, validators) and values outside of functions as they are.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from mutmut.stats import status_by_exit_code

if sys.version_info >= (3, 11):
    from tomllib import loads
else:
    from toml import loads  # comes with mutmut there

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".mutants"
SEEDS = "--deselect=tests/drivers/test_simulation.py::test_"
# What judges a change to a package: quick tests without a Ray cluster, and the first seeds of each kind.
TESTS = {
    "protocol": [
        "tests/protocol",
        "tests/drivers",
        *(f"{SEEDS}seeds[{n}]" for n in range(60, 360, 60)),
        *(f"{SEEDS}experts_move_through_every_fault[{n}]" for n in range(50, 200, 50)),
    ],
    "alltoall": ["tests/alltoall"],
    "routing": ["tests/routing"],
    "placement": ["tests/placement"],
    "compression": ["tests/compression"],
    "traces": ["tests/traces"],
    "balance": ["tests/balance"],
    "streams": ["tests/streams"],
    "faults": ["tests/faults"],
    "scenario": ["tests/test_scenario.py", "tests/test_scenario_refused.py", "tests/test_scenario_text.py"],
}
NOTICED = {"killed", "timeout", "segfault", "caught by type check"}


def lay_out(package: str) -> Path:
    """A fresh copy of the tree as the wheel has it, whose pyproject.toml tells mutmut of the package."""
    folder = SCRATCH / package
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    folders = loads(project)["tool"]["setuptools"]["package-dir"]
    skip = shutil.ignore_patterns("__pycache__", "results")
    for name, source in sorted(folders.items()):
        shutil.copytree(ROOT / source, folder / name.replace(".", "/"), ignore=skip)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=skip)
    settings = {
        "source_paths": [f"rayemu/{package}"],
        "also_copy": ["rayemu"],
        "pytest_add_cli_args_test_selection": TESTS[package],
        # A change that makes a test wait for ever is noticed by this, and by mutmut's own limit beyond it.
        "pytest_add_cli_args": ["--timeout=60", "-p", "no:cacheprovider"],
        "timeout_constant": 10.0,
        "timeout_multiplier": 4.0,
        "use_git_change_detection": False,
    }
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (folder / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{lines}", encoding="utf-8")
    return folder


def mutmut(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def exit_codes(folder: Path) -> dict[str, int | None]:
    """Every mutant that mutmut has made, with the exit code of its tests, None before they ran."""
    found: dict[str, int | None] = {}
    for file in sorted((folder / "mutants").rglob("*.py.meta")):
        found.update(json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"])
    return found


def judge(package: str, count: int | None, seed: int) -> dict[str, str]:
    """Verdicts, by name, on `count` mutants drawn with `seed`, or on all."""
    folder = lay_out(package)
    # mutmut makes its mutants before it sees that none has this name.
    made = mutmut(folder, "run", "none of them")
    names = sorted(exit_codes(folder))
    if not names:
        raise SystemExit(f"mutmut made no mutants of {package}:\n{made.stdout}{made.stderr}")
    chosen = names if count is None else random.Random(seed).sample(names, min(count, len(names)))
    print(f"{package}: {len(chosen)} of {len(names)} mutants, seed {seed}", flush=True)
    run = mutmut(folder, "run", *chosen)
    codes = exit_codes(folder)
    if any(codes[name] is None for name in chosen):
        said = (run.stdout + run.stderr)[-4000:]
        raise SystemExit(f"mutmut did not judge all mutants of {package}:\n{said}")
    return {name: status_by_exit_code[codes[name]] for name in sorted(chosen)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="launch/mutants.sh", description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", metavar="package", help=f"of {', '.join(TESTS)}; all, if none")
    parser.add_argument("--count", type=int, default=60, help="mutants of each package (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="which mutants are drawn (default 1)")
    parser.add_argument("--all", action="store_true", help="all mutants, instead of a sample")
    given = parser.parse_args()
    unknown = set(given.packages) - set(TESTS)
    if unknown:
        parser.error(f"no package {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    scores = []
    for package in given.packages or TESTS:
        verdicts = judge(package, None if given.all else given.count, given.seed)
        for name, verdict in verdicts.items():
            if verdict not in NOTICED:
                change = mutmut(SCRATCH / package, "show", name).stdout
                print(f"\n{verdict}: {name}\n{change}", flush=True)
        noticed = sum(verdict in NOTICED for verdict in verdicts.values())
        scores.append(f"{package}: {noticed} of {len(verdicts)} noticed, {noticed / len(verdicts):.0%}")
        print(scores[-1], flush=True)
    print("\n" + "\n".join(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
