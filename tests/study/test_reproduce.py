"""Figures and verdicts of `rayemu reproduce` against others worked out by hand."""

from __future__ import annotations

import ast
import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.study.reproduce import AGREES, CONTRADICTS, DIFFERS, ROWS, Row
from rayemu.study.reproduce.row import UNITS, si
from rayemu.study.reproduce.show import count, factor, figure, lines, markdown, select, unknown
from tests.study import reproduce_expected as expected

BY_VERDICT = {AGREES: expected.AGREES, DIFFERS: expected.DIFFERS, CONTRADICTS: expected.CONTRADICTS}
BY_ID = {row.id: row for row in ROWS}
DOCS = Path(__file__).parents[2] / "docs" / "reproduce.md"


def row(**changed: object) -> Row:
    given = {"id": "000-x", "section": "1 A", "what": "a time", "inputs": {"size": "3 GB", "link": "2 GB/s"}}
    return Row(**{**given, "formula": "size / link", "theirs": "1.5", "unit": "s", **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("id_", "figure", "verdict"),
    [
        pytest.param(id_, value, verdict, id=id_)
        for verdict, of in BY_VERDICT.items()
        for id_, value in of.items()
    ],
)
def test_a_row_comes_to_what_it_does_by_hand(id_: str, figure: float, verdict: str) -> None:
    assert BY_ID[id_].ours == pytest.approx(figure, rel=5e-4)
    assert BY_ID[id_].verdict == verdict


def test_every_row_was_worked_out_by_hand_once() -> None:
    by_hand = [id_ for of in BY_VERDICT.values() for id_ in of]
    assert sorted(by_hand) == sorted(BY_ID)
    assert len(by_hand) == len(set(by_hand)) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_says_all_that_it_must(row: Row) -> None:
    names = {node.id for node in ast.walk(ast.parse(row.formula)) if isinstance(node, ast.Name)}
    assert set(row.inputs) <= names, "an input that the formula does not use"
    assert bool(row.why) == (row.verdict != AGREES), "why is for rows that do not agree"
    assert row.text in ("000", "001", "002") and row.unit in UNITS
    assert not any(
        "\u4e00" <= letter <= "\u9fff" for letter in row.what + row.section + row.reading + row.why
    )


def test_texts_and_sections_come_in_order_and_in_one_piece() -> None:
    assert [r.text for r in ROWS] == sorted(r.text for r in ROWS)
    seen = list(dict.fromkeys((r.text, r.section) for r in ROWS))
    changes = [(a.text, a.section) != (b.text, b.section) for a, b in itertools.pairwise(ROWS)]
    assert sum(changes) == len(seen) - 1
    numbers = [r.section.split()[0] for r in ROWS if r.text == "000"]
    assert numbers == sorted(numbers, key=lambda n: [int(part) for part in n.split(".")])


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.5 GB/s", 12.5e9), ("64 KiB", 65536), ("70 %", 0.7), ("100 pJ/bit", 1e-10), ("22 B params", 22e9)],
)
def test_quantities(text: str, value: float) -> None:
    assert si(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [
        ("1.5", AGREES),
        ("2", AGREES),  # rounded
        ("1", AGREES),  # cut off
        ("1.4", CONTRADICTS),
        ("1.6", CONTRADICTS),
        ("1-1.4", CONTRADICTS),
        ("1.2-1.6", AGREES),
        ("1.51", CONTRADICTS),
        ("3", CONTRADICTS),
    ],
)
def test_a_verdict_follows_the_digits_that_the_text_writes(theirs: str, verdict: str) -> None:
    assert row(theirs=theirs).verdict == verdict
    assert row(theirs=theirs, corrected=True).verdict == (DIFFERS if verdict == CONTRADICTS else AGREES)


def test_a_step_stands_in_for_digits_that_do_not_show() -> None:
    assert row(theirs="1,000", unit="ms").verdict == CONTRADICTS
    assert row(theirs="1,000", unit="ms", step=1000).verdict == AGREES


