"""What `test_machines` runs on one of its machines: a stream while modules are struck. Prints what it found.

Arguments: the Ray cluster's address; settings of the scenario's cluster as JSON; and who strikes: "us" (a
hang, then a kill) or "them" (it says READY and goes on until two modules are seen dead).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from rayemu import Emulator, Scenario
from rayemu.drivers.record import GEMM, queued
from rayemu.scenario import Fault


def as_written(record: np.ndarray) -> np.ndarray:
    """A record without what is found from all of its rows, some of which are written after others."""
    rows = record.copy()
    rows["id"] = rows["cause"] = -1
    queued(rows)[:] = 0.0
    return rows


def main(address: str, settings: str, who: str) -> None:
    scenario = Scenario.from_dict(
        {
            "model": {"d_model": 64, "d_ff": 128, "experts": 8, "top_k": 2, "layers": 2},
            "cluster": {"nodes": 2, "modules_per_node": 2, "address": address, **json.loads(settings)},
            "placement": {"copies": 2},
            "replicas": {"kind": "hash"},
            "exchange": {"min_slice_rows": 16, "codec": {"module": "raw", "node": "int8"}},
            "run": {"seed": 5},
        }
    )
    rng = np.random.default_rng(9)
    found: dict[str, Any] = {"exact": True, "delivered": True}
    with Emulator(scenario) as emulator:

        def stream(count: int) -> None:
            inputs = [rng.standard_normal((96, 64), dtype=np.float32) for _ in range(count)]
            for x, result in zip(inputs, emulator.stream(inputs), strict=True):
                found["exact"] &= bool(np.array_equal(emulator.reference(x, result), result.y))
                found["delivered"] &= bool((result.delivered == 1).all())

        def strike(**fault: Any) -> None:
            emulator.inject(Fault.model_validate({**fault, "at": {"batch": 0}}))

        stream(5)
        before = emulator.record()
        found["hosts"] = [host for _, (_, host) in sorted(emulator.pids.items())]
        found["seen"] = seen = []
        if who == "us":
            strike(kind="hang", module=2, **{"for": "2 s"})
            stream(10)
            strike(kind="kill", module=3)
        else:
            print("READY", flush=True)
            while sum(kind == "dead" for kind, _ in seen) < 2:
                stream(1)
                seen += [(n.kind, n.facts["module"]) for n in emulator.take_notices()]
        stream(20)
        after = emulator.record()
        seen += [(n.kind, n.facts["module"]) for n in emulator.take_notices()]
    gemms = before[before["kind"] == GEMM]
    found["rows"] = np.bincount(gemms["src"], gemms["rows"], 4).tolist()
    of_killed = before[before["src"] == 3]
    found["of_killed_kept"] = bool(np.isin(as_written(of_killed), as_written(after)).all())
    print("FOUND", json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
