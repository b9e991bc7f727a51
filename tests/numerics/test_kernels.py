"""Rows keep their bits with all kernels of OpenBLAS that this processor runs, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = {  # what a processor must have for kernels of this name (flags of /proc/cpuinfo)
    "Prescott": {"pni"},
    "Nehalem": {"sse4_2"},
    "Sandybridge": {"avx"},
    "Haswell": {"avx2", "fma"},
    "Zen": {"avx2", "fma"},
    "SkylakeX": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "Cooperlake": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
    "SapphireRapids": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
}


@cache
def flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split(":")[1].split()) if lines else frozenset()


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
    if NEEDS[kernels] - flags():
        pytest.skip(f"this processor lacks {', '.join(sorted(NEEDS[kernels] - flags()))}")
    same = next(name for name in NEEDS if architecture(name) == architecture(kernels))
    if same != kernels:
        return  # the library has one set of kernels for both: shown by the other's test
    facts = json.loads(python(kernels, threads, "tests/numerics/every_row.py").splitlines()[-1])
    assert facts["way"] != "element by element", f"no quick way for {facts['kernels']}"
