"""Links on real sockets: who takes which way, and who is let in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from rayemu.cluster.link import ZmqLink, ZmqSettings

FRAME = [b"\1" * 100, b"\2" * 200_000]


def arrived(link: ZmqLink, within_s: float) -> list[bytes]:
    """The first frame that comes in time, else nothing."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for frame in link.receive(0.05):
            return [bytes(piece) for piece in frame]
    return []


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[ZmqLink, ZmqLink]]:
    """Two links with both kinds of socket."""
    settings = ZmqSettings(str(tmp_path), "127.0.0.1", zmq.curve_keypair(), zmq.curve_keypair())
    a, b = ZmqLink("a", settings), ZmqLink("b", settings)
    yield a, b
    a.close()
    b.close()


@pytest.mark.parametrize("of", ["own", "other"])
def test_a_machine_s_own_processes_are_reached_without_the_network(
    both: tuple[ZmqLink, ZmqLink], of: str
) -> None:
    a, b = both
    host, near, far = b.endpoint.split("|")
    a.connect(1, b.endpoint if of == "own" else f"{host}-other|{near}|{far}")
    b.admit(0, a.endpoint)
    a.send(1, FRAME)
    assert b"".join(arrived(b, 10)) == b"".join(FRAME)
    channel = a._peers[1][1].getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0")
    assert channel.partition("#")[0] == (near.partition("#")[0] if of == "own" else far)


@pytest.mark.parametrize("keys", ["the run's", "a stranger's"])
def test_only_the_run_s_own_client_keys_are_let_in_over_tcp(both: tuple[ZmqLink, ZmqLink], keys: str) -> None:
    """Who knows the server's public key can ask to be let in; the answer goes by the client's."""
    _, b = both
    context = zmq.Context()
    channel = context.socket(zmq.PUSH)
    try:
        own = b.settings.client_keys if keys == "the run's" else zmq.curve_keypair()
        channel.curve_publickey, channel.curve_secretkey = own
        channel.curve_serverkey = b.settings.server_keys[0]
        channel.connect(b.endpoint.split("|")[2])
        channel.send(b"let me in")
        expected = [b"let me in"] if keys == "the run's" else []
        assert arrived(b, 5 if expected else 0.7) == expected
    finally:
        channel.close(linger=0)
        context.term()


def test_large_pieces_of_a_peer_are_taken_while_it_is_announced(both: tuple[ZmqLink, ZmqLink]) -> None:
    a, b = both
    a.connect(1, b.endpoint)
    for admitted in (False, True, False, True):
        b.admit(0, a.endpoint if admitted else "")
        a.send(1, FRAME)
        assert b"".join(arrived(b, 5 if admitted else 0.3)) == (b"".join(FRAME) if admitted else b"")


def test_who_lacks_the_run_s_keys_is_not_heard_over_tcp(
    both: tuple[ZmqLink, ZmqLink], tmp_path: Path
) -> None:
    _, b = both
    far = b.endpoint.split("|")[2]
    context = zmq.Context()
    stranger = context.socket(zmq.PUSH)
    try:
        stranger.connect(far)
        stranger.send(b"let me in")
        assert arrived(b, 0.5) == []
    finally:
        stranger.close(linger=0)
        context.term()