def test_factors_are_ours_to_theirs_and_of_a_range_to_its_nearer_end() -> None:
    assert row(theirs="3").factor == 0.5
    assert row(theirs="2-3").factor == 0.75
    assert row(theirs="1-1.2").factor == pytest.approx(1.25)
    assert row(theirs="1-2").factor == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1295690.0, "1,295,690"),
        (12345678.0, "1.235e+07"),
        (0, "0"),
        (0.00053248, "0.0005325"),
        (2.99998e-10, "3e-10"),
        (300.8, "300.8"),
        (64, "64"),
    ],
)
def test_figures_are_short(value: float, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1, "1.00"), (993.6, "994"), (0.000532, "5.3e-04"), (1e5, "1.0e+05"), (-3.411, "-3.41")],
)
def test_factors_are_short(value: float, shown: str) -> None:
    assert factor(value) == shown


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("only", [None, "000-predict-compute"])
def test_the_table_fits_a_terminal(width: int, only: str | None) -> None:
    shown = [line.plain for line in lines(select(only, False), width)]
    assert max(map(len, shown)) <= width
    assert not any(line != line.rstrip() for line in shown)


def test_the_command_counts_and_shows_a_row_in_full() -> None:
    shown = (
        CliRunner().invoke(app, ["reproduce", "--only", "000-predict-compute"], env={"COLUMNS": "120"}).stdout
    )
    assert "36.03     3,848 ms            107 contradicts itself" in shown
    assert "by tokens * top_k * 4 * d_model * d_ff / rate" in shown and "rate = 8 Tops/s" in shown
    assert shown.endswith("rows 1: agrees 0, differs 0, contradicts itself 1\n")


def test_json_has_inputs_units_and_counts() -> None:
    given = json.loads(CliRunner().invoke(app, ["reproduce", "--json", "--only", "002", "--differs"]).stdout)
    assert given["count"] == {AGREES: 0, DIFFERS: 1, CONTRADICTS: 1}
    fair = given["rows"][0]
    assert fair["id"] == "002-multicast-fair" and fair["ours"] == pytest.approx(2.4)
    assert fair["inputs"] == {"loads": "400 cycles", "multicast": "120 cycles", "compute": "80 cycles"}
    assert {"theirs", "unit", "factor", "verdict", "formula", "reading", "why"} <= set(fair)


def test_nothing_left_to_show_is_no_error() -> None:
    result = CliRunner().invoke(app, ["reproduce", "--only", "000-a2a-time", "--differs"])
    assert result.exit_code == 0 and result.stdout == "rows 0: agrees 0, differs 0, contradicts itself 0\n"


@pytest.mark.parametrize(
    ("only", "close"),
    [
        ("000-predct-compute", "000-predict-compute"),
        ("multicast", "002-multicast-gain"),
        ("003", "000"),
        ("", ""),
        ("\x1b[31m" + "x" * 10_000, ""),
    ],
)
def test_an_unknown_row_is_refused_in_one_line_with_close_ones(only: str, close: str) -> None:
    result = CliRunner().invoke(app, ["reproduce", "--only", only])
    assert result.exit_code == 2 and result.stdout == ""
    said = result.stderr.splitlines()
    assert len(said) == 1 and len(said[0]) < 240 and "\x1b" not in said[0]
    assert ("did you mean" in said[0]) == bool(close) and close in said[0]
    assert said[0].endswith("allowed: 000, 001, 002, or a row's id")


def test_two_formats_at_once_are_refused() -> None:
    result = CliRunner().invoke(app, ["reproduce", "--json", "--markdown"])
    assert result.exit_code == 2 and "--json and --markdown" in result.stderr


def test_what_is_known_is_not_refused() -> None:
    assert unknown("001") is None and unknown("002-pupils") is None


def test_the_documents_table_is_what_the_command_prints() -> None:
    _, found, table = DOCS.read_text(encoding="utf-8").partition("<!-- rayemu reproduce --markdown -->\n")
    assert found and table == markdown(ROWS), "run: rayemu reproduce --markdown, and put it under the comment"


def test_the_readme_says_how_many_agree() -> None:
    found = count(ROWS)
    readme = " ".join((DOCS.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"`rayemu reproduce`: {len(ROWS)} figures" in readme
    said = f"{found[AGREES]} agree, {found[DIFFERS]} differ, {found[CONTRADICTS]} contradict their own text"
    assert said in readme
