"""Denormals are computed with also where a library built with -ffast-math has switched them off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.numerics import denormals_kept, denormals_notice, keep_denormals, keeps_denormals

# What a driver does, with the library loaded before NumPy (whose BLAS then starts its threads in that mode),
# after it, or not at all. Half of the rows are tiny, and what the model makes of them is denormal.
SCRIPT = """
import ctypes, json, sys, warnings
when, library = sys.argv[1:]
if when == "before":
    ctypes.CDLL(library)
import numpy as np
from rayemu import Emulator, Scenario
from rayemu.model import reference_forward
from rayemu.model.agreement import digest
from rayemu.numerics import denormals_kept, keep_denormals, keeps_denormals
from rayemu.numerics.products import _pool
if when == "after":
    ctypes.CDLL(library)
found = {"keeps": keeps_denormals()}
scenario = Scenario.from_dict({
    "model": {"d_model": 64, "d_ff": 256, "experts": 4, "top_k": 2, "activation": "relu", "norm": False,
              "residual": False},
    "cluster": {"transport": "memory", "nodes": 2, "modules_per_node": 1},
    "exchange": {"codec": {"module": "fp8", "node": "fp8"}},
})
x = np.random.default_rng(0).standard_normal((512, 64), dtype=np.float32)
with denormals_kept():
    x[:256] *= np.float32(2.0**-130)
    double = x.astype(np.float64)
with warnings.catch_warnings(record=True) as caught, Emulator(scenario) as emulator:
    (result,) = emulator.stream([x])
    found["alike"] = bool((emulator.reference(x, result).view("u4") == result.y.view("u4")).all())
    found["double"] = emulator.forward(double).view("u4").tolist()
    found["y"] = result.y.view("u4").tolist()
    found["lossless"] = reference_forward(emulator.model, x).view("u4").tolist()
found["said"] = [str(w.message) for w in caught if w.category is RuntimeWarning]
found["digest"] = digest()
found["helper"] = _pool().submit(keeps_denormals).result()  # started from a thread that flushes them
found["after"] = keeps_denormals()
with denormals_kept():
    found["inside"] = keeps_denormals()
found["news"] = [keep_denormals(), keep_denormals(), keeps_denormals()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fast_math(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared object whose start-up code switches denormals off."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc, to build a library with -ffast-math")
    folder = tmp_path_factory.mktemp("fast")
    (folder / "fast.c").write_text("int rayemu_fast(void) { return 1; }\n")
    command = [compiler, "-shared", "-fPIC", "-ffast-math", "-o", "fast.so", "fast.c"]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder / "fast.so"


def driver(when: str, library: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", SCRIPT, when, str(library)]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def plain(fast_math: Path) -> dict[str, Any]:
    return driver("never", fast_math)


def test_this_process_keeps_denormals() -> None:
    tiny = np.float32(2.0**-126)
    assert keeps_denormals() and tiny * np.float32(0.5) > 0
    assert not keep_denormals() and denormals_notice() is None
    with denormals_kept():
        assert keeps_denormals()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_library_of_fast_math_changes_no_bit(when: str, fast_math: Path, plain: dict[str, Any]) -> None:
    assert plain["keeps"] and plain["alike"] and not plain["said"]
    rows = np.array(plain["lossless"], np.uint32).view(np.float32)
    tiny = np.abs(rows) < np.finfo(np.float32).smallest_normal
    assert (tiny & (rows != 0)).any(), "the case has denormals in it"
    found = driver(when, fast_math)
    if found["keeps"]:
        pytest.skip("this compiler's -ffast-math does not change the mode of shared libraries")
    assert found["alike"]
    for what in ("y", "double", "lossless", "digest"):
        assert found[what] == plain[what], what
    assert len(found["said"]) == 1 and "-ffast-math" in found["said"][0]
    assert not found["after"], "the user's thread has its mode back"
    assert found["inside"] and found["helper"]
    assert found["news"] == [True, False, True]
