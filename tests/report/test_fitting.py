"""Tables of figures in narrow terminals: every figure is there, whole."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.report.fitting import fitted
from rayemu.traces import Trace, write

HEADS = ("part", "a", "of two\nlines", "c")
ROWS = [("experts", "11.25 GiB", "1", "[bold]"), ("all of it together", "2 B", "333.75 MiB", "4.5 us")]


def drawn(width: int, **more: object) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, _environ={})
    for table in fitted(width, "title", HEADS, ROWS, **more):  # type: ignore[arg-type]
        console.print(table)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", range(32, 90))
def test_no_figure_is_cut_and_no_line_too_long(width: int) -> None:
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    for row in ROWS:
        of_row = " ".join(line for line in lines if line.startswith(f" {row[0]} "))
        for figure in row[1:]:
            assert figure in of_row


def test_a_wide_terminal_has_one_table_and_room_for_sentences() -> None:
    about = ("about", ["first", "second"])
    assert sum("experts" in line for line in drawn(100, sentences=about)) == 1
    assert any("second" in line for line in drawn(100, sentences=about))
    assert not any("second" in line for line in drawn(60, sentences=about))


def shown(width: int, *arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width)})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("width", [50, 60, 80, 120])
@pytest.mark.parametrize("arguments", ["hardware", "hardware h100-sxm", "model deepseek-v3"])
def test_commands_cut_nothing(arguments: str, width: int) -> None:
    text = shown(width, *arguments.split())
    assert "…" not in text and max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_every_number_has_its_source_in_any_terminal(width: int) -> None:
    text = re.sub(r"\s+", "", shown(width, "hardware", "upmem"))
    figures = json.loads(shown(80, "hardware", "upmem", "--json"))["figures"]
    listed = [figure for path, figure in figures.items() if re.sub(r"\s+", "", path + figure["text"]) in text]
    assert len(listed) == len(figures)
    if width < 80:  # below its figure; else the lines of both columns take turns
        assert all(re.sub(r"\s+", "", figure["source"]) in text for figure in listed)


def test_fetched_weights_are_as_quick_as_their_link() -> None:
    """PCIe 5.0 x16, of which the preset says what share is reached: not the memory that nothing is in."""
    line = next(line for line in shown(80, "hardware").splitlines() if "h100-offload" in line)
    assert "54.87 GB/s" in line


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A trace with the choices of tokens, and a plan, as files of rayemu's own."""
    rng, folder = np.random.default_rng(4), tmp_path_factory.mktemp("traces")
    choices = np.stack([rng.permuted(np.tile(np.arange(16), (300, 1)), axis=1)[:, :2] for _ in range(3)], 1)
    loads = np.stack([[np.bincount(layer.ravel(), minlength=16) for layer in choices.swapaxes(0, 1)]])
    write(folder / "trace.npz", "rayemu", Trace(loads * 12345.0, choices=choices, borders=np.array([0, 300])))
    plan = ("plan", folder / "trace.npz", "--modules", "4", "--out", folder / "plan.npy", "--format", "npy")
    shown(100, *map(str, plan))
    return {"TRACE": str(folder / "trace.npz"), "PLAN": str(folder / "plan.npy")}


@pytest.mark.parametrize("width", [40, 50, 60, 74, 80, 120])
@pytest.mark.parametrize(
    ("arguments", "heads"),
    [
        ("codecs smoke --codec int8 --codec zstd --tokens 8", "codec ratio below mean max"),
        ("plan TRACE --modules 4 --keep PLAN --expert-bytes 344MiB", "planner bound slots moves time"),
        ("trace stats TRACE", "layer CV exponent distance even steady median p99 chance"),
        ("trace stats PLAN --plan --experts 16", "copies unknown"),
    ],
)
def test_tables_of_experts_cut_nothing(
    traces: dict[str, str], arguments: str, heads: str, width: int
) -> None:
    text = shown(width, *(traces.get(word, word) for word in arguments.split()))
    assert "…" not in text and set(heads.split()) <= set(text.split())
    lines = [line for line in text.splitlines() if not line.startswith("/")]  # the file's name stays whole
    assert max(map(len, lines)) <= width
