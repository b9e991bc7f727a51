"""Split of rows over the copies that exist, so that the fullest module has the fewest.

Shapes: E experts, P slots of one layer, M modules.
"""

from __future__ import annotations

import numpy as np


def split_load(
    rows: np.ndarray,
    slot_to_expert: np.ndarray,
    slot_to_module: np.ndarray,
    modules: int,
    already: np.ndarray | None = None,
) -> np.ndarray:
    """Share of its expert's rows that each slot takes [P], 0 to 1, so that the greatest load is least.

    `rows [E]` are the rows of each expert in a batch, `already [M]` the load that modules have beside them.
    The shares of an expert's slots sum to 1; an expert without rows gives each the same share. It is the
    linear program: least t with the load of every module at most t, solved exactly by HiGHS. Experts with one
    copy are no part of it, so its size is that of what can be chosen.

    Raises:
        ValueError: an expert with rows has no slot, or an argument is out of range; the text begins with the
            argument's name.
    """
    rows, expert, module, load = _checked(rows, slot_to_expert, slot_to_module, modules, already)
    copies = np.bincount(expert, minlength=len(rows))
    share = 1.0 / copies[expert]  # [P]
    free = np.flatnonzero((copies[expert] > 1) & (rows[expert] > 0))  # slots with something to choose
    fixed = (copies == 1)[expert]
    load = load + np.bincount(module[fixed], weights=rows[expert[fixed]], minlength=modules)
    if len(free):
        scale = rows.max()
        share[free] = _least(rows / scale, expert[free], module[free], load / scale)
    return share


def _least(rows: np.ndarray, expert: np.ndarray, module: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Shares [slots] of slots whose experts all have several."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    slots, modules = len(expert), len(load)
    used, of_expert = np.unique(expert, return_inverse=True)
    slot = np.arange(slots)
    # unknowns: rows of each slot, then t
    at_most = csr_array(
        (
            np.concatenate([np.ones(slots), -np.ones(modules)]),
            (np.concatenate([module, np.arange(modules)]), np.append(slot, np.full(modules, slots))),
        ),
        shape=(modules, slots + 1),
    )
    exactly = csr_array((np.ones(slots), (of_expert, slot)), shape=(len(used), slots + 1))
    solved = linprog(
        np.append(np.zeros(slots), 1.0),
        A_ub=at_most,
        b_ub=-load,
        A_eq=exactly,
        b_eq=rows[used],
        bounds=(0, None),
        method="highs",
    )
    if solved.x is None:
        raise RuntimeError(f"HiGHS did not solve the split of {slots} slots: {solved.message}")
    share = np.maximum(solved.x[:slots], 0.0)
    return share / np.bincount(of_expert, weights=share)[of_expert]  # its tolerance is 1e-7


def _checked(
    rows: np.ndarray,
    slot_to_expert: np.ndarray,
    slot_to_module: np.ndarray,
    modules: int,
    already: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows = np.asarray(rows, dtype=np.float64)
    load = np.zeros(modules) if already is None else np.asarray(already, dtype=np.float64)
    for name, values, length in (("rows", rows, len(rows)), ("already", load, modules)):
        if values.shape != (length,) or not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"{name}: {values} is not allowed; allowed: {length} finite numbers from 0 on")
    expert, module = np.asarray(slot_to_expert, np.int64), np.asarray(slot_to_module, np.int64)
    if expert.ndim != 1 or expert.shape != module.shape:
        raise ValueError(
            f"slot_to_module: shape {module.shape} is not allowed; allowed: {expert.shape}, as slot_to_expert"
        )
    for name, values, limit in (("slot_to_expert", expert, len(rows)), ("slot_to_module", module, modules)):
        wrong = (values < 0) | (values >= limit)
        if wrong.any():
            raise ValueError(f"{name}: {values[wrong][0]} is not allowed; allowed: 0 to {limit - 1}")
    lost = np.flatnonzero((rows > 0) & (np.bincount(expert, minlength=len(rows)) == 0))
    if len(lost):
        raise ValueError(f"slot_to_expert: no slot for expert {lost[0]}, which has {rows[lost[0]]:g} rows")
    return rows, expert, module, load
