"""A routing trace: how many rows each expert got, window by window, and where known which token chose whom.

Shapes: W windows (batches, steps, whatever the source counted over), L MoE layers, E routed experts,
T tokens, K choices per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.traces.errors import TraceError

NO_EXPERT = -1  # in choices: this token has no such choice
_UINT8_FILL = 255


@dataclass(frozen=True, eq=False)
class Trace:
    """Loads and, where the source has them, the choices that they come from. Raises TraceError.

    `loads` [W, L, E] are rows per window, layer and expert: int64, or float64 where a source has fractions.
    `layers` [L] are the model's numbers of the layers. `choices` [T, L, K] are experts, NO_EXPERT where a
    token has none; those of window w are `choices[borders[w] : borders[w + 1]]`, `borders` [W + 1].
    `notes` say what was left out or assumed on reading.
    """

    loads: np.ndarray
    layers: np.ndarray = None  # type: ignore[assignment]  # 0 to L - 1
    choices: np.ndarray | None = None
    borders: np.ndarray | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        loads = check_loads(self.loads)
        layers = np.arange(loads.shape[1]) if self.layers is None else np.asarray(self.layers, np.int64)
        if layers.shape != (loads.shape[1],):
            raise TraceError(f"layers: {len(layers)} numbers for {loads.shape[1]} layers of loads")
        object.__setattr__(self, "loads", _read_only(loads))
        object.__setattr__(self, "layers", _read_only(layers))
        if (self.choices is None) != (self.borders is None):
            raise TraceError("choices and borders: one is missing; a trace has both or none")
        if self.choices is not None and self.borders is not None:
            choices, borders = np.asarray(self.choices), np.asarray(self.borders, np.int64)
            if choices.ndim != 3 or choices.shape[1] != len(layers):
                raise TraceError(f"choices: shape {list(choices.shape)}; expected [tokens, {len(layers)}, K]")
            fine = borders.shape == (len(loads) + 1,) and (np.diff(borders) >= 0).all()
            if not fine or borders[0] != 0 or borders[-1] != len(choices):
                raise TraceError(
                    f"borders: expected {len(loads) + 1} growing numbers from 0 to {len(choices)}, the tokens"
                )
            object.__setattr__(self, "choices", _read_only(choices))
            object.__setattr__(self, "borders", _read_only(borders))

    @property
    def experts(self) -> int:
        """E, the routed experts of a layer."""
        return int(self.loads.shape[2])

    @property
    def total(self) -> np.ndarray:
        """Rows per layer and expert over all windows [L, E] float64, as planners take them."""
        return self.loads.sum(axis=0, dtype=np.float64)


def from_choices(
    choices: np.ndarray,
    borders: np.ndarray,
    experts: int,
    layers: np.ndarray | None = None,
    source: str = "",
    notes: tuple[str, ...] = (),
) -> Trace:
    """The trace of choices [T, L, K] with ids below `experts` or NO_EXPERT, cut at borders [W + 1]."""
    windows = [
        counts(choices[a:b], experts)
        for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
    ]
    kind = np.int16 if experts <= np.iinfo(np.int16).max else np.int32
    numbers = np.arange(choices.shape[1]) if layers is None else layers
    return Trace(np.stack(windows), numbers, choices.astype(kind, copy=False), borders, source, notes)


def counts(choices: np.ndarray, experts: int) -> np.ndarray:
    """How often each expert was chosen [L, E] int64 in choices [T, L, K]."""
    found = np.zeros((choices.shape[1], experts), np.int64)
    for layer in range(len(found)):
        ids = choices[:, layer].ravel()
        found[layer] = np.bincount(ids[ids >= 0], minlength=experts)
    return found


def check_loads(loads: np.ndarray) -> np.ndarray:
    """Loads [W, L, E] as int64, or float64 where there are fractions; [L, E] becomes one window.

    Raises TraceError for another shape or type, and for loads that are negative or no numbers.
    """
    loads = np.asarray(loads)
    if loads.dtype.kind not in "iuf":
        raise TraceError(f"loads have type {loads.dtype}; expected numbers")
    if loads.ndim == 2:
        loads = loads[None]
    if loads.ndim != 3 or 0 in loads.shape:
        raise TraceError(
            f"loads have shape {list(loads.shape)}; expected [layers, experts] or [windows, layers, experts]"
        )
    bad = ~np.isfinite(loads) | (loads < 0) | (loads > 2**62)
    if bad.any():
        window, layer, expert = (int(n) for n in np.argwhere(bad)[0])
        raise TraceError(
            f"the load of layer {layer}, expert {expert} in window {window} is "
            f"{loads[window, layer, expert]}; expected a number from 0 to 2**62"
        )
    if loads.dtype.kind == "f" and (loads == np.floor(loads)).all():
        return loads.astype(np.int64)
    return loads.astype(np.float64 if loads.dtype.kind == "f" else np.int64)


def check_choices(ids: np.ndarray, experts: int | None, where: str) -> tuple[np.ndarray, int]:
    """Choices of some source with every fill as NO_EXPERT, and the number of experts.

    -1 fills, and so does 255 where it cannot be an expert: in uint8 unless there are 256 experts, and in any
    type when there are fewer. Without `experts` the largest id says how many there are. Raises TraceError for
    a type that cannot hold the ids, and for ids out of range.
    """
    if ids.dtype.kind not in "iu":
        raise TraceError(f"{where}: choices have type {ids.dtype}; expected integers")
    room = 1 << 8 if ids.dtype == np.uint8 else 1 << 7 if ids.dtype == np.int8 else None
    if experts is not None and room is not None and experts > room:
        raise TraceError(
            f"{where}: choices of {experts} experts in {ids.dtype}, which holds {room}; "
            "record them as int16 or wider"
        )
    wide = ids.astype(np.int16 if np.can_cast(ids.dtype, np.int16) else np.int64)
    fill = wide == NO_EXPERT
    if (experts != 256 and ids.dtype == np.uint8) or (experts is not None and experts < 256):
        fill |= wide == _UINT8_FILL
    wide[fill] = NO_EXPERT
    known = experts if experts is not None else int(wide.max(initial=0)) + 1
    bad = (wide < NO_EXPERT) | (wide >= known) | (wide > np.iinfo(np.int32).max)
    if bad.any():
        at = tuple(int(n) for n in np.argwhere(bad)[0])
        raise TraceError(
            f"{where}: choice {list(at)} names expert {wide[at]}; allowed: 0 to {known - 1}, or -1 for none"
        )
    return wide.astype(np.int16 if known <= np.iinfo(np.int16).max else np.int32, copy=False), known


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.view()
    array.flags.writeable = False
    return array
