"""How near the calibrated model of this machine comes to rayemu's wall time, in runs that it has not seen.

Not among the parts that are checked unless named: `python -m benchmarks.validation machine` measures for two
minutes, on an otherwise quiet machine. What a run takes is without its first batches: see `calibration.ran`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rayemu.calibration import calibrate, predicted, ran
from rayemu.scenario import Scenario

from .checks import Check, Row

# Other shapes, loads, placements and numbers of modules than those of the calibration; nothing is compressed.
SMALL = {"d_model": 256, "d_ff": 512, "experts": 8, "top_k": 2}
FINE = {"d_model": 512, "d_ff": 256, "experts": 64, "top_k": 6}
LARGE = {"d_model": 1024, "d_ff": 2048, "experts": 8, "top_k": 2}
RUNS: dict[str, dict[str, Any]] = {
    "small, one batch at a time": {"model": {**SMALL, "layers": 1}, "run": {"batches": 80, "in_flight": 1}},
    "small, four layers, in a stream": {"model": {**SMALL, "layers": 4}, "run": {"batches": 40}},
    "fine-grained, flat, 2 copies": {
        "model": {**FINE, "layers": 2},
        "placement": {"kind": "random", "copies": 2},
        "exchange": {"kind": "flat"},
        "run": {"batches": 20, "batch_tokens": 1024},
    },
    "fine-grained, one batch at a time": {
        "model": {**FINE, "layers": 2},
        "run": {"batches": 20, "batch_tokens": 1024, "in_flight": 1},
    },
    "small, routed by modules, in a stream": {
        "model": {**SMALL, "layers": 2},
        "routing": {"place": "modules"},
        "run": {"batches": 60, "batch_tokens": 512},
    },
    "large, one batch at a time": {
        "model": {**LARGE, "layers": 1},
        "run": {"batches": 12, "batch_tokens": 1024, "in_flight": 1},
    },
    "large, in a stream, 4 modules": {
        "model": {**LARGE, "layers": 2},
        "cluster": {"nodes": 1, "modules_per_node": 4, "transport": "zmq"},
        "run": {"batches": 12, "batch_tokens": 1024},
    },
}
BOUND, AIM = 0.20, 0.10


def checks() -> list[Check]:
    """Calibrate, then predict and measure."""
    with tempfile.TemporaryDirectory() as folder:
        hardware = calibrate(Path(folder) / "this-machine.yaml", lambda _: None)[0]
    rows = []
    for name, extra in RUNS.items():
        given = {"cluster": {"nodes": 2, "modules_per_node": 4, "transport": "zmq"}, **extra}
        given["run"] = {**given["run"], "check": "none", "seed": 5}
        run = ran(Scenario.from_dict({"name": "validation", **given}))
        rows.append(Row(name, 1e3 * predicted(run, hardware), f"{1e3 * run.wall_s:.1f}"))
    source = f"measured just now: {hardware.spec.about}"
    return [Check("This machine, wall time of runs", source, "ms", tuple(rows), bound=BOUND, aim=AIM)]
