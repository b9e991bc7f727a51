"""Recovery from killed modules: `python -m benchmarks.recovery`.

8 modules, every expert on two of them, a stream of small batches that never pauses. One random module at a
time gets SIGKILL at a random moment; the next one only when its replacement has joined. Measured is the time
from the kill to the first finished unit that needed the dead module (see `faultload.needed_units`).
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence

from . import faultreport


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when no token was lost, doubled or wrong."""
    description = "Kills modules in mid-stream and measures the time to the first unit that needed them."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=description)
    parser.add_argument("--kills", type=int, default=50, help="default: 50")
    faultreport.add_arguments(parser, "recovery")
    args = parser.parse_args(argv)

    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    title, goal = f"{args.kills} modules killed", "recovery p99: must 65 ms, aim 20 ms"
    return faultreport.run(args, "recovery", title, args.kills, kill, ("joined",), 0.0, goal)


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
