"""What routers that balance keep of a layer: one number per expert."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayemu.routing.router import Context

F64 = npt.NDArray[np.float64]


def kept(context: Context, experts: int) -> F64:
    """The context's state [E], to be changed in place; without one the batch is the first, and forgotten.

    Raises ValueError where it is of another number of experts.
    """
    if context.state is None:
        return np.zeros(experts)
    state: F64 = context.state
    if state.shape != (experts,):
        raise ValueError(
            f"layer {context.layer}: the router's state is of shape {state.shape}; expected ({experts},), "
            "one number per expert"
        )
    return state


def loads(context: Context, chosen: npt.NDArray[np.integer], experts: int) -> F64:
    """Of the choices [T, K] how many each expert got, [E]; counts the fullest's and the mean's."""
    counted = np.bincount(chosen.reshape(-1), minlength=experts).astype(np.float64)
    context.count("choices_of_fullest_expert", counted.max())
    context.count("choices_of_mean_expert", counted.mean())
    return counted
