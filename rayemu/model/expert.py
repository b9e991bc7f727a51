"""An expert: two matrices and what it does to rows.

Shapes: n rows, D model width, F expert width; SwiGLU keeps its gate and up columns side by side, so that one
matrix product makes both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.numerics import F32, exact_matmul, padded, row_multiple, scratch

_BLOCK_ELEMENTS = 1 << 24  # hidden values (64 MiB) per pass: bounds the scratch memory of a thread
_CHUNK_ELEMENTS = 1 << 17  # elements (512 KiB) per step of the activation: stays in the second-level cache
CLAMP_LIMIT, CLAMP_SLOPE = 7.0, 1.702  # of clamped_swiglu


@dataclass(frozen=True, eq=False)
class Expert:
    """Weights of one FFN: `up` [D, 2F] (gate | up) where gated, else [D, F]; `down` [F, D]; float32.

    `up_bias` [2F] or [F] and `down_bias` [D] are added to the products, where there are any.
    """

    up: F32
    down: F32
    activation: str = "swiglu"
    up_bias: F32 | None = None
    down_bias: F32 | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices and biases."""
        biases = (bias.nbytes for bias in (self.up_bias, self.down_bias) if bias is not None)
        return self.up.nbytes + self.down.nbytes + sum(biases)


def expert_forward(expert: Expert, x: F32, out: F32 | None = None) -> F32:
    """The FFN of `expert` on x [n, D] -> [n, D]: product, activation in place, product.

    A row's bits do not depend on the other rows. Scratch memory belongs to the calling thread and is reused.
    """
    rows, width = len(x), expert.down.shape[1]
    if out is None:
        out = np.empty((rows, width), np.float32)
    multiple = row_multiple()
    passes = max(1, -(-rows * expert.up.shape[1] // _BLOCK_ELEMENTS))
    step = max(1, -(-rows // passes))  # alike: BLAS packs the weights in each pass, a small last one too
    step = -(-step // multiple) * multiple
    for start in range(0, rows, step):
        given, wanted = x[start : start + step], out[start : start + step]
        enough = -(-len(given) // multiple) * multiple
        hidden = scratch("hidden", enough, expert.up.shape[1])  # [n, 2F] or [n, F]
        whole = enough == len(given)
        exact_matmul(given if whole else padded(given, enough, "given"), expert.up, out=hidden)
        if expert.up_bias is not None:
            np.add(hidden, expert.up_bias, out=hidden)
        y = wanted if whole else scratch("output", enough, width)  # [n, D]
        exact_matmul(activated(expert, hidden), expert.down, out=y)
        if expert.down_bias is not None:
            np.add(y, expert.down_bias, out=y)
        if not whole:
            wanted[...] = y[: len(given)]
    return out


def activated(expert: Expert, hidden: F32) -> F32:
    """The expert's activation of hidden [n, 2F] or [n, F], in place -> [n, F]."""
    return _ACTIVATIONS[expert.activation](hidden)


def _swiglu(hidden: F32, clamped: bool = False) -> F32:
    """silu(gate) * up written over the gate half of hidden [n, 2F]; silu(g) = g / (1 + exp(-g)).

    `clamped` as in gpt-oss: gate at most 7, up from -7 to 7, g / (1 + exp(-1.702 g)) * (up + 1).
    """
    half = hidden.shape[1] // 2
    step = max(1, _CHUNK_ELEMENTS // (2 * half))
    temporary = scratch("activation", min(step, len(hidden)), half)  # [step, F]
    with np.errstate(over="ignore"):  # exp(-g) = inf for g < -88 gives silu = -0, which is right
        for start in range(0, len(hidden), step):
            gate, up = hidden[start : start + step, :half], hidden[start : start + step, half:]
            t = temporary[: len(gate)]
            if clamped:
                np.minimum(gate, CLAMP_LIMIT, out=gate)
                np.clip(up, -CLAMP_LIMIT, CLAMP_LIMIT, out=up)
                np.add(up, 1.0, out=up)
                np.multiply(gate, -CLAMP_SLOPE, out=t)
            else:
                np.negative(gate, out=t)
            np.exp(t, out=t)
            np.add(t, 1.0, out=t)
            np.divide(gate, t, out=gate)
            np.multiply(gate, up, out=gate)
    return hidden[:, :half]


def _clamped_swiglu(hidden: F32) -> F32:
    """gpt-oss' activation, see `_swiglu`."""
    return _swiglu(hidden, clamped=True)


def _gelu(hidden: F32) -> F32:
    """x * Phi(x), the exact form, as max(x, 0) - |x| * erfc(|x| / sqrt 2) / 2, in place on hidden [n, F].

    erfc(a) = p(t) * exp(-a^2), t = 1 / (1 + 0.3275911 a), from Abramowitz and Stegun 7.1.26, error < 1.5e-7:
    half the time of a library's scalar erf.
    """
    step = max(1, _CHUNK_ELEMENTS // (2 * hidden.shape[1]))
    temporary = scratch("activation", 3 * min(step, len(hidden)), hidden.shape[1])  # [3 * step, F]
    for start in range(0, len(hidden), step):
        x = hidden[start : start + step]
        a, t, p = (temporary[part * len(x) : (part + 1) * len(x)] for part in range(3))
        np.abs(x, out=a)
        np.multiply(a, np.float32(0.3275911 * 0.5**0.5), out=t)
        np.add(t, 1.0, out=t)
        np.reciprocal(t, out=t)
        np.multiply(t, np.float32(_ERFC[0]), out=p)
        for coefficient in _ERFC[1:]:
            np.add(p, np.float32(coefficient), out=p)
            np.multiply(p, t, out=p)
        np.multiply(p, a, out=p)
        with np.errstate(over="ignore"):  # a^2 = inf gives exp = 0, which is right
            np.multiply(a, a, out=a)
        np.multiply(a, -0.5, out=a)
        np.exp(a, out=a)
        np.multiply(a, p, out=a)  # |x| * erfc / 2
        np.maximum(x, 0.0, out=x)
        np.subtract(x, a, out=x)
    return hidden


def _relu(hidden: F32) -> F32:
    """max(x, 0) in place on hidden [n, F]."""
    return np.maximum(hidden, 0.0, out=hidden)


# Half of each coefficient of p, highest power first.
_ERFC = tuple(c / 2 for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
_ACTIVATIONS = {"swiglu": _swiglu, "clamped_swiglu": _clamped_swiglu, "gelu": _gelu, "relu": _relu}
