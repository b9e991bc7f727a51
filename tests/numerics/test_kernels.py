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
    assert facts["way"] != "element by element", f"no quick way for {facts['kernels']}"
