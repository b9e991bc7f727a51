"""The graph that pricing is timed on is the layers that it says, one after the other."""

import numpy as np
import pytest

from rayemu.benchmarks.pricing import layers
from rayemu.hardware import load_hardware
from rayemu.model.presets import PRESETS
from rayemu.pricing import schedule


def test_three_layers_take_three_times_as_long_as_one() -> None:
    hardware, model = load_hardware("text-pim"), PRESETS["deepseek-v3"]
    one, three = (layers(count, modules=1, tokens=4) for count in (1, 3))
    assert len(three) == 3 * len(one) and (np.diff(three.cause_start) >= 0).all()
    spans = [schedule(graph, hardware, model).span for graph in (one, three)]
    assert spans[1] == pytest.approx(3 * spans[0])
