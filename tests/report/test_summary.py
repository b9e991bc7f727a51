"""Summaries of hand-made results and records; every expected figure is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.drivers.record import COMBINE, DECODE, DISPATCH, ENCODE, FORWARD, GEMM, RECORD, REPLY
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import DROPPED, Failure
from rayemu.report.summary import account_tokens, account_traffic, batch_times, slow_batches

LOCAL, MODULE, NODE = 0, 1, 2


def result(batch: int, delivered: list[int], chosen: list[list[int]], took: float = 1.0) -> BatchResult:
    y = np.zeros((len(delivered), 4), np.float32)
    return BatchResult(
        batch,
        y,
        np.array(chosen, np.int64),
        np.array(delivered, np.int32),
        submitted_at=10.0 + batch,
        finished_at=10.0 + batch + took,
    )


def row(kind: int, level: int, src: int, dst: int, **values: float) -> np.ndarray:
    made = np.zeros(1, RECORD)
    made["kind"], made["level"], made["codec"], made["src"], made["dst"] = kind, level, level, src, dst
    made["expert"] = -1
    for name, value in values.items():
        made[name] = value
    return made


def a_record() -> np.ndarray:
    """3 modules, 0 and 1 in one node: rows of 16 bytes, one request in the node and one that is relayed."""
    return np.concatenate(
        [
            row(DISPATCH, MODULE, 0, 1, rows=10, raw_bytes=160, sent_bytes=200),
            row(DISPATCH, NODE, 0, 2, rows=6, raw_bytes=96, sent_bytes=50),
            row(FORWARD, NODE, 2, 0, rows=6, raw_bytes=96, sent_bytes=60),
            row(GEMM, LOCAL, 1, 1, rows=10, expert=3, flops=1000, start_wall_s=100.0, end_wall_s=100.5),
            row(GEMM, LOCAL, 1, 1, rows=4, expert=5, flops=400, start_wall_s=101.0, end_wall_s=101.25),
            row(GEMM, LOCAL, 2, 2, rows=6, expert=4, flops=600, start_wall_s=100.0, end_wall_s=100.125),
            row(GEMM, LOCAL, 0, 0, rows=99, expert=-1, flops=50, start_wall_s=100.0, end_wall_s=102.0),
            row(REPLY, MODULE, 1, 0, rows=10, raw_bytes=160, sent_bytes=190),
            row(COMBINE, LOCAL, 0, 0, rows=16, raw_bytes=256, flops=64),
        ]
    )


def test_tokens_are_counted_one_by_one() -> None:
    failed = result(2, [1, 0, 1], [[9, 9]])
    failed.failure = Failure(2, 0, 4, 7, 1)
    whole, strange = result(0, [1, 1, 1, 1], [[3, 5]]), result(1, [1, 3, 0], [[2, 1]])
    account = account_tokens([whole, strange, failed], 1, 2)
    assert account["batches"] == 3
    assert account["tokens_in"] == 4 + 3 + 3
    assert account["tokens_out"] == 4 + 2  # the failed batch gives none
    assert account["tokens_lost"] == 1 + 3
    assert account["tokens_duplicated"] == 2  # one token came three times
    assert account["expert_tokens"] == [[5, 6]]
    assert account["failed_batches"] == [{"batch": 2, "layer": 4, "expert": 7}]
    assert account["dropped_choices"] == 0


def test_dropped_choices_are_counted_and_are_not_lost_tokens() -> None:
    done = result(0, [1, 1], [[1, 1]])
    done.dispatch_paths = np.array([[[0, DROPPED], [DROPPED, 2]]], np.uint8)  # [L=1, T=2, K=2]
    account = account_tokens([done], 1, 2)
    assert (account["dropped_choices"], account["tokens_lost"], account["tokens_out"]) == (2, 0, 2)


def test_no_results_are_no_tokens() -> None:
    account = account_tokens([], 2, 3)
    assert (account["tokens_in"], account["tokens_lost"]) == (0, 0)
    assert account["expert_tokens"] == [[0, 0, 0], [0, 0, 0]]


def test_traffic_of_a_hand_made_record() -> None:
    account = account_traffic(a_record(), 3, ["raw", "raw", "int8"])
    assert account["bytes_raw"] == 160 + 96 + 96 + 160
    assert account["bytes_sent"] == 200 + 50 + 60 + 190
    assert account["frames"] == 4
    assert account["bytes_by_level"] == {
        "module": {"codec": "raw", "frames": 2, "raw": 320, "sent": 390},
        "node": {"codec": "int8", "frames": 2, "raw": 192, "sent": 110},
    }
    assert (account["encode_wall_s"], account["decode_wall_s"]) == (0, 0)
    assert account["traffic_bytes"] == [[0, 200, 50], [190, 0, 0], [60, 0, 0]]
    assert account["module_rows"] == [0, 14, 6]  # the shared expert's 99 rows are not routed
    assert account["module_busy_wall_s"] == [2.0, 0.75, 0.125]
    assert account["flops"] == 2050
    assert account["balance"] == pytest.approx((20 / 3) / 14)  # all of one layer of one batch


def test_balance_is_that_of_each_layer_of_each_batch_which_wait_for_their_fullest_module() -> None:
    def computed(module: int, rows: int, layer: int, batch: int) -> np.ndarray:
        return row(GEMM, LOCAL, module, module, rows=rows, layer=layer, batch=batch, expert=module)

    layers = [computed(0, 100, 0, 0), computed(1, 200, 0, 0), computed(0, 200, 1, 0), computed(1, 100, 1, 0)]
    assert account_traffic(np.concatenate(layers), 2, ["raw"])["balance"] == 0.75
    # Another batch, for which two GEMMs of 50 rows make both modules alike in one layer.
    other = [computed(0, 50, 0, 1), computed(0, 50, 0, 1), computed(1, 100, 0, 1)]
    account = account_traffic(np.concatenate([*layers, *other]), 2, ["raw"])
    assert account["balance"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    idle = account_traffic(
        row(DISPATCH, MODULE, 0, 1, rows=1, raw_bytes=16, sent_bytes=64), 2, ["raw", "raw"]
    )
    assert idle["balance"] is None


def test_the_time_of_codecs_is_summed() -> None:
    coded = [
        row(kind, MODULE, 0, 0, raw_bytes=64, start_wall_s=1.0, end_wall_s=1.0 + took)
        for kind, took in ((ENCODE, 0.25), (ENCODE, 0.5), (DECODE, 0.125))
    ]
    account = account_traffic(np.concatenate([a_record(), *coded]), 3, ["raw", "raw", "int8"])
    assert (account["encode_wall_s"], account["decode_wall_s"]) == (0.75, 0.125)
    assert (account["frames"], account["bytes_raw"]) == (4, 512), "they are no frames"


def test_what_was_not_recorded_is_unknown_not_zero() -> None:
    account = account_traffic(np.zeros(0, RECORD), 3, ["raw"] * 3)
    assert set(account.values()) == {None}
    assert set(account) == set(account_traffic(a_record(), 3, ["raw"] * 3))


def test_frames_of_the_coordinator_are_no_traffic_between_modules() -> None:
    record = np.concatenate([a_record(), row(DISPATCH, LOCAL, -1, 0, raw_bytes=7, sent_bytes=7)])
    assert account_traffic(record, 3, ["raw"] * 3)["bytes_sent"] == 500
    assert (
        "not those of the client and the coordinator"
        in account_traffic(record, 3, ["raw"] * 3)["frames_counted"]
    )


def test_times_of_batches_name_their_clock() -> None:
    results = [result(i, [1], [[1]], took) for i, took in enumerate((1.0, 2.0, 3.0))]
    assert batch_times(results, "virtual") == pytest.approx(
        {"batch_p50_virtual_s": 2.0, "batch_p99_virtual_s": 2.98, "batch_max_virtual_s": 3.0}
    )
    assert batch_times([], "wall") == {}


def test_slow_batches_are_those_far_above_the_median() -> None:
    results = [result(i, [1], [[1]], took) for i, took in enumerate((1.0, 1.0, 1.5, 10.0))]
    assert [(r.batch, took, median) for r, took, median in slow_batches(results)] == [
        (3, pytest.approx(10.0), pytest.approx(1.25))
    ]
    assert slow_batches(results[:2]) == []
