"""The error budget, against formulas and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rayemu.compression import CodecError, make_codec
from rayemu.model.model import Model
from rayemu.model.reference import finish, moe_forward, prepare
from rayemu.report.scatter import scatter
from rayemu.scenario import Scenario
from rayemu.study.budget import CODECS, Entry, budget, over_layers
from rayemu.study.codecs import report

SMALL = {"d_model": 64, "d_ff": 96, "experts": 4, "top_k": 2, "layers": 2}


def model() -> Model:
    return Model(Scenario.from_dict({"model": SMALL}).spec)


ROWS = np.random.default_rng(0).standard_normal((48, 64), dtype=np.float32)


def test_every_codec_is_measured_at_every_layer() -> None:
    entries = list(budget(model(), ROWS))
    assert [(e.layer, e.codec) for e in entries] == [
        (layer, str(make_codec(c))) for layer in (0, 1) for c in CODECS
    ]
    assert not any(e.refused for e in entries)
    for e in entries:
        assert e.ratio == pytest.approx(4 / e.bytes_per_value)
        assert e.encode_gb_per_s > 0 and e.decode_gb_per_s > 0
        assert (e.output_error == 0) == (e.row_error_max == 0) == e.lossless
        assert (e.pays_below_gb_per_s > 0) == (e.ratio > 1)
        assert e.row_error_mean <= e.row_error_max


def test_errors_are_those_of_the_rows_that_the_layer_gets() -> None:
    stack = model()
    second = next(e for e in budget(stack, ROWS, ["bf16"]) if e.layer == 1)
    h = finish(stack.layers[0], ROWS, moe_forward(stack.layers[0], prepare(stack.layers[0], ROWS)))
    x = prepare(stack.layers[1], h)
    errors = np.linalg.norm(make_codec("bf16").roundtrip(x) - x, axis=1) / np.linalg.norm(x, axis=1)
    assert second.row_error_mean == pytest.approx(errors.mean(), rel=1e-4)
    assert second.row_error_max == pytest.approx(errors.max(), rel=1e-4)
    assert 0 < second.output_error < 2.0**-6, "both ways through bfloat16, 2^-8 each"


def test_the_link_speed_that_pays_balances_the_books() -> None:
    """B/R = coder time + B/(ratio R) at the break-even speed R."""
    (entry,) = (e for e in budget(model(), ROWS, ["int8"]) if e.layer == 0)
    coder = 1 / entry.encode_gb_per_s + 1 / entry.decode_gb_per_s  # seconds per GB of rows
    link = entry.pays_below_gb_per_s
    assert 1 / link == pytest.approx(coder + 1 / (entry.ratio * link))


def test_a_codec_that_cannot_carry_the_rows_says_so() -> None:
    huge = ROWS * np.float32(1e6)
    stack = Model(Scenario.from_dict({"model": {**SMALL, "norm": False}}).spec)
    lines = over_layers(list(budget(stack, huge, ["fp16", "bf16"])))
    assert "beyond 65504" in lines[0]["refused"] and "layer 0" in lines[0]["refused"]
    assert "refused" not in lines[1]


def test_layers_are_averaged_and_the_worst_errors_kept() -> None:
    entries = [
        Entry("x", 0, False, True, 1.0, 4.0, 2.0, 2.0, 0.1, 0.2, 0.3, 1.0),
        Entry("x", 1, False, True, 3.0, 2.0, 4.0, 2.0, 0.3, 0.9, 0.1, 3.0),
    ]
    (line,) = over_layers(entries)
    assert (line["bytes_per_value"], line["row_error_mean"]) == (2.0, pytest.approx(0.2))
    assert (line["row_error_max"], line["output_error"], line["pays_below_gb_per_s"]) == (0.9, 0.3, 2.0)


def test_the_plot_places_size_error_and_speed() -> None:
    base = {"lossless": False, "encode_gb_per_s": 1.0, "decode_gb_per_s": 4.0}
    lines = [
        {"codec": "small&wrong", "ratio": 8.0, "output_error": 0.1, **base},
        {"codec": "large", "ratio": 2.0, "output_error": 0.001, **base, "encode_gb_per_s": 4.0},
        {"codec": "exact", "ratio": 1.2, "output_error": 0.0, **base, "lossless": True},
        {"codec": "no", "refused": "cannot"},
    ]
    root = ElementTree.fromstring(scatter(lines, "a <title>"))
    circles = root.findall(".//{*}circle")
    x, y, r = ([float(c.get(key, "nan")) for c in circles] for key in ("cx", "cy", "r"))
    assert len(circles) == 3
    assert x[0] > x[1] > x[2] and y[0] < y[1] < y[2] and r[1] > r[0] == r[2]
    assert "small&wrong: 8.00x" in (circles[0].findtext("{*}title") or "")


def test_the_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = Scenario.from_dict({"name": "tiny", "model": SMALL, "stream": {"kind": "uniform"}})
    report(scenario, ["raw", "int8+zstd"], 32, tmp_path / "new")
    found = json.loads((tmp_path / "new" / "codecs.json").read_text())
    assert [line["codec"] for line in found["codecs"]] == ["raw", "int8+zstd"]
    assert len(found["layers"]) == 4 and found["rows"] == 32
    assert ElementTree.parse(tmp_path / "new" / "codecs.svg").getroot().tag.endswith("svg")
    shown = capsys.readouterr().out
    assert "int8+zstd" in shown and "tiny: 32 rows of 64 values at 2 layers" in shown
    with pytest.raises(CodecError, match="int9"):
        report(scenario, ["int9"], 8, None)
