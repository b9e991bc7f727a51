"""Exact arithmetic: matrix products whose rows do not depend on their company, on any BLAS."""

from __future__ import annotations

from rayemu.numerics.blas import blas_info, coretype, kernels, runnable
from rayemu.numerics.denormals import (
    DenormalsFlushed,
    denormals_kept,
    denormals_notice,
    keep_denormals,
    keeps_denormals,
)
from rayemu.numerics.products import cost, exact_matmul, row_multiple, use, way
from rayemu.numerics.scratch import F32, padded, scratch
from rayemu.numerics.ways import ByElement, MendedEdges, PaddedRows, Way

__all__ = [
    "F32",
    "ByElement",
    "DenormalsFlushed",
    "MendedEdges",
    "PaddedRows",
    "Way",
    "blas_info",
    "coretype",
    "cost",
    "denormals_kept",
    "denormals_notice",
    "exact_matmul",
    "keep_denormals",
    "keeps_denormals",
    "kernels",
    "padded",
    "row_multiple",
    "runnable",
    "scratch",
    "use",
    "way",
]
