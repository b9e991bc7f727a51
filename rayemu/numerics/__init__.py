"""Exact arithmetic: matrix products whose rows do not depend on their company, on any BLAS."""

from __future__ import annotations

from rayemu.numerics.blas import (
    blas_info,
    blas_threads,
    coretype,
    kernels,
    runnable,
    set_blas_threads,
    thread_count,
)
from rayemu.numerics.denormals import (
    DenormalsFlushed,
    denormals_kept,
    denormals_notice,
    keep_denormals,
    keeps_denormals,
)
from rayemu.numerics.products import (
    cost,
    exact_columns,
    exact_matmul,
    keeps_columns,
    keeps_rows,
    row_multiple,
    use,
    way,
)
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
    "blas_threads",
    "coretype",
    "cost",
    "denormals_kept",
    "denormals_notice",
    "exact_columns",
    "exact_matmul",
    "keep_denormals",
    "keeps_columns",
    "keeps_denormals",
    "keeps_rows",
    "kernels",
    "padded",
    "row_multiple",
    "runnable",
    "scratch",
    "set_blas_threads",
    "thread_count",
    "use",
    "way",
]
