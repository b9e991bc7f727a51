"""`rayemu list` knows every member of every table."""

from __future__ import annotations

from typing import get_args

from rayemu.report.catalog import TRANSPORTS, families
from rayemu.scenario import FAULTS, Cluster


def test_every_member_has_a_line() -> None:
    tables = families()
    assert len(tables) == 15
    for family, members in tables.items():
        assert members, family
        assert all(line.strip() for line in members.values()), family


def test_the_descriptions_here_cover_what_a_scenario_takes() -> None:
    assert list(families()["faults.kind"]) == list(FAULTS)
    assert set(TRANSPORTS) == set(get_args(Cluster.model_fields["transport"].annotation))


def test_lines_come_from_where_the_strategies_are_defined() -> None:
    tables = families()
    assert tables["model.preset"]["mixtral-8x7b"].startswith("D=4096 F=14336 E=8 K=2 L=32, swiglu")
    assert tables["exchange.codec"]["zstd"].endswith("[bytes->bytes]")
    assert tables["scenarios"]["smoke"].endswith("does it work here at all?")
