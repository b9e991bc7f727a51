"""Processes that compute unlike each other are told apart, and their common kernels are found."""

from __future__ import annotations

import os
import pickle
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayemu.model import agreement
from rayemu.model.agreement import KernelsDiffer, agree, digest, own_arithmetic
from rayemu.numerics import blas, coretype, products, runnable
from rayemu.numerics.ways import ByElement

ROOT = Path(__file__).parents[2]
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other kernels")


def other_process(kernels: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernels}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_process_agrees_with_itself() -> None:
    agree(pickle.loads(pickle.dumps(own_arithmetic())))
    assert digest() == digest()


def test_another_way_of_products_is_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_arithmetic()
    monkeypatch.setattr(products, "_way", ByElement())
    assert digest() != own.digest
    with pytest.raises(KernelsDiffer):
        agree(replace(own, way=ByElement()))


def test_the_way_of_the_driver_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a process that would have chosen another, if it holds there."""
    own = own_arithmetic()
    monkeypatch.setattr(products, "_way", ByElement())
    agree(own)
    assert products.way() == own.way


@pytest.mark.parametrize("unlike", [{"kernels": "others"}, {"threads": 64}])
def test_the_way_of_an_unlike_driver_is_tried(
    unlike: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kernels or threads are not the driver's, what holds there need not hold here."""
    driver = replace(own_arithmetic(), **unlike)
    with blas.blas_threads(2):
        agree(driver)
        monkeypatch.setattr(agreement, "keeps_rows", lambda way: False)
        with pytest.raises(KernelsDiffer):
            agree(driver)


LONG = """
import pickle, sys
import numpy as np
from rayemu.model.agreement import KernelsDiffer, agree, own_arithmetic
from rayemu.numerics import exact_matmul, set_blas_threads
set_blas_threads(2)
rng = np.random.default_rng(0)
x, w = (rng.random(shape, np.float32) for shape in ((700, 1024), (1024, 256)))
if len(sys.argv) == 1:
    print(pickle.dumps((own_arithmetic(), exact_matmul(x, w))).hex())
else:
    driver, y = pickle.loads(bytes.fromhex(open(sys.argv[1]).read()))
    try:
        agree(driver)
    except KernelsDiffer:
        print("refused")
    else:
        print("equal" if np.array_equal(exact_matmul(x, w), y) else "other rows")
"""


@x86
@pytest.mark.skipif("Nehalem" not in runnable(), reason="this processor lacks SSE 4.2")
def test_kernels_that_differ_only_for_a_long_k_are_told_apart(tmp_path: Path) -> None:
    """Nehalem's kernels with two threads gave Sandybridge's rows wherever K was not cut into blocks."""
    if "Sandybridge" not in runnable():
        pytest.skip("this processor lacks AVX")
    file = tmp_path / "driver"
    file.write_text(other_process("Sandybridge", LONG).stdout)
    assert other_process("Nehalem", LONG, str(file)).stdout.strip() == "refused"
    assert other_process("Sandybridge", LONG, str(file)).stdout.strip() == "equal"


@x86
def test_other_kernels_are_refused_by_name() -> None:
    own = own_arithmetic()
    other = "Sandybridge" if coretype() == "Nehalem" else "Nehalem"
    script = (
        f"import pickle; from rayemu.model.agreement import agree; agree(pickle.loads({pickle.dumps(own)!r}))"
    )
    refused = other_process(other, script)
    line = refused.stderr.strip().splitlines()[-1]
    assert "KernelsDiffer" in line and other in line and own.kernels in line and "OPENBLAS_CORETYPE" in line
    assert other_process(str(coretype()), script).returncode == 0


@x86
def test_the_kernels_of_a_processor_are_told_by_its_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = tmp_path / "cpuinfo"
    monkeypatch.setattr("builtins.open", lambda *_, **__: made.open(encoding="utf-8"))
    made.write_text("processor : 0\nflags\t\t: fpu pni sse4_2 avx avx2 fma\n", encoding="utf-8")
    assert runnable() == {"Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen"}
    made.write_text("processor : 0\n", encoding="utf-8")
    assert runnable() == set(blas.NEEDS)
