"""Prefetching into a tier: priced by hand, and what `rayemu tiers --prefetch` prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.hardware import load_hardware
from rayemu.study.prefetch import prefetching
from rayemu.traces import Trace, from_choices, write

SLOW, FAST = 1e-4 + 1 / 7, 1e-7 + 1 / 256  # seconds for 1 GB: text-pim's ssd and module


def _choices() -> np.ndarray:
    """One choice of 6 in two layers: a period of 0 1 0 2, and in the second layer the same plus 3."""
    first = np.tile([0, 1, 0, 2], 25)
    return np.stack([first, first + 3], axis=1)[:, :, None]


def test_by_hand() -> None:
    tiers = load_hardware("text-pim").spec.tiers
    assert tiers is not None
    held = {"sram": 0, "module": 1, "remote": 0, "ssd": 99}
    found = {line.predictor: line for line in prefetching(_choices(), 6, tiers, 1e9, held, 1, 0.0)}
    alone = found["none, lru"]
    assert alone.use_emu_s == pytest.approx(SLOW), "with one place nothing is used twice in a row"
    pattern = found["tokens before, patterns"]
    # the third token is the first whose token before was seen; its pattern comes again from the sixth on
    used = 200
    missed = round((1 - pattern.hit_rate) * used)
    assert 6 <= missed <= 12
    assert pattern.use_emu_s == pytest.approx((missed * SLOW + (used - missed) * FAST) / used)
    by_layer = found["layer before, transitions"]  # the second layer follows from the first, but for 3 times
    assert by_layer.hit_rate == pytest.approx((100 - 3) / 200) and by_layer.precision == 1
    assert by_layer.use_emu_s == pytest.approx((103 * SLOW + 97 * FAST) / 200) and by_layer.wasted == 0
    assert found["token before, transitions"].wasted > 0.1, "after 0 comes either"
    sure = {line.predictor: line for line in prefetching(_choices(), 6, tiers, 1e9, held, 1, 0.9)}
    assert sure["token before, transitions"].precision > found["token before, transitions"].precision
    with pytest.raises(ValueError, match="--prefetch: 2 is not allowed; no tier but the last has places"):
        prefetching(_choices(), 6, tiers, 1e9, held, 2, 0.0)


def test_places_for_what_is_fetched_are_lru_s_no_more() -> None:
    """0 1 0 1 in one layer: two places hold both, one holds neither when it is asked for."""
    tiers = load_hardware("text-pim").spec.tiers
    assert tiers is not None
    held = {"sram": 0, "module": 2, "remote": 0, "ssd": 9}
    choices = np.tile([0, 1], 50)[:, None, None]
    found = {line.predictor: line for line in prefetching(choices, 2, tiers, 1e9, held, 1, 0.0)}
    assert found["none, lru"].use_emu_s == pytest.approx((2 * SLOW + 98 * FAST) / 100)
    assert found["layer before, transitions"].use_emu_s == pytest.approx(SLOW), "there is no layer before"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write(tmp_path / "trace.npz", "rayemu", from_choices(_choices(), np.array([0, 100]), 6))
    return tmp_path / "trace.npz"


def _tiers(trace: Path, *arguments: str) -> tuple[int, str]:
    capacity = "--expert-bytes", "1 GB", "--capacity", "module=3", "--policy", "lru"
    result = CliRunner().invoke(app, ["tiers", str(trace), *capacity, *arguments])
    return result.exit_code, result.output


def test_the_command(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, text = _tiers(trace, "--prefetch", "2", "--confidence", "0.4")
    assert code == 0 and "layers before, patterns" in text and "…" not in text
    code, text = _tiers(trace, "--prefetch", "2", "--json")
    lines = json.loads(text)["prefetching"]
    assert lines[0]["predictor"] == "none, lru" and len(lines) == 5
    assert all(line["use_emu_s"] <= SLOW for line in lines)


def test_what_cannot_be_is_refused(trace: Path, tmp_path: Path) -> None:
    code, text = _tiers(trace, "--prefetch", "2", "--batch", "3")
    assert code == 2 and "--batch is not 1; prefetching needs the choices of single tokens" in " ".join(
        text.split()
    )
    write(tmp_path / "loads.npz", "rayemu", Trace(np.ones((2, 1, 4), np.int64)))
    code, text = _tiers(tmp_path / "loads.npz", "--prefetch", "2")
    assert code == 2 and "the trace has loads only" in " ".join(text.split())
    code, text = _tiers(trace, "--prefetch", "5", "--capacity", "remote=1")
    assert code == 2 and "--prefetch: 5 is not allowed; no tier but the last" in " ".join(text.split())
