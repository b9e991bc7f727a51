"""Exact arithmetic: matrix products whose rows do not depend on their company, on any BLAS."""

from __future__ import annotations

from rayemu.numerics.products import F32, blas_info, exact_matmul, row_invariant

__all__ = ["F32", "blas_info", "exact_matmul", "row_invariant"]
