"""The page of routers: read back, it has every one, and loads nothing from anywhere."""

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.report.pareto import HEIGHT, LETTER, LINE, WIDTH, Point, page, placed
from rayemu.routing import ROUTERS

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"d_model": 32, "d_ff": 16, "experts": 8, "top_k": 2, "layers": 2},
    "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
    "run": {"batch_tokens": 50, "seed": 4},
}


class _Tags(HTMLParser):
    """What a page would load, and its JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts: dict[str, str] = {}
        self._of = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.loads += [f"{tag} {known[key]}" for key in ("src", "href", "srcset", "data") if known.get(key)]
        self._of = (known.get("type") or "code") if tag == "script" else tag

    def handle_data(self, data: str) -> None:
        self.scripts[self._of] = self.scripts.get(self._of, "") + data


def _read(text: str) -> tuple[_Tags, Any]:
    tags = _Tags()
    tags.feed(text)
    return tags, json.loads(html.unescape(tags.scripts["application/json"]))


def _found(data: Any, **wanted: str) -> list[Any]:
    """All objects of the page's JSON that have these values, in it at any depth."""
    if isinstance(data, list):
        return [one for each in data for one in _found(each, **wanted)]
    if not isinstance(data, dict):
        return []
    mine = [data] if all(data.get(key) == value for key, value in wanted.items()) else []
    return mine + [one for each in data.values() for one in _found(each, **wanted)]


def _drawn(panel: Any, name: str) -> dict[str, list[Any]]:
    """The columns of what is drawn under this name."""
    drawn = _found(panel, type="object", name="GlyphRenderer")
    (one,) = (each["attributes"] for each in drawn if each["attributes"].get("name") == name)
    return dict(one["data_source"]["attributes"]["data"]["entries"])


def test_every_router_is_in_a_page_that_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("bokeh", reason="pip install 'rayemu[plots]'")
    scenario, file = tmp_path / "tiny.yaml", tmp_path / "new" / "routers.html"
    scenario.write_text(json.dumps(TINY))
    asked = ["routers", str(scenario), "--batches", "1", "--json", "--plot", str(file)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    lines = {line["router"]: line for line in json.loads(result.stdout)["routers"] if "refused" not in line}
    assert lines.keys() == ROUTERS.keys() - {"replay"}
    text = file.read_text("utf-8")
    assert len(text.encode()) < 3_000_000
    tags, data = _read(text)
    assert not tags.loads and "@import" not in tags.scripts.get("style", "")
    assert not re.search(r"url\(\s*['\"]?(https?:)?//", text)
    panels = _found(data, name="Figure")
    for panel, (cost, unit) in zip(panels, [("remote", "%"), ("balance", "times the mean")], strict=True):
        assert unit in json.dumps(panel["attributes"]["below"])
        for scope in ("row", "batch"):
            columns = _drawn(panel, scope)
            assert set(columns["name"]) == {name for name in lines if ROUTERS[name].scope == scope}
            mine = [lines[name] for name in columns["name"]]
            scale = 100 if unit == "%" else 1
            assert columns["x"] == pytest.approx([scale * line[cost] for line in mine])
            assert columns["y"] == pytest.approx([line["output_error"] for line in mine])
            assert columns["agreement"] == [f"{line['agreement']:.1%}" for line in mine]
        labels = _drawn(panel, "labels")["text"]
        assert sorted(name for label in labels for name in re.split(", |\n", label)) == sorted(lines)
        best = {(scale * line[cost], line["output_error"]) for line in lines.values() if cost in line["best"]}
        step = _drawn(panel, "best")
        assert list(zip(step["x"], step["y"], strict=True)) == sorted(best)
    assert "replay: path: " in html.unescape(text), "and why one is not there"


def test_without_bokeh_it_says_how_to_get_it_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    result = CliRunner().invoke(app, ["routers", "smoke", "--plot", str(tmp_path / "x.html")])
    assert result.exit_code == 2 and not result.stdout
    assert "--plot: a plot needs bokeh, which is not installed: pip install 'rayemu[plots]'" in result.stderr


def test_a_folder_is_no_page(tmp_path: Path) -> None:
    pytest.importorskip("bokeh", reason="pip install 'rayemu[plots]'")
    result = CliRunner().invoke(app, ["routers", "smoke", "--plot", str(tmp_path)])
    assert result.exit_code == 2 and "is a folder; name a file in it" in result.stderr


def test_labels_cover_nothing() -> None:
    """Every label lies in the frame, apart from others and from points; points that coincide share one."""
    rng = np.random.default_rng(0)
    pixels = [(float(x), float(y)) for x, y in rng.uniform(20, (WIDTH - 20, HEIGHT - 20), (20, 2))]
    pixels += [(WIDTH - 40.0, 40.0)] * 9
    names = [f"router_{at:02}_topk" for at in range(len(pixels))]
    found = list(placed(names, pixels))
    assert sorted(at for some, *_ in found for at in some) == list(range(29))
    assert list(range(20, 29)) in [some for some, *_ in found]
    boxes = []
    for some, text, (right, up), (to_right, to_up) in found:
        assert sorted(re.split(", |\n", text)) == [names[at] for at in some]
        x, y = pixels[some[0]]
        lines = text.split("\n")
        high, wide = LINE * len(lines) / 2, LETTER * max(map(len, lines))
        boxes.append((x + right, y + up - high, x + right + wide, y + up + high))
        left, low, end, top = boxes[-1]
        assert left <= x + to_right <= end and low <= y + to_up <= top, "its line ends at it"
    for a in boxes:
        assert a[0] >= 0 and a[1] >= 0 and a[2] <= WIDTH and a[3] <= HEIGHT
        assert not any(a[0] < x < a[2] and a[1] < y < a[3] for x, y in pixels)
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_names_are_text_not_markup() -> None:
    pytest.importorskip("bokeh", reason="pip install 'rayemu[plots]'")
    point = Point("x</script><b>", "row", 0.1, 50.0, 1.0, ("remote",), {"agreement": "1"})
    text = page([point], "a <title>", ["x</script><b>"])
    assert "x</script>" not in text and "a <title>" not in text
    page([], "nothing could run")
