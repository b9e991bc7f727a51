"""Paced links: frames leave one after the other, as from a port of the given speed."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayemu.cluster.port import Port

RATE = 1e6


class Wire:
    """A link that notes what it is given."""

    endpoint = ""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def send(self, address: int, frame: list[Any]) -> None:
        self.sent.append((address, sum(map(len, frame))))


def frame(size: int) -> list[np.ndarray]:
    return [np.zeros(size // 4, np.uint8), np.zeros(size - size // 4, np.uint8)]


def paced() -> tuple[Wire, Port]:
    wire = Wire()
    ports = {1: (2, RATE), 2: (2, RATE), 3: (1, 10 * RATE)}  # 1 and 2 share a port; 4 has none
    return wire, Port(wire, ports.get)  # type: ignore[arg-type]


def test_a_port_sends_one_frame_after_the_other_at_its_rate() -> None:
    wire, port = paced()
    for address, size in [(1, 1000), (2, 3000), (1, 500), (3, 1000), (4, 10**6)]:
        port.send(address, frame(size), [0.0], 10.0)
    assert wire.sent == [(4, 10**6)]
    due = port.release(10.0)
    for at, expected in [(0.0001, (3, 1000)), (0.001, (1, 1000)), (0.004, (2, 3000)), (0.0045, (1, 500))]:
        assert abs(due - 10.0 - at) < 1e-9
        assert port.release(10.0 + at - 1e-6) == due  # not a microsecond early
        due = port.release(10.0 + at + 1e-6)
        assert wire.sent[-1] == expected
    assert due == float("inf")
    port.send(1, frame(1000), [0.0], 20.0)  # the port was idle: its time is not saved up
    assert abs(port.release(20.0) - 20.001) < 1e-9


def test_pace_and_delays_add_up() -> None:
    wire, port = paced()
    port.send(1, frame(1000), [0.5, 0.5], 1.0)
    assert abs(port.release(1.0) - 1.501) < 1e-9
    assert abs(port.release(1.5011) - 1.502) < 1e-9 and len(wire.sent) == 1
    port.release(1.6)
    assert wire.sent == [(1, 1000)] * 2
    port.send(4, frame(1000), [], 2.0)  # lost: there is no copy
    assert port.release(9.0) == float("inf") and len(wire.sent) == 2
