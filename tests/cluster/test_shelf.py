"""Frames through shared memory: same bytes, space given back, no trust in what others claim."""

from __future__ import annotations

import gc
import multiprocessing
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.cluster import shelf as shelf_module
from rayemu.cluster.link import ZmqLink, ZmqSettings
from rayemu.cluster.shelf import LEAST_BYTES, SHELF_BYTES, Readers, Shelf

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

ME, OTHER = os.getpid(), os.getppid()


def opened() -> tuple[Shelf, Readers]:
    """A shelf, and someone who was told of it."""
    shelf, readers = Shelf(), Readers()
    assert readers.open(shelf.token) == ME
    return shelf, readers


def piece(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def wired(parts: list[Any]) -> list[memoryview]:
    """What the other side gets of a message's parts: copies that share nothing."""
    return [memoryview(bytes(part)) for part in parts]


def test_large_pieces_are_read_in_place_and_small_ones_travel() -> None:
    shelf, readers = opened()
    frame = [piece(100), piece(LEAST_BYTES, 1), piece(LEAST_BYTES - 1, 2), piece(1_000_003, 3)]
    parts = shelf.message(frame, ME)
    assert sum(len(part) for part in parts) < 100 + LEAST_BYTES + 1000
    got = readers.frame(wired(parts))
    assert got is not None and [bytes(p) for p in got] == [bytes(p) for p in frame]
    with pytest.raises(ValueError):
        got[1][0] = 1  # what was checked may not change
    small = frame[:1]
    assert shelf.message(small, ME) == small and readers.frame(small) == small


def test_a_piece_stays_until_its_last_view_is_gone() -> None:
    shelf, readers = opened()
    first = piece(SHELF_BYTES // 2, 1)
    got = readers.frame(wired(shelf.message([first], ME)))
    assert got is not None
    rows = np.frombuffer(memoryview(got[0]), np.float32).reshape(-1, 64)[100:200]
    expected = rows.copy()
    del got
    for seed in range(2, 5):  # only one of them fits beside the first, at a time
        readers.frame(wired(shelf.message([piece(SHELF_BYTES // 3, seed)], ME)))
        assert np.array_equal(rows, expected, equal_nan=True)
    assert len(shelf.message([first], ME)) == 2  # no room: it travels itself
    del rows
    gc.collect()
    assert len(shelf.message([first], ME)) == 1


def test_what_is_made_on_the_shelf_is_sent_without_a_copy() -> None:
    shelf, readers = opened()
    rows = shelf.new_rows(300, 128)
    rows[:] = np.arange(300)[:, None]
    frame = [piece(64), rows[100:250].reshape(-1).view(np.uint8)]
    (part,) = shelf.message(frame, ME)
    got = readers.frame(wired([part]))
    assert got is not None
    there = np.frombuffer(got[1], np.float32).reshape(150, 128)
    assert np.array_equal(there, rows[100:250]) and bytes(got[0]) == bytes(frame[0])
    rows[100] = -1  # what nobody may do shows that both are the same memory
    assert (there[0] == -1).all()


@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_room_comes_back_when_neither_side_holds_a_view(last: str) -> None:
    shelf, readers = opened()
    width = SHELF_BYTES // 4 // 1000 * 3 // 4  # three quarters of the shelf
    rows = shelf.new_rows(1000, width)
    place = rows.__array_interface__["data"][0]
    rows[:] = 7
    got = readers.frame(wired(shelf.message([rows.reshape(-1).view(np.uint8)], ME)))
    held = rows[5:6] if last == "ours" else np.frombuffer(got[0], np.float32)[:10]  # type: ignore[index]
    del rows, got
    elsewhere = shelf.new_rows(1000, width)
    assert elsewhere.__array_interface__["data"][0] != place and (held == 7).all()
    del held, elsewhere
    assert shelf.new_rows(1000, width).__array_interface__["data"][0] == place


def test_few_rows_are_ordinary_memory() -> None:
    shelf = Shelf()
    address, base = (a.__array_interface__["data"][0] for a in (shelf.new_rows(3, 4), shelf._bytes))
    assert not base <= address < base + SHELF_BYTES


def test_far_more_than_the_shelf_holds_goes_through_in_bits_of_all_sizes() -> None:
    (shelf, readers), rng = opened(), np.random.default_rng(3)
    held: list[tuple[np.ndarray, Any]] = []
    total = 0
    while total < 4 * SHELF_BYTES:
        data = piece(int(rng.integers(LEAST_BYTES, 8 << 20)), total)
        got = readers.frame(wired(shelf.message([data], ME)))
        assert got is not None
        held.append((data, got[0]))
        total += len(data)
        while len(held) > 10:
            data, there = held.pop(int(rng.integers(len(held))))
            assert np.array_equal(data, there)
    assert all(np.array_equal(data, there) for data, there in held)


def test_forged_messages_are_no_frames() -> None:
    shelf, readers = opened()
    size = 2 * LEAST_BYTES
    (good,) = shelf.message([piece(size)], ME)
    head, place = good[:16], struct.Struct("<IIIIQQ")
    shelved, slot, pid, descriptor, offset, _ = place.unpack(good[16:])
    ways = {place.unpack(bytes(shelf.message([piece(n), piece(size)], ME)[0])[16:48])[0] for n in (9, size)}
    (inside,) = ways - {shelved}
    mine = (pid, descriptor)
    assert readers.frame([memoryview(good)]) is not None
    for bad in [
        good[:-1],
        good + b"x",
        good[:10],
        head + place.pack(shelved, slot, *mine, SHELF_BYTES - 1, size),
        head + place.pack(shelved, slot, *mine, 0, size),  # the bytes that say who is done
        head + place.pack(shelved, slot, *mine, offset, 1 << 63),
        head + place.pack(shelved, 1 << 31, *mine, offset, size),
        head + place.pack(shelved, slot, 2**31, 5, offset, size),  # bytes on nobody's shelf
        head + place.pack(inside, 0, *mine, 0, 16),  # the head itself
        head + place.pack(inside, 0, *mine, 48, 1),  # behind its end
        head + place.pack(({0, 1, 2} - ways).pop(), 0, *mine, 0, 0),  # a next part that is not there
        head + place.pack(9, slot, *mine, offset, size),  # a way that is none
        struct.pack("<4sIII", b"RYSH", 2**31, 5, 1) + good[16:],  # a slot of nobody's shelf
    ]:
        assert readers.frame([memoryview(bad)]) is None, bad


def test_only_shelves_of_announced_peers_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame may claim any process and descriptor; that alone opens nothing."""
    (known, readers), stranger = opened(), Shelf()
    message = wired(known.message([piece(LEAST_BYTES)], ME))
    forged = wired(stranger.message([piece(LEAST_BYTES)], ME))
    opens: list[Any] = []
    monkeypatch.setattr(os, "open", lambda *args: opens.append(args))
    assert readers.frame(forged) is None and opens == []
    assert readers.frame(message) is not None
    readers.close(known.token)
    assert readers.frame(message) is None and opens == []


def _hold(pipe: Any, token: str) -> None:
    """A reader in a process of its own: says what it got, and holds it until told."""
    readers = Readers()
    pipe.send((readers.open(token), os.getpid()))
    held = []
    while (parts := pipe.recv()) is not None:
        got = readers.frame(parts)
        assert got is not None
        held.append(got)
        pipe.send([int(p.sum()) for p in got])


@pytest.fixture
def other() -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    shelf = Shelf()
    process = context.Process(target=_hold, args=(theirs, shelf.token), daemon=True)
    process.start()
    theirs.close()
    owner, pid = ours.recv()
    assert owner == ME
    yield shelf, ours, pid, process
    process.kill()
    process.join()


def test_what_a_killed_reader_held_is_taken_back(other: Any) -> None:
    shelf, pipe, pid, process = other
    data = piece(SHELF_BYTES // 5)
    for _ in range(4):
        parts = shelf.message([data], pid)
        assert len(parts) == 1
        pipe.send(wired_bytes(parts))
        assert pipe.recv() == [int(data.sum())]
    assert len(shelf.message([data, data], pid)) == 3  # full
    process.kill()
    process.join()
    assert len(shelf.message([data, data, data], ME)) == 1


def wired_bytes(parts: list[Any]) -> list[bytes]:
    return [bytes(part) for part in parts]


def received(link: ZmqLink) -> list[Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        frames = link.receive(0.1)
        if frames:
            return frames
    raise AssertionError("nothing came")


@pytest.mark.parametrize("way", ["shelf", "no memfd", "unreachable"])
def test_links_bring_the_same_frame_either_way(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "no memfd":
        monkeypatch.setattr(shelf_module, "Shelf", lambda *_: (_ for _ in ()).throw(OSError()))
    settings = ZmqSettings(str(tmp_path))
    a, b = ZmqLink("a", settings), ZmqLink("b", settings)
    placed = []
    if a._shelf is not None:
        monkeypatch.setattr(a._shelf, "_lend", lambda *p, _lend=a._shelf._lend: placed.append(1) or _lend(*p))
    host, near, far = b.endpoint.split("|")
    near = near if way != "unreachable" else near.partition("#")[0] + "#999999999.7"
    endpoint = f"{host}|{near}|{far}"
    assert ("#" in b.endpoint) == (way != "no memfd")
    try:
        a.connect(1, endpoint)
        b.admit(0, a.endpoint)
        frame = [piece(64), piece(3 * LEAST_BYTES, 1)]
        a.send(1, frame)
        (got,) = received(b)
        assert [bytes(p) for p in got] == [bytes(p) for p in frame]
        assert bool(placed) == (way == "shelf")
    finally:
        a.close()
        b.close()


class Chain:
    """A client's shelf, a coordinator that hands on what it reads there, and a home in process `reader`."""

    def __init__(self, reader: int = OTHER) -> None:
        self.client, self.reads = Shelf(), Readers()
        self.coordinator, self.reader = Shelf(self.reads), reader
        self.reads.open(self.client.token)
        self.home = Readers()
        self.home.open(self.client.token)
        self.home.open(self.coordinator.token)

    def batch(self, fill: float, size: int = SHELF_BYTES // 4 * 3) -> np.ndarray:
        """Rows of a batch. By default they fill most of the client's shelf: another has no room there."""
        rows = self.client.new_rows(size // 256, 64)
        rows[:] = fill
        return rows

    def read(self, rows: np.ndarray) -> np.ndarray:
        """What the coordinator gets of them."""
        got = self.reads.frame(wired(self.client.message([rows.reshape(-1).view(np.uint8)], ME)))
        assert got is not None
        return np.frombuffer(got[0], np.float32).reshape(rows.shape)

    def hand_on(self, rows: np.ndarray) -> list[memoryview]:
        """The message with which the coordinator gives these to the home."""
        return wired(self.coordinator.message([rows.reshape(-1).view(np.uint8)], self.reader))

    def on_shelf(self, rows: np.ndarray) -> bool:
        """Whether rows lie on the client's shelf, as seen here."""
        begin = self.client._address
        return begin <= rows.__array_interface__["data"][0] < begin + SHELF_BYTES


def test_what_is_handed_on_is_read_where_it_lies() -> None:
    chain = Chain()
    rows = chain.batch(1.0)
    rows[:] = np.arange(len(rows))[:, None]
    got = chain.home.frame(chain.hand_on(chain.read(rows)[1000:3000]))
    assert got is not None
    there = np.frombuffer(got[0], np.float32).reshape(-1, 64)
    assert np.array_equal(there, rows[1000:3000])
    rows[1000] = -1  # what nobody may do shows that both are the same memory
    assert (there[0] == -1).all()
    assert chain.coordinator.copied_bytes == chain.client.copied_bytes == 0 and not chain.coordinator._blocks
    assert Shelf(chain.reads).message([chain.read(rows)], ME) and chain.client.copied_bytes == 0
    plain = Shelf()  # who does not hand on copies
    plain.message([chain.read(rows)[:1000].reshape(-1).view(np.uint8)], ME)
    assert plain.copied_bytes == 1000 * 256


def test_a_batch_s_room_comes_back_when_all_who_got_it_are_done() -> None:
    chain = Chain()
    rows = chain.batch(7.0)
    batch = chain.read(rows)  # the coordinator's ledger
    got = chain.home.frame(chain.hand_on(batch[:2000]))
    assert got is not None
    late = chain.hand_on(batch[2000:4000])  # a home that hangs: this waits in its inbox
    there = np.frombuffer(got[0], np.float32)[:10]
    del rows, got, batch  # the batch is over for the client and for the coordinator
    chain.coordinator.let_go()
    assert not chain.on_shelf(chain.batch(8.0)) and (there == 7).all()
    del there
    chain.coordinator.let_go()
    assert not chain.on_shelf(chain.batch(8.0))  # for the one that hangs
    got = chain.home.frame(late)
    assert got is not None and (np.frombuffer(got[0], np.float32) == 7).all()
    del got
    chain.coordinator.let_go()
    assert chain.on_shelf(chain.batch(8.0))


def test_rows_are_copied_for_their_owner_and_from_a_shelf_that_is_closed() -> None:
    chain = Chain()
    batch = chain.read(chain.batch(1.0))
    piece = batch[:1000].reshape(-1).view(np.uint8)
    assert chain.coordinator.message([piece], OTHER) and not chain.coordinator.copied_bytes
    chain.reads.close(chain.client.token)
    assert chain.coordinator.message([piece], OTHER) and chain.coordinator.copied_bytes == piece.nbytes
    chain.reads.open(chain.client.token)
    again = chain.read(chain.batch(2.0, 1 << 20))[:1000].reshape(-1).view(np.uint8)
    lent = chain.coordinator._lend(again, ME)  # the rows' owner
    assert lent is not None and lent[2] == chain.coordinator.descriptor


def test_a_home_that_cannot_reach_the_rows_gets_a_copy_when_it_is_asked_again() -> None:
    chain = Chain()
    chain.home.close(chain.client.token)
    batch = chain.read(chain.batch(3.0))
    part = batch[:1000]
    assert chain.home.frame(chain.hand_on(part)) is None
    chain.coordinator.let_go()
    assert not chain.coordinator._handed_on, "nobody reads it"
    got = chain.home.frame(chain.hand_on(part.copy()))  # as the ledger does
    assert got is not None and (np.frombuffer(got[0], np.float32) == 3).all()


def test_what_a_killed_home_was_handed_goes_back(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, pid, process = other
    chain = Chain(reader=pid)
    chain.hand_on(chain.read(chain.batch(1.0)))  # neither client nor coordinator holds it
    chain.coordinator.let_go()
    assert not chain.on_shelf(chain.batch(2.0))
    process.kill()
    process.join()
    monkeypatch.setattr(shelf_module, "LOOK_EVERY_S", 0.0)
    chain.coordinator.let_go()
    assert chain.on_shelf(chain.batch(2.0))


def test_links_hand_on_and_count_what_is_copied(tmp_path: Path) -> None:
    settings = ZmqSettings(str(tmp_path))
    links = [ZmqLink("client", settings), ZmqLink("coordinator", settings, True), ZmqLink("home", settings)]
    client, coordinator, home = links
    try:
        client.connect(1, coordinator.endpoint)
        coordinator.connect(0, client.endpoint)
        coordinator.connect(2, home.endpoint)
        for number, link in enumerate(links[:2]):
            home.connect(number, link.endpoint)
        coordinator._peers[2] = (*coordinator._peers[2][:2], OTHER)  # or it would be the rows' owner
        rows = client.new_rows(4096, 64)
        rows[:] = np.arange(4096)[:, None]
        client.send(1, [piece(64), rows.reshape(-1).view(np.uint8)])
        (frame,) = received(coordinator)
        batch = np.frombuffer(frame[1], np.float32).reshape(4096, 64)
        for low in (0, 2048):
            coordinator.send(2, [piece(64), batch[low : low + 2048].reshape(-1).view(np.uint8)])
        got: list[Any] = []
        while len(got) < 2:
            got += received(home)
        there = np.concatenate([np.frombuffer(f[1], np.float32).reshape(-1, 64) for f in got])
        assert np.array_equal(there, rows)
        assert client.copied_bytes == coordinator.copied_bytes == 0
        coordinator.send(2, [piece(64), piece(LEAST_BYTES), piece(LEAST_BYTES - 1)])
        assert coordinator.copied_bytes == LEAST_BYTES
        coordinator._peers[2] = (*coordinator._peers[2][:2], None)  # on another machine
        coordinator.send(2, [piece(64), batch.reshape(-1).view(np.uint8)])
        assert coordinator.copied_bytes == LEAST_BYTES + rows.nbytes
    finally:
        for link in links:
            link.close()
