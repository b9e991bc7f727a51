"""The machine at hand as a hardware file: every number with how it was measured."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import yaml

from rayemu.calibration.fit import fit_passes
from rayemu.calibration.measure import SHAPES
from rayemu.hardware import Hardware, load_hardware
from rayemu.machine import cores
from rayemu.model.expert import row_multiple
from rayemu.protocol.server import TURN_FLOPS

UNBOUNDED = "1 TB/s"  # links between processes of a machine are copies, which the processors are charged for


def description(measured: dict[str, float], costs: dict[str, float], processor: str) -> dict[str, Any]:
    """Return the file's content. `measured` is of `on_every_core`, `costs` of `fit_costs`."""
    when = datetime.date.today().isoformat()
    passes = {shape: measured["pass {} {} {}".format(*shape)] for shape in SHAPES}
    overhead, bandwidth, rate = fit_passes(passes, row_multiple())
    count = cores()
    timed = f"measured by rayemu calibrate on {when}: expert passes on {count} cores at once"
    ran = f"fitted by rayemu calibrate on {when} to the wall time of short runs"

    def value(text: str, source: str) -> dict[str, str]:
        return {"value": text, "source": source}

    level = {
        "latency": value("0 us", "processes of one machine: all of a message's way is processors' work"),
        "bandwidth": value(
            UNBOUNDED, "processes of one machine: what a copy costs is in processors.bandwidth"
        ),
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "name": "this-machine",
        "about": f"the machine that rayemu calibrate ran on, {when}: {processor}",
        "remark": "predicts rayemu's own wall time; modules are processes that share the processors",
        "modules_per_node": {"value": 8, "source": "a choice; a run has its own"},
        "module": {
            "banks": {
                "count": {"value": 1, "source": "a process reads its weights through one core"},
                "bandwidth": value(f"{bandwidth / 1e9:.5g} GB/s", timed),
                "capacity": value(f"{memory / 1e9:.4g} GB", "the operating system: all memory"),
            },
            "compute": {
                "precision": "fp32",
                "rates": {"fp32": value(f"{rate / 1e9:.5g} GFLOP/s", timed)},
                "tile": {"value": row_multiple(), "source": "rows that exact products are padded to"},
                "overlap": {
                    "value": 1.0,
                    "source": "the fit's form: memory and arithmetic one after the other",
                },
                "overhead": value(f"{1e6 * overhead:.4g} us", timed),
                "activations": "memory",
            },
        },
        "links": {"module": level, "node": level},
        "host": {
            "rate": value(f"{rate / 1e9:.5g} GFLOP/s", timed),
            "bandwidth": value(f"{bandwidth / 1e9:.5g} GB/s", timed),
            "overhead": value("0 us", "counted in processors.frame and processors.wake"),
        },
        "processors": {
            "count": {"value": count, "source": "cores that this process may use"},
            "frame": value(f"{1e6 * costs['frame']:.4g} us", ran),
            "bandwidth": value(f"{costs['bandwidth'] / 1e9:.5g} GB/s", ran),
            "wake": value(f"{1e6 * costs['wake']:.4g} us", ran),
            "share": {"value": round(costs["share"], 4), "source": ran},
            "turn": value(f"{TURN_FLOPS / 1e9:g} GFLOP", "TURN_FLOPS of rayemu's modules"),
        },
        "energy": {
            "weights": value("0 pJ/bit", "not measured"),
            "compute": value("0 pJ/FLOP", "not measured"),
        },
    }


def check_writable(file: Path) -> None:
    """Make the folder of a file, and a file beside it as `written` does. Raises OSError where that fails."""
    if file.exists() and not file.is_file():
        raise OSError(f"{file}: is no file that can be replaced; name another")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.touch()
    part.unlink()


def written(content: dict[str, Any], file: Path) -> Hardware:
    """Write the file, and load it as whoever uses it will."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        load_hardware(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return load_hardware(file)
