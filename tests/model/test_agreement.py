"""Processes that compute unlike each other are told apart, and their common kernels are found."""

from __future__ import annotations

import os
import pickle
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rayemu.model.agreement import KernelsDiffer, agree, digest, own_arithmetic
from rayemu.numerics import blas, coretype, products, runnable
from rayemu.numerics.ways import ByElement

ROOT = Path(__file__).parents[2]
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other kernels")


def other_process(kernels: str, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernels}
    command = [sys.executable, "-c", script]
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
