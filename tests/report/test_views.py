"""What a person sees of a run: lines, the live display, the table, and how events are worded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayemu.report.live import LinesView, LiveView, View, make_view
from rayemu.report.progress import Progress
from rayemu.report.table import one_line, print_summary, verdict
from rayemu.report.totals import Totals
from rayemu.report.wording import count, describe, since_start
from rayemu.scenario import Scenario

SCENARIO = Scenario.from_dict(
    {
        "name": "seen",
        "model": {"d_model": 16, "d_ff": 32, "experts": 4, "top_k": 2},
        "cluster": {"nodes": 2, "modules_per_node": 2},
        "exchange": {"codec": {"node": "int8"}},
    }
)
KILL = {"kind": "fault", "fault": "kill", "module": 3, "since_start_s": 0.5}
DEAD = {
    "kind": "dead",
    "module": 3,
    "incarnation": 0,
    "signal": "process",
    "epoch": 6,
    "since_start_s": 0.51,
}
JOINED = {"kind": "joined", "module": 0, "incarnation": 0, "signal": "join", "epoch": 1}
TOTALS = {
    "modules": {
        "0": {"rows": 4000, "raw_bytes": 4096, "sent_bytes": 1024, "sent_module": 24, "sent_node": 1000},
        "3": {"rows": 1000, "raw_bytes": 0, "sent_bytes": 0, "sent_module": 0, "sent_node": 0},
    }
}


def a_console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120, height=50, _environ={}), out


def test_the_view_fits_the_place() -> None:
    assert isinstance(make_view(SCENARIO, a_console(True)[0]), LiveView)
    assert isinstance(make_view(SCENARIO, a_console(False)[0]), LinesView)
    assert type(make_view(SCENARIO, a_console(True)[0], quiet=True)) is View


def test_lines_tell_the_headline_events_and_headway_without_escapes() -> None:
    console, out = a_console(False)
    with make_view(SCENARIO, console) as view:
        view(Progress("start", 0, 4))
        view(Progress("run", 0, 4, events=(JOINED,)))
        view(Progress("run", 2, 4, 2000, 0.5, TOTALS, (KILL, DEAD)))
        view(Progress("run", 4, 4, 4000, 1.0, TOTALS))
        view(Progress("check", 4, 4))
    text = out.getvalue()
    assert text.startswith("seen: custom (D=16 F=32 E=4 K=2 L=1) on 2 x 2 modules, zmq")
    assert "+0.500 s module 3: fault injected: kill\n" in text
    assert "+0.510 s module 3 dead (signal: process), epoch 6\n" in text
    assert "4 of 4 batches, 4.00 k tokens, 4.00 k tokens/s\n" in text
    assert "comparing with the reference: 4 of 4 batches\n" in text
    assert "joined" not in text and "\x1b" not in text


def test_what_happens_to_every_batch_is_shown_a_few_times() -> None:
    console, out = a_console(False)
    failures = [
        {"kind": "failed", "batch": n, "layer": 0, "expert": 1, "since_start_s": 1.0} for n in range(9)
    ]
    with make_view(SCENARIO, console) as view:
        for failure in failures:
            view(Progress("run", 1, 20, events=(failure,)))
    assert out.getvalue().count("every copy of expert 1") == 5
    assert out.getvalue().count("more events of the kind failed are in events.jsonl") == 1


def test_the_live_display_shows_load_bytes_ratio_and_events() -> None:
    console, out = a_console(True)
    view = LiveView(SCENARIO, console)
    with view:
        assert "starting the cluster" in drawn(view)
        view(Progress("run", 0, 4, events=(JOINED,)))
        view(Progress("run", 2, 4, 2000, 0.5, TOTALS, (KILL, DEAD)))
    text = drawn(view)
    assert "2 of 4 batches, 2.00 k tokens, 4.00 k tokens/s" in text
    lines = {line.split("━")[0].strip(): line for line in text.splitlines()}
    assert "4.00 k rows up" in lines["node 0 module 0"]
    assert "1.00 k rows dead" in lines["node 1 module 3"]
    assert "in a node 24 B (raw), between nodes 1000 B (int8); raw/sent 4.00; epoch 6" in text
    assert "+0.500 s  module 3: fault injected: kill" in text
    assert "\x1b[?25h" in out.getvalue(), "the cursor is shown again at the end"


def test_the_live_display_of_many_modules_shows_the_busiest_and_the_dead() -> None:
    many = SCENARIO.with_overrides(["cluster.modules_per_node=20"])
    view = LiveView(many, a_console(True)[0])
    totals = {"modules": {str(m): {"rows": 1000 + m} for m in range(40)}}
    view(Progress("run", 1, 4, 10, 1.0, totals, ({**DEAD, "module": 2},)))
    text = drawn(view)
    assert "module 2 " in text and "dead" in text
    assert "module 39" in text and "module 5 " not in text
    assert "and 24 more" in text


def test_the_figures_of_the_run_stay_while_it_is_checked() -> None:
    view = LiveView(SCENARIO, a_console(True)[0])
    view(Progress("run", 4, 4, 4000, 1.0, TOTALS))
    view(Progress("check", 1, 4))
    assert "comparing with the reference: 1 of 4" in drawn(view)
    assert "4.00 k rows" in drawn(view)


def drawn(view: LiveView) -> str:
    console, out = a_console(False)
    console.print(view)
    return out.getvalue()


def test_totals_do_not_dip_when_a_replacement_counts_from_zero() -> None:
    totals = Totals(2)
    for rows in (100, 250, 5, 30):
        totals.update({"modules": {"1": {"rows": rows}}})
    assert totals.of(1, "rows") == 250 + 30
    assert totals.of(0, "rows") == 0
    assert totals.sum("rows") == 280


DECIDED = {
    "kind": "rebalance",
    "batch": 19,
    "reason": "20 batches have passed",
    "why": "it gains",
    "balance_before": 0.4237,
    "promised": 0.925,
    "gain": 0.5,
    "planned_moves": 7,
    "planned_bytes": 2 << 20,
    "break_even_batches": None,
}
MOVED = {
    "kind": "moved",
    "number": 0,
    "done": True,
    "loaded": 7,
    "dropped": 6,
    "cancelled": 0,
    "fetched": 2 << 20,
    "seconds": 0.066,
}


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            {"kind": "fault", "fault": "hang", "module": 1, "for_s": 0.3},
            "module 1: fault injected: hang for 0.3 s",
        ),
        (
            {"kind": "fault", "fault": "delay", "module": None, "rate": 0.05, "delay_s": 0.005},
            "all modules: fault injected: delay of 5% by 0.005 s",
        ),
        ({"kind": "replace", "module": 2}, "module 2: a replacement is being started"),
        (
            {"kind": "failed", "batch": 4, "layer": 1, "expert": 7},
            "batch 4 failed: every copy of expert 7 (layer 1) is dead",
        ),
        (
            {"kind": "slow_batch", "batch": 9, "took_s": 1.5, "median_s": 0.02},
            "batch 9 was slow: 1.50 s, the median is 20.0 ms",
        ),
        (
            {"kind": "fault_never_due", "fault": "kill", "due": {"batch": 99}},
            "the fault kill at batch 99 was never due: the run was over",
        ),
        ({"kind": "mismatch", "batch": 3, "why": "it differs"}, "batch 3: it differs"),
        ({"kind": "fallback", "what": "X"}, "fallback: X"),
        (
            DECIDED | {"decision": "move"},
            "rebalance after batch 19 (20 batches have passed): 7 copies of experts move, 2.00 MiB, "
            "balance 0.42, 0.93 promised: it gains",
        ),
        (
            DECIDED | {"decision": "stay"},
            "rebalance after batch 19 (20 batches have passed): experts stay: it gains",
        ),
        (
            {"kind": "rebalance", "batch": 19, "decision": "failed", "why": "ValueError: no"},
            "rebalance after batch 19 failed, experts stay: ValueError: no",
        ),
        ({"kind": "moving", "move": 0, "epoch": 8}, "experts begin to move (move 0), epoch 8"),
        (
            MOVED,
            "experts moved (move 0): 7 copies loaded, 2.00 MiB between modules, 6 dropped, in 66.0 ms",
        ),
        (
            MOVED | {"cancelled": 2},
            "experts moved (move 0): 7 copies loaded, 2.00 MiB between modules, 6 dropped, in 66.0 ms; "
            "2 given up, since their module died",
        ),
        ({"kind": "started"}, ""),
    ],
)
def test_events_in_words(event: dict[str, Any], text: str) -> None:
    assert describe(event) == text


def test_times_and_counts_in_words() -> None:
    assert since_start({"since_start_virtual_s": 0.25}) == "+0.250 virtual s"
    assert since_start({}) == ""
    assert [count(n) for n in (0, 950, 999.6, 12_345, 4_560_000, 2e9)] == [
        "0",
        "950",
        "1.00 k",
        "12.3 k",
        "4.56 M",
        "2.00 G",
    ]


SUMMARY: dict[str, Any] = {
    "name": "seen",
    "passed": True,
    "checks": {"exact": True, "nothing_lost": True, "nothing_duplicated": True},
    "exact": True,
    "tokens_in": 2048,
    "tokens_out": 2048,
    "tokens_lost": 0,
    "tokens_duplicated": 0,
    "dropped_choices": 3,
    "failed_batches": [],
    "wall_s": 0.5,
    "record_cut": None,
    "ingest_copied_bytes": {"client": 2048, "coordinator": 0},
    "tokens_per_wall_s": 4096.0,
    "start_wall_s": 4.0,
    "check_wall_s": 0.1,
    "batch_p50_wall_s": 0.01,
    "batch_p99_wall_s": 0.02,
    "batch_max_wall_s": 0.03,
    "bytes_raw": 4096,
    "bytes_sent": 1024,
    "bytes_by_level": {"node": {"codec": "int8", "frames": 7, "raw": 4096, "sent": 1024}},
    "encode_wall_s": 0.25,
    "decode_wall_s": 0.125,
    "module_rows": [10, 30],
    "balance": 0.6667,
    "faults": [
        {
            "kind": "kill",
            "module": 1,
            "signal": "disconnect",
            "began_wall_s": 0.1,
            "detected_wall_s": 0.006,
            "recovered_wall_s": 0.012,
            "rejoined_wall_s": 1.5,
        },
        {"kind": "drop", "module": None, "began_wall_s": None, "detected_wall_s": None},
    ],
}


def words(out: io.StringIO) -> str:
    """The text of a table without its lines and line breaks."""
    return " ".join("".join(" " if c in "│─┌┐└┘┬┴├┤" else c for c in out.getvalue()).split())


def test_the_summary_as_a_table() -> None:
    console, out = a_console(False)
    print_summary(SUMMARY, Path("runs/seen"), console)
    text = words(out)
    for expected in (
        "exact, nothing lost, nothing duplicated",
        "2048 in, 2048 out, 0 lost, 0 duplicated",
        "500 ms, 4.10 k tokens/s",
        "p50 10.0 ms, p99 20.0 ms, max 30.0 ms",
        "4.00 KiB raw, 1.00 KiB sent in 7 frames (raw/sent 4.00), int8",
        "10 30, balance by batch and layer 0.67",
        "2.00 KiB by the client, 0 B by the coordinator",
        "(frames of the client and the coordinator are not counted)",
        "module 1 after 100 ms; detected in 6.00 ms (disconnect); next batch finished in 12.0 ms; "
        "module back in 1.50 s",
        "all modules, never due: the run was over",
        "runs/seen",
    ):
        assert expected in text, expected


def test_what_routers_did_is_shown_to_people() -> None:
    routing = {
        "dropped_choices": 1234.0,
        "overflowed_choices": 6.0,
        "decisions": 8,
        "tokens_without_expert": 91,
        "choices_per_token": 1.9925,
    }
    text = shown(routing=routing)
    assert (
        "routing 1.99 choices per token; dropped choices 1.23 k; overflowed choices 6; tokens without" in text
    )
    line = one_line(SUMMARY | {"routing": routing}, Path("r"))
    assert "; dropped choices 1.23 k; tokens without expert 91; r" in line
    assert "routing 1.25 choices per token" in shown(routing={"choices_per_token": 1.25})
    assert "routing" not in shown(routing={"choices_per_token": 2.0})


def shown(**more: Any) -> str:
    console, out = a_console(False)
    print_summary(SUMMARY | more, Path("r"), console)
    return words(out)


def test_the_summary_says_what_rebalancing_did_and_what_it_did_not() -> None:
    none = {"move": 0, "stay": 0, "failed": 0, "last_stay_why": None, "last_failed_why": None}
    assert "rebalancing" not in shown()
    assert "rebalancing never due in this run" in shown(rebalance_decisions=none, rebalances=[])
    stayed = none | {"stay": 3, "last_stay_why": "it gains too little"}
    assert "last stayed: it gains too little" in shown(rebalance_decisions=stayed, rebalances=[])
    done = {
        "batch": 19,
        "balance_before": 0.334,
        "balance_after": 0.87,
        "promised": 0.925,
        "planned_moves": 7,
        "moves": 7,
        "bytes": 4096,
        "cancelled": 0,
        "took_wall_s": 0.5,
        "slowdown": 1.25,
        "paid_after_batches": 4,
    }
    slow = done | {"paid_after_batches": None}
    text = shown(rebalance_decisions=none | {"move": 1}, rebalances=[slow])
    assert "the median of others; results came no quicker after it" in text
    once = done | {"paid_after_batches": 1}
    assert "; paid after 1 batch " in shown(rebalance_decisions=none | {"move": 1}, rebalances=[once])
    unfinished = done | {"batch": 39, "moves": None, "bytes": None, "balance_after": None}
    counts = none | {"move": 2, "failed": 1, "last_failed_why": "ValueError: no plan"}
    text = shown(rebalance_decisions=counts, rebalances=[done, unfinished, *[done] * 9])
    for expected in (
        "2 x experts moved, 0 x they stayed; 1 x PLANNING FAILED, so they stayed, last: ValueError: no plan",
        "batch 19 balance 0.33 -> 0.87 (0.93 promised); 7 copies, 4.00 KiB, in 500 ms; "
        "p99 of batches meanwhile 1.25 x the median of others; paid after 4 batches",
        "batch 39 7 copies were still on their way when the run ended; balance 0.33 before, 0.93 promised",
        "and 3 more in summary.json",
    ):
        assert expected in text, text


def test_a_failed_run_says_what_did_not_hold() -> None:
    failed = {
        **SUMMARY,
        "passed": False,
        "checks": {"exact": False, "nothing_lost": True, "nothing_duplicated": False},
        "failed_batches": [{"batch": n, "layer": 0, "expert": 2} for n in range(7)],
    }
    assert verdict(failed) == "FAILED: not exact, tokens duplicated"
    console, out = a_console(False)
    print_summary(failed, Path("x"), console)
    assert "4 (layer 0 expert 2) and 2 more" in words(out)


def test_the_shortest_account() -> None:
    unchecked = {**SUMMARY, "exact": None, "checks": {"exact": None}}
    assert one_line(unchecked, Path("r")) == (
        "seen: not compared with the reference, nothing lost, nothing duplicated; 2048 tokens, "
        "4.10 k tokens/s; r"
    )


def test_a_record_that_ends_early_is_said_in_both_accounts() -> None:
    cut = {**SUMMARY, "record_cut": "no more room in /small"}
    assert one_line(cut, Path("r")).endswith("; r; no more room in /small")
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary(cut, Path("r"), console)
    assert "no more room in /small; nor are the figures below complete" in console.export_text()


def test_hardware_s_figures_have_units_that_fit_them() -> None:
    """Of one hardware an object, of several a list of them; one that was not priced says why."""
    small = {"hardware": "pim", "step_emu_s": 4e-6, "tokens_per_emu_s": 2e6, "critical_path": {"queue": 1e-6}}
    small["joules_per_token"] = 3.8e-7
    told = "; pim: step 4.00 us, 2.00 M tokens per emulated s, 380 nJ per token; "
    assert told in one_line({**SUMMARY, "priced": small}, Path("r"))
    refused = {"hardware": "gpu", "refused": "no record"}
    line = one_line({**SUMMARY, "priced": [small, refused]}, Path("r"))
    assert f"{told}gpu: not priced: no record; " in line
