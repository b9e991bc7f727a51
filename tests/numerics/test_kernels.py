"""Rows keep their bits with all kernels of OpenBLAS that this processor runs, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rayemu.numerics.blas import NEEDS, runnable

ROOT = Path(__file__).parents[2]

# The quickest way that was found to hold for each, by the name that OpenBLAS reports (docs/architecture.md):
# the way, the multiple of rows, and whether BLAS is kept to one thread. A slower one would be as exact, so
# nothing but its cost would show.
MANY_THREADS = ("padded rows", 1, False)
ONE_THREAD = ("padded rows", 8, True)
MENDED = ("mended edges", 12, True)
QUICKEST = {
    "Katmai": ONE_THREAD,  # reported for Prescott
    "Prescott": ONE_THREAD,
    "Nehalem": ONE_THREAD,
    "Sandybridge": MANY_THREADS,
    "Haswell": MENDED,
    "Zen": MENDED,
    "SkylakeX": MANY_THREADS,
    "Cooperlake": MANY_THREADS,
    "SapphireRapids": MANY_THREADS,
}


def python(kernels: str, threads: int, *arguments: str) -> str:
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernels, "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def architecture(kernels: str) -> str:
    """What this library makes of a name: PyPI's NumPy has Haswell's kernels for Zen, too."""
    script = "import numpy, rayemu.numerics as n; print(n.blas_info()[0]['architecture'])"
    return python(kernels, 1, "-c", script).strip()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", NEEDS)
def test_rows_keep_their_bits(kernels: str, threads: int) -> None:
    if kernels not in runnable():
        pytest.skip(f"this processor lacks one of {', '.join(sorted(NEEDS[kernels]))}")
    same = next(name for name in NEEDS if architecture(name) == architecture(kernels))
    if same != kernels:
        return  # the library has one set of kernels for both: shown by the other's test
    facts = json.loads(python(kernels, threads, "tests/numerics/every_row.py").splitlines()[-1])
    made = facts["way"], facts["multiple"], facts["alone"]
    assert made[0] != "element by element", f"no quick way for {facts['kernels']}"
    assert made == QUICKEST.get(architecture(kernels), made), f"not the quickest way for {facts['kernels']}"
