"""How frames move between actors: one inbox per actor, one outgoing channel per peer.

An endpoint says where the inbox is: with zmq the host, its ipc socket (after a # what `shelf` needs) and its
tcp socket, with a | between them; either socket may be missing.

A link neither orders nor repeats nor acknowledges: the protocol above it does. `wake` and `new_rows` may be
called from any thread, everything else from the owner's.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import zmq
from zmq.auth.thread import ThreadAuthenticator

from rayemu.cluster.host import own_host
from rayemu.cluster.shelf import Readers, large_bytes, new_shelf
from rayemu.protocol.memory import fresh_rows

# Plain numbers: operations on the enumeration's members cost as much as the calls.
_READABLE, _NOWAIT, _MORE = int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)


class Link(Protocol):
    """What the actors need of a transport."""

    endpoint: str

    @property
    def copied_bytes(self) -> int:
        """Bytes of what was sent in pieces of 64 KiB and more: to a shelf, or by a socket or Ray."""

    def connect(self, address: int, endpoint: str) -> None:
        """Send what is for `address` to this endpoint from now on; an empty one closes the channel.

        What comes from there is taken too, as after `admit`.
        """

    def admit(self, address: int, endpoint: str) -> None:
        """Take what `address` sends from this endpoint through shared memory; an empty one ends that."""

    def new_rows(self, rows: int, width: int) -> np.ndarray:
        """Memory for rows [n, D] float32 that will be sent, so that sending need not copy them. Any thread.

        Nothing of it may change once a part of it is sent.
        """

    def shares(self, address: int) -> bool:
        """Whether an address reads large pieces of frames where they lie, in shared memory."""

    def lends(self, address: int, rows: np.ndarray) -> bool:
        """Whether it can read these rows [n, D] where they lie."""

    def send(self, address: int, frame: list[Any]) -> None:
        """Send a frame in pieces (contiguous buffers). Frames for unknown addresses are dropped."""

    def receive(self, timeout_s: float) -> list[Any]:
        """Return all frames that wait, each in pieces; if none do, wait for one, a wake-up or the timeout."""

    def wake(self) -> None:
        """Make the owner's `receive` return."""

    def close(self) -> None:
        """Close everything, dropping what has not left yet."""


@dataclass(frozen=True)
class ZmqSettings:
    """Where sockets live: ipc sockets in `directory`, unless it is empty; tcp sockets with CURVE keys."""

    directory: str = ""
    tcp_host: str = ""  # address to listen at; none without
    server_keys: tuple[bytes, bytes] = (b"", b"")  # (public, secret), made per run
    client_keys: tuple[bytes, bytes] = (b"", b"")


def _place(endpoint: str) -> str:
    """Choose the socket of an endpoint that this process is to send to."""
    host, near, far = endpoint.split("|")
    return near if near and (host == own_host() or not far) else far


