"""How true the hardware model is, against published and measured figures: `python -m benchmarks.validation`.

Prints predicted, published and error of every figure; exit code 1 where one is outside its bound. Each part
is a module with a function `checks() -> list[Check]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import validation_experts, validation_links, validation_machine, validation_parts
from .checks import Check
from .output import write

PARTS: dict[str, Callable[[], list[Check]]] = {
    "experts": validation_experts.checks,
    "links": validation_links.checks,
    "parts": validation_parts.checks,
}
MEASURED = {"machine": validation_machine.checks}  # only when named: these take minutes


def table(check: Check) -> Table:
    """A check's rows side by side, those outside the bound in red."""
    shown = Table(box=SIMPLE_HEAD, title=escape(check.name), title_justify="left", title_style="bold")
    shown.add_column(escape(f"[{check.unit}]") if check.unit else "")
    for column in ("predicted", "published", "error"):
        shown.add_column(column, justify="right")
    for row in check.rows:
        error = f"{row.error:+.1%}" if check.bound is not None else "none" if row.same_digits else "differs"
        colour = None if check.holds(row) else "red"
        shown.add_row(escape(row.what), f"{row.predicted:,.4g}", row.published, error, style=colour)
    return shown


def verdict(check: Check) -> str:
    """One line: how near it came, and how near it has to come."""
    kept = "holds" if check.passed else "FAILS"
    if check.bound is None:
        right = sum(row.same_digits for row in check.rows)
        return f"{kept}: {right} of {len(check.rows)} to the digits that were published ({check.source})"
    worst = max((abs(row.error) for row in check.rows), default=float("nan"))
    mean = "" if check.mean is None else f", mean {check.mean_error:.1%} (bound {check.mean:.1%})"
    aim = "" if check.aim is None else f", aim {check.aim:.1%}"
    return f"{kept}: worst {worst:.1%} (bound {check.bound:.1%}){mean}{aim} ({check.source})"


def main(argv: Sequence[str] | None = None) -> int:
    """Print all checks, or those of some parts; 1 where one does not hold, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validation",
        description=__doc__.split("\n")[0],  # type: ignore[union-attr]
    )
    known = {**PARTS, **MEASURED}
    help = f"only these: {', '.join(known)} ({', '.join(MEASURED)} only when named: minutes)"
    parser.add_argument("parts", nargs="*", metavar="PART", help=help)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the figures here")
    args = parser.parse_args(argv)
    if unknown := [part for part in args.parts if part not in known]:
        parser.error(f"{unknown[0]} is not a part; known: {', '.join(known)}")
    found = [check for part in args.parts or PARTS for check in known[part]()]
    console = Console()
    for check in found:
        console.print(table(check))
        console.print(escape(verdict(check)), highlight=False, style=None if check.passed else "red")
        console.print()
    failed = [check.name for check in found if not check.passed]
    if args.out is not None:
        write(args.out, {"benchmark": "validation", "passed": not failed, "checks": list(map(plain, found))})
    console.print(escape(f"{len(found) - len(failed)} of {len(found)} hold"), highlight=False)
    for name in failed:
        console.print(escape(f"outside the bound: {name}"), style="red", highlight=False)
    return 1 if failed else 0


def plain(check: Check) -> dict[str, object]:
    """A check as JSON data."""
    rows = [
        {
            "what": row.what,
            "predicted": row.predicted if row.predicted == row.predicted else None,
            "published": row.published,
            "error": row.error if abs(row.error) != float("inf") else None,
            "holds": check.holds(row),
        }
        for row in check.rows
    ]
    bounds = {"bound": check.bound, "mean_bound": check.mean, "aim": check.aim}
    return {"name": check.name, "source": check.source, "unit": check.unit, **bounds, "rows": rows}


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
