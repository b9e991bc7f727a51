"""What the machine at hand does in how much time, as modelled hardware: `rayemu calibrate`.

    calibrate(Path("this-machine.yaml"), print)          # about a minute
    load_hardware("this-machine.yaml")                   # prices runs in this machine's own wall time

See docs/calibration.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayemu.calibration.hardware import check_writable, description, written
from rayemu.calibration.measure import on_every_core
from rayemu.calibration.runs import FIRST, RUNS, Ran, fit_costs, predicted, ran
from rayemu.hardware import Hardware
from rayemu.machine import cores, processor
from rayemu.scenario import Scenario

__all__ = ["Ran", "calibrate", "calibration_scenario", "predicted", "ran"]
PASSES_S = 10.0  # for all passes, codecs and copies together


def calibration_scenario(number: int, extra: dict[str, Any]) -> Scenario:
    """One of the short runs, on 2 nodes of 4 modules, with nothing compressed."""
    run = {**extra["run"], "check": "none", "seed": number}
    cluster = {"nodes": 2, "modules_per_node": 4, "transport": "zmq"}
    return Scenario.from_dict({"name": f"calibration-{number}", **extra, "cluster": cluster, "run": run})


def calibrate(out: Path, report: Callable[[str], None]) -> tuple[Hardware, dict[str, float], list[Ran]]:
    """Measure this machine and write it as a hardware file; returns it, what was measured, and the runs.

    Best on a machine that does nothing else. The file is there when all is done, and stays as it was where
    that fails. It starts processes that import the calling script, which must call it under
    `if __name__ == "__main__":`; where it does not, RuntimeError says so. Raises OSError where the file
    cannot be written, before anything is measured, and what a run raises.
    """
    out = out.resolve()  # of a link, what it points to
    check_writable(out)
    report(f"expert passes and codecs on {cores()} cores at once ...")
    measured = on_every_core(cores(), PASSES_S)
    runs = []
    for number, extra in enumerate(RUNS):
        scenario = calibration_scenario(number, extra)
        report(f"short run {number + 1} of {len(RUNS)} ...")
        runs.append(ran(scenario))
    name = processor()
    with tempfile.TemporaryDirectory() as folder:  # `out` is of what was fitted, or left as it was
        first = written(description(measured, FIRST, name), Path(folder) / "first.yaml")
    return written(description(measured, fit_costs(first, runs), name), out), measured, runs
