"""One PIM module's protocol: home, relay and expert server behind one address.

Sans-IO: `receive`, `tick` and `finish` take what happened and the time, and return messages to send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from rayemu.alltoall import View
from rayemu.compression import CodecChange, Coders, Gauge
from rayemu.model.expert import Expert
from rayemu.model.holdings import Holdings
from rayemu.model.model import Model
from rayemu.protocol.config import LEVELS, LOCAL, MODULE, NODE, ProtocolConfig
from rayemu.protocol.epochs import view_of
from rayemu.protocol.home import Home
from rayemu.protocol.lending import LEAST_LENT, carried, carried_bytes, gather
from rayemu.protocol.loader import Loader
from rayemu.protocol.memory import Lends, NewRows, fresh_rows, lends_nothing
from rayemu.protocol.messages import (
    CLIENT,
    MODULE_SHIFT,
    NODE_SHIFT,
    Dispatch,
    Epoch,
    Failure,
    Fetch,
    GroupsReply,
    Message,
    Notice,
    OfferReply,
    OfferRequest,
    Probe,
    Refusal,
    Reply,
    RouteReply,
    Send,
    Slice,
    SliceProbe,
    Status,
    Weights,
)
from rayemu.protocol.offers import score
from rayemu.protocol.relay import Relay
from rayemu.protocol.server import SHARED, ExpertServer, Job
from rayemu.protocol.slices import OFFERED
from rayemu.protocol.wire import Clock, no_clock

MOST_CHUNK = 1 << 20  # bytes of weights in one frame: longer ones would hold up rows


@dataclass(frozen=True, slots=True)
class Worked:
    """Rows of one layer of a unit that were routed, scored or combined, for whoever records it."""

    what: str  # ROUTED, MERGED, OFFERED or COMBINED
    home: int
    batch: int
    slice: int
    micro: int
    layer: int
    rows: int
    outputs: int  # of experts or of the dense FFN, that a combine summed; experts that were scored
    began_s: float  # by the record's clock
    ended_s: float
    request: int = -1  # of another home, for an offer


class ModuleMachine:
    """State machine of one module.

    It begins with the experts of its slots in `view`, which `make` builds (by default anew, of the model).
    What policies measure and draw, they do with the clock `processor_s` and with `rng`; `record_s` is the
    clock of whoever records. Rows that it `lends` are sent as they lie, see `rayemu.protocol.lending`.
    """

    def __init__(
        self,
        me: int,
        incarnation: int,
        config: ProtocolConfig,
        model: Model,
        view: View,
        rng: np.random.Generator,
        new_rows: NewRows = fresh_rows,
        processor_s: Clock = no_clock,
        make: Callable[[int, int], Expert] | None = None,
        record_s: Clock = no_clock,
        lends: Lends = lends_nothing,
    ) -> None:
        self.me = me
        self.incarnation = incarnation
        self.config = config
        self.model = model
        self.view = view
        self.holdings = Holdings(make or model.make_expert)
        for layer, expert in view.placement.held_by(me):
            self.holdings.load(layer, expert)
        self.server = ExpertServer(me, config, model, self.holdings, new_rows)
        self.loader = Loader(
            me,
            incarnation,
            model.spec,
            self.holdings,
            self.server.awaits,
            view,
            config.retry_after,
            config.move_rate,
            min(config.chunk_bytes, MOST_CHUNK),
        )
        self.new_rows, self.lends = new_rows, lends
        self.relay = Relay(me, new_rows, lends)
        self.home = Home(me, incarnation, config, model, self.server, view, record_s)
        numbers = {codec: number for number, codec in enumerate(config.codecs)}
        self.coders = Coders(processor_s)
        gauges = {level: Gauge(self.coders, rng) for level in (MODULE, NODE)}
        self._links = {
            (kind, level): (policy.chooser(gauges[level]), [numbers[c] for c in policy.codecs])
            for kind, policies in ((Dispatch, config.dispatch), (Reply, config.combine))
            for level, policy in zip((MODULE, NODE), policies, strict=True)
        }
        # By level, those that a policy goes by: to be fed by whoever has a clock.
        self.gauges = {
            level: gauges[level] for (_, level), (chooser, _) in self._links.items() if chooser.learns
        }
        self._nodes = view.module_to_node
        self._out: list[Send] = []  # of relay and server, and answers
        self._offered: list[Worked] = []  # for other homes

    def level(self, to: int) -> int:
        """Return the link level between this module and another address."""
        if to < 0 or to == self.me:
            return LOCAL
        return MODULE if self._nodes[to] == self._nodes[self.me] else NODE

    def receive(self, message: Message, now: float) -> list[Send]:
        """Handle one message."""
        self._handle(message, now)
        return self._settle(now)

    def tick(self, now: float) -> list[Send]:
        """Handle the passing of time."""
        self.home.tick(now)
        self._out += self.loader.tick(now)
        return self._settle(now)

    @property
    def wake(self) -> float:
        """When `tick` has something to do if no message comes before."""
        return min(self.home.wake, self.loader.deadline())

    def deadline(self) -> float:
        """When `tick` or `next_job` has something to do if no message comes before."""
        return min(self.wake, self.server.deadline())

    def next_job(self, now: float) -> Job | None:
        """Take the next GEMM to compute, if any is worth starting; else an expert that is to be made."""
        if self.loader.makes_now(now):
            return self.loader.next_job()
        return self.server.next_job(now) or self.loader.next_job()

    def fill(self, job: Job) -> None:
        """Add to a job that has not begun what has come in for it since."""
        self.server.fill(job)

    def finish(self, job: Job, now: float) -> list[Send]:
        """Handle a computed job."""
        if job.make is not None:
            self._out += self.loader.on_made(job, now)
        elif job.expert == SHARED:
            assert job.own is not None and job.result is not None
            self.home.on_shared(job.own.tag, job.result, now)  # type: ignore[arg-type]
        else:
            self._out += self.server.finish(job, now)
        return self._settle(now)

    def worked(self) -> list[Worked]:
        """Return and forget what was routed, scored and combined since the last call."""
        done, self._offered = self._offered, []
        for what, u, layer, outputs, began_s, ended_s in self.home.worked:
            where = self.me, u.slice.batch, u.slice.slice, u.micro, layer
            done.append(Worked(what, *where, u.high - u.low, outputs, began_s, ended_s))
        self.home.worked.clear()
        return done

    def _offer(self, m: OfferRequest) -> None:
        """Score for another home the experts that it names."""
        began_s = self.home.clock()
        offer = score(self.model, m.layer, m.rows, m.experts)
        where = m.home, m.batch, m.slice, m.micro, m.layer
        times = began_s, self.home.clock()
        self._offered.append(Worked(OFFERED, *where, len(m.rows), len(m.experts), *times, m.request))
        answer = OfferReply(m.home, m.request, m.batch, m.slice, m.micro, m.layer, *offer)
        self._out.append(Send(m.home, answer))

    def _handle(self, message: Message, now: float) -> None:
        home = self.home
        if isinstance(message, Dispatch):
            if message.lots[0, 0] == message.lots[-1, 0] == self.me:  # they come by module
                self._out += self.server.accept(message, now)
            else:
                self._out += self.relay.accept(message, self.view)
        elif isinstance(message, Reply):
            if message.home == self.me:
                home.on_reply(message, now)
            else:
                self._out += self.relay.gather(message)
        elif isinstance(message, Slice):
            home.on_slice(message, now)
        elif isinstance(message, (RouteReply, GroupsReply, OfferReply)):
            home.on_choices(message, now)
        elif isinstance(message, OfferRequest):
            self._offer(message)
        elif isinstance(message, Epoch):
            self._on_epoch(message, now)
        elif isinstance(message, Probe):
            self._on_probe(message, now)
        elif isinstance(message, Status):
            home.on_status(message, now)
        elif isinstance(message, Refusal):
            if message.home == self.me:
                home.on_refusal(message, now)
            else:
                self._out += self.relay.refused(message)
        elif isinstance(message, Fetch):
            self._out += self.loader.on_fetch(message)
        elif isinstance(message, Weights):
            self._out += self.loader.on_weights(message, now)
        elif isinstance(message, Failure):
            home.on_failure(message, now)
        elif isinstance(message, SliceProbe):
            home.on_slice_probe(message)

    def _on_epoch(self, message: Epoch, now: float) -> None:
        self.home.forget_below(message.complete_below, now)
        self.relay.forget_below(message.complete_below)
        if message.epoch <= self.view.epoch:
            return
        self.view = view_of(message, self.view.module_to_node, (self.view.layers, self.view.experts))
        self._out += self.relay.on_view(self.view)
        self.home.on_view(self.view, now)
        self._out += self.loader.on_view(self.view, now)

    def _on_probe(self, message: Probe, now: float) -> None:
        relayed = self.relay.probe(message)
        known = relayed is not None or self.server.knows(message.home, message.request, now)
        self._out += (relayed or []) + [Send(message.home, Status(message.request, self.me, known))]

    def _settle(self, now: float) -> list[Send]:
        """Deliver what the module sends itself; choose codecs for the rest, and note those that lose bits."""
        sends: list[Send] = []
        queue = deque(self._take_sends())
        while queue:
            send = queue.popleft()
            if send.to == self.me:
                self._handle(send.message, now)
                queue.extend(self._take_sends())
                continue
            if isinstance(send.message, (Dispatch, Reply)):
                level = self.level(send.to)
                chooser, numbers = self._links[type(send.message), level]
                message = send.message
                some = message.rows[: carried(message)]  # as many as it is about, if perhaps not the same
                send.codec = numbers[chooser.choose(some)]
                if message.row_of_pair is not None and (send.codec or not self._lends(send.to, message)):
                    gather(message, self.new_rows)
                send.timed = chooser.timed
                self._note(send, level)
                sends += [self._tell(change, send.message, level, now) for change in chooser.changes()]
            sends.append(send)
        return sends

    def _lends(self, to: int, message: Dispatch | Reply) -> bool:
        """Whether a message's rows go as they lie: where they can, unless a copy of so few costs less."""
        return carried_bytes(message) > LEAST_LENT and self.lends(to, message.rows)

    def _take_sends(self) -> list[Send]:
        sends, self._out = self._out + self.home.take_sends(), []
        return sends

    def _tell(self, change: CodecChange, message: Dispatch | Reply, level: int, now: float) -> Send:
        """Tell the client that a policy went over to another codec, and why."""
        direction = "dispatch" if isinstance(message, Dispatch) else "combine"
        facts = {"module": self.me, "level": LEVELS[level], "direction": direction, **asdict(change)}
        return Send(CLIENT, Notice("codec", now, facts))

    def refuse_codec(self, send: Send) -> None:
        """Send the rows raw after all: the codec that was chosen cannot carry them."""
        self._note(send, self.level(send.to))
        send.codec = 0

    def _note(self, send: Send, level: int) -> None:
        """Note a lossy codec in the message's path; a second time takes the note back."""
        if self.config.codecs[send.codec].lossless:
            return
        half = send.codec << (MODULE_SHIFT if level == MODULE else NODE_SHIFT)
        if isinstance(send.message, Dispatch):
            send.message.path ^= half
        elif isinstance(send.message, Reply):
            for span in send.message.spans:
                span[3] ^= half
