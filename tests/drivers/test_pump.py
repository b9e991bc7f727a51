"""The pump notes what came first: work cannot have waited until after it had begun."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from rayemu.drivers.pump import ModulePump


@pytest.mark.parametrize("what", ["tick", "finished"])
def test_work_waits_for_what_led_to_it_and_not_for_the_end_of_itself(what: str) -> None:
    """A clock that goes on by one whenever someone looks at it: the machine looks when it works."""
    clock = map(float, itertools.count()).__next__
    began, queued = [], []

    def works(*_: Any) -> list[Any]:
        began.append(clock())
        return []

    driver: Any = SimpleNamespace(
        clock=clock, record_clock=clock, send=None, shares=None, compute=None, meet=None, process=None
    )
    record: Any = SimpleNamespace(worked=queued.append, computed=lambda *_: None)
    pump = ModulePump(driver, SimpleNamespace(tick=works, finish=works), None, record, None)  # type: ignore[arg-type]
    pump.tick() if what == "tick" else pump.finished(None, 0.0, 0.0)  # type: ignore[arg-type]
    assert len(began) == len(queued) == 1 and queued[0] < began[0]