class _Keys:
    """Lets in who has the run's client keys (for pyzmq's authenticator)."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return hmac.compare_digest(key, self.key)


class ZmqLink:
    """ZeroMQ push-pull: ipc and shared memory within a machine, encrypted tcp between machines.

    Where it has both kinds of socket, a sender on the same machine takes the first. Over tcp only the run's
    own keys are let in; through shared memory only peers that `connect` or `admit` told of.

    With `hands_on`, what lies on another's shelf is sent on without a copy, to peers that read that shelf
    too. That is for a process with whose death the run ends: see `shelf`.
    """

    def __init__(self, name: str, settings: ZmqSettings, hands_on: bool = False) -> None:
        self.settings = settings
        self.context = zmq.Context(io_threads=1)
        self.inbox = self.context.socket(zmq.PULL)
        self.inbox.set_hwm(0)  # the protocol's credits bound what waits, not the sockets
        self._shelf, self._readers = None, Readers()
        near = far = ""
        if settings.directory:
            near = f"ipc://{settings.directory}/{name}"
            self.inbox.bind(near)  # before there are keys: it needs none
            self._shelf = new_shelf(self._readers if hands_on else None)
            near += f"#{self._shelf.token}" if self._shelf else ""
        self._doorkeeper: ThreadAuthenticator | None = None
        if settings.tcp_host:
            self._doorkeeper = ThreadAuthenticator(self.context)
            self._doorkeeper.start()
            self._doorkeeper.configure_curve_callback("*", _Keys(settings.client_keys[0]))
            self.inbox.curve_server = True
            self.inbox.curve_publickey, self.inbox.curve_secretkey = settings.server_keys
            address = f"tcp://{settings.tcp_host}"
            far = f"{address}:{self.inbox.bind_to_random_port(address)}"
        self.endpoint = f"{own_host()}|{near}|{far}"
        self._waker_in, self._waker_out = socket.socketpair()
        self._waker_in.setblocking(False)
        self._waker_out.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self.inbox, zmq.POLLIN)
        self._poller.register(self._waker_out.fileno(), zmq.POLLIN)
        self._admitted: dict[int, str] = {}  # address -> its shelf
        # address -> (endpoint, channel, process if it reads shelves)
        self._peers: dict[int, tuple[str, Any, int | None]] = {}
        self._monitors: dict[Any, int] = {}  # monitor socket -> address
        self._broken: list[int] = []
        self._closed = False
        self._socket_bytes = 0  # in large pieces, to those who do not read shelves

    def connect(self, address: int, endpoint: str) -> None:
        known = self._peers.get(address)
        if known is not None:
            if known[0] == endpoint:
                return
            for monitor in [m for m, watched in self._monitors.items() if watched == address]:
                del self._monitors[monitor]
                self._poller.unregister(monitor)
                monitor.close(linger=0)
            self._peers.pop(address)[1].close(linger=0)
        reader = self._admit(address, endpoint)
        if endpoint:
            self._peers[address] = (endpoint, self.pusher(endpoint), reader)

    def admit(self, address: int, endpoint: str) -> None:
        self._admit(address, endpoint)

    def _admit(self, address: int, endpoint: str) -> int | None:
        """Open the shelf of an endpoint, if there is one, in place of the one before; return its process."""
        shelf = _place(endpoint).partition("#")[2] if endpoint and self._shelf else ""
        if self._admitted.get(address, "") == shelf:
            return self._readers.process(shelf)
        self._readers.close(self._admitted.pop(address, ""))
        if shelf:
            self._admitted[address] = shelf
        return self._readers.open(shelf)

    def pusher(self, endpoint: str) -> Any:
        """Open a further outgoing channel, for another thread to own."""
        channel = self.context.socket(zmq.PUSH)
        channel.set_hwm(0)
        channel.linger = 0
        place = _place(endpoint).partition("#")[0]
        if place.startswith("tcp"):
            channel.curve_publickey, channel.curve_secretkey = self.settings.client_keys
            channel.curve_serverkey = self.settings.server_keys[0]
        channel.connect(place)
        return channel

    def watch(self, address: int) -> None:
        """Have `receive` notice when the channel to `address` breaks: a dead process closes its sockets."""
        monitor = self._peers[address][1].get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitors[monitor] = address
        self._poller.register(monitor, zmq.POLLIN)

    def broken(self) -> list[int]:
        """Return the watched addresses whose channel broke since the last call."""
        addresses, self._broken = self._broken, []
        return addresses

    @property
    def copied_bytes(self) -> int:
        return self._socket_bytes + (0 if self._shelf is None else self._shelf.copied_bytes)

    def new_rows(self, rows: int, width: int) -> np.ndarray:
        return fresh_rows(rows, width) if self._shelf is None else self._shelf.new_rows(rows, width)

    def shares(self, address: int) -> bool:
        peer = self._peers.get(address)
        return peer is not None and peer[2] is not None

    def lends(self, address: int, rows: np.ndarray) -> bool:
        return self.shares(address) and self._shelf is not None and self._shelf.holds(rows)

    def send(self, address: int, frame: list[Any]) -> None:
        peer = self._peers.get(address)
        if peer is None:
            return
        _, channel, reader = peer
        if reader is None or self._shelf is None:
            parts = frame
            self._socket_bytes += large_bytes(frame)
        else:
            parts = self._shelf.message(frame, reader)
        with contextlib.suppress(zmq.Again):
            for part in parts[:-1]:
                channel.send(part, _MORE, copy=False)
            channel.send(parts[-1], _NOWAIT, copy=False)

    def receive(self, timeout_s: float) -> list[Any]:
        if self._shelf is not None:
            self._shelf.let_go()
        frames = self._drain()
        if frames or timeout_s <= 0:
            return frames
        ready = dict(self._poller.poll(max(1, int(timeout_s * 1000 + 0.5)) if timeout_s < 3600 else None))
        if self._waker_out.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._waker_out.recv(4096)
        for monitor in self._monitors.keys() & ready.keys():
            self._poller.unregister(monitor)
            self._broken.append(self._monitors.pop(monitor))
            monitor.close(linger=0)
        return self._drain()

    def _drain(self) -> list[Any]:
        frames: list[Any] = []
        while len(frames) < 256 and int(self.inbox.get(_EVENTS)) & _READABLE:  # cheaper than an exception
            try:
                part = self.inbox.recv(_NOWAIT, copy=False)
            except zmq.Again:  # while a peer is being let in, the inbox may claim to have something
                break
            parts = [part.buffer]
            while part.more:  # the rest of the message is here: it arrives as one
                part = self.inbox.recv(_NOWAIT, copy=False)
                parts.append(part.buffer)
            pieces = self._readers.frame(parts)
            if pieces is not None:
                frames.append(pieces)
        return frames

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker_in.send(b"\0")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for monitor in self._monitors:
            monitor.close(linger=0)
        for _, channel, _ in self._peers.values():
            channel.disable_monitor()
            channel.close(linger=200)  # last words, such as a final heartbeat, may still leave
        self.inbox.close(linger=0)
        if self._doorkeeper is not None:
            self._doorkeeper.stop()
        self.context.destroy(linger=200)
        self._waker_in.close()
        self._waker_out.close()


class QueueLink:
    """Frames by actor calls: for clusters where no other port is open. Slower, needs nothing but Ray.

    `post` is what the owner's `deliver` method calls; `call(endpoint, frame)` makes the remote call.
    """

    def __init__(self, endpoint: str, call: Any) -> None:
        self.endpoint = endpoint
        self.copied_bytes = 0
        self._call = call
        self._peers: dict[int, str] = {}
        self._frames: deque[Any] = deque()
        self._arrived = threading.Event()

    def connect(self, address: int, endpoint: str) -> None:
        if endpoint:
            self._peers[address] = endpoint
        else:
            self._peers.pop(address, None)

    def admit(self, address: int, endpoint: str) -> None:
        pass  # there is no shared memory

    def new_rows(self, rows: int, width: int) -> np.ndarray:
        return fresh_rows(rows, width)

    def shares(self, address: int) -> bool:
        return False

    def lends(self, address: int, rows: np.ndarray) -> bool:
        return False

    def send(self, address: int, frame: list[Any]) -> None:
        endpoint = self._peers.get(address)
        if endpoint is not None:
            self.copied_bytes += large_bytes(frame)
            self._call(endpoint, frame)

    def post(self, frame: Any) -> None:
        """Put a frame into the inbox; any thread may call it."""
        self._frames.append(frame)
        self._arrived.set()

    def receive(self, timeout_s: float) -> list[Any]:
        if not self._frames and timeout_s > 0:
            self._arrived.wait(min(timeout_s, 3600.0))
        self._arrived.clear()
        frames = []
        while self._frames:
            frames.append(self._frames.popleft())
        return frames

    def wake(self) -> None:
        self._arrived.set()

    def close(self) -> None:
        self._frames.clear()
