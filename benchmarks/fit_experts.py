"""The three fitted constants of the H100's expert pass: `python -m benchmarks.fit_experts`.

Least squares on the logarithms of the measured times, on both models and on each alone: the latter predict
the other model, which they have not seen.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import least_squares

from rayemu.hardware import load_hardware
from rayemu.hardware.passes import expert_seconds
from rayemu.hardware.spec import Hardware as Spec

from .validation_experts import MEASURED, ROWS

Model = tuple[str, int, int]
Constants = tuple[float, float, float]  # compute.share, compute.launch, compute.overhead


def predicted(spec: Spec, constants: Constants, model: Model) -> np.ndarray:
    """Seconds of the model's expert by ROWS with these constants in place of the preset's."""
    share, launch, overhead = constants
    compute = spec.module.compute.model_copy(update={"share": share, "launch": launch, "overhead": overhead})
    changed = spec.model_copy(update={"module": spec.module.model_copy(update={"compute": compute})})
    return expert_seconds(changed, *model[1:], np.array(ROWS), True, None)


def errors(spec: Spec, constants: Constants, model: Model) -> np.ndarray:
    """Relative errors by ROWS; nan where a range was measured."""
    measured = [float(m) if "-" not in m else np.nan for m in MEASURED[model].split()]
    return predicted(spec, constants, model) * 1e6 / np.array(measured) - 1


def fit(spec: Spec, models: Iterable[Model]) -> Constants:
    """The constants that predict these models best."""
    models = list(models)

    def residuals(scaled: np.ndarray) -> np.ndarray:
        constants = (float(scaled[0]), float(scaled[1]) * 1e-6, float(scaled[2]) * 1e-6)
        found = np.concatenate([errors(spec, constants, model) for model in models])
        unmoved = 1e-3 * (
            scaled[1] - start[1]
        )  # a model that is never launch-bound says nothing of launching
        return np.append(np.log1p(found[~np.isnan(found)]), unmoved)

    start = [0.7, spec.module.compute.launch * 1e6, 8.0]
    share, launch, overhead = least_squares(residuals, start).x
    return float(share), float(launch) * 1e-6, float(overhead) * 1e-6


def main() -> int:
    """Print constants and errors for every exponent of the overlap that may be thought of."""
    preset = load_hardware("h100-sxm").spec
    for overlap in (1.5, 2.0, 2.5, 3.0, 4.0, None):
        compute = preset.module.compute.model_copy(update={"overlap": overlap})
        spec = preset.model_copy(update={"module": preset.module.model_copy(update={"compute": compute})})
        print(f"overlap {overlap or 'perfect (the longer)'}")
        for models in (list(MEASURED), *([model] for model in MEASURED)):
            share, launch, overhead = constants = fit(spec, models)
            names = " and ".join(name for name, _, _ in models)
            print(f"  fitted to {names}: {share:.3f}, {launch * 1e6:.1f} us, {overhead * 1e6:.1f} us")
            for model in MEASURED:
                off = np.abs(errors(spec, constants, model))
                seen = "" if model in models else ", not seen"
                print(f"    {model[0]}{seen}: mean {np.nanmean(off):.1%}, worst {np.nanmax(off):.1%}")
    return 0


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
