"""The relay: unpacks what a remote home sent once to this node and gathers the answers.

It holds nothing that the home cannot ask for again: losing a relay loses no token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from rayemu.alltoall import DEAD, View
from rayemu.compression import WireError
from rayemu.protocol.lending import distinct
from rayemu.protocol.memory import Lends, NewRows, fresh_rows, lends_nothing
from rayemu.protocol.messages import Dispatch, Probe, Refusal, Reply, Rows, Send

INCARNATION_SHIFT = 40  # a request id is incarnation << 40 | counter


@dataclass(slots=True, eq=False)
class _Gather:
    dispatch: Dispatch
    rows: np.ndarray  # [n, D] answers so far
    parts: dict[int, int]  # start of each part -> pairs
    waiting: dict[int, int]  # start of each outstanding part -> module
    spans: Rows  # answered
    view: View  # when it was taken on


class Relay:
    """Splits multi-module dispatches by module and merges their replies into one."""

    def __init__(self, me: int, new_rows: NewRows = fresh_rows, lends: Lends = lends_nothing) -> None:
        self.me = me
        self.new_rows, self.lends = new_rows, lends  # of what is sent on
        self.gathers: dict[tuple[int, int], _Gather] = {}

    def accept(self, dispatch: Dispatch, view: View) -> list[Send]:
        """Hand each module of the node its lots (this one included); a repeated request is ignored."""
        key = (dispatch.home, dispatch.request)
        if key in self.gathers:
            return []
        total = len(dispatch.rows if dispatch.row_of_pair is None else dispatch.row_of_pair)
        gather = _Gather(dispatch, self.new_rows(total, dispatch.rows.shape[1]), {}, {}, [], view)
        self.gathers[key] = gather
        starts = np.flatnonzero(np.diff(dispatch.lots[:, 0], prepend=-1)).tolist()  # each module's first lot
        rows = self._to_lend(dispatch, dispatch.lots[starts, 0].tolist())
        index = dispatch.row_of_pair
        sends = []
        high = 0
        for first, last in pairwise([*starts, len(dispatch.lots)]):
            lots = dispatch.lots[first:last]
            module, low = int(lots[0, 0]), high
            high = low + int(lots[:, 2].sum())
            part = replace(
                dispatch,
                via=self.me,
                start=low,
                rows=dispatch.rows[low:high] if index is None else rows,
                row_of_pair=None if index is None else index[low:high],
                distinct=-1 if index is None else distinct(index[low:high]),
                lots=lots,
            )
            gather.parts[low], gather.waiting[low] = high - low, module
            sends.append(Send(module, part))
        return sends

    def _to_lend(self, dispatch: Dispatch, modules: list[int]) -> np.ndarray:
        """The rows of a request, copied to where modules can read them if several are to."""
        others = [module for module in modules if module != self.me]
        if dispatch.row_of_pair is None or len(others) < 2:
            return dispatch.rows
        rows = self.new_rows(*dispatch.rows.shape)
        if not self.lends(others[0], rows):
            return dispatch.rows
        rows[...] = dispatch.rows
        return rows

    def gather(self, reply: Reply) -> list[Send]:
        """Take a module's answer; pass all on to the home once the last one is in."""
        gather = self.gathers.get((reply.home, reply.request))
        if gather is None:
            return []
        if any(gather.parts.get(start) != count for start, count, *_ in reply.spans):
            raise WireError(f"reply: spans {reply.spans} of a request in parts of {gather.parts} pairs")
        low = 0
        for start, count, dispatch_path, combine_path in reply.spans:
            if gather.waiting.pop(start, None) is not None:
                answered, index = gather.rows[start : start + count], reply.row_of_pair
                if index is None:
                    answered[...] = reply.rows[low : low + count]
                else:
                    np.take(reply.rows, index[low : low + count], axis=0, out=answered, mode="clip")
                gather.spans.append([start, count, dispatch_path, combine_path])
            low += count
        return self._flush(gather) if not gather.waiting else []

    def refused(self, refusal: Refusal) -> list[Send]:
        """Tell the home that a module lacks experts, and do not wait for it."""
        sends = [Send(refusal.home, refusal)]
        gather = self.gathers.get((refusal.home, refusal.request))
        if gather is None or gather.waiting.pop(refusal.start, None) is None or gather.waiting:
            return sends
        return sends + self._flush(gather)

    def probe(self, probe: Probe) -> list[Send] | None:
        """Send home what is there and ask the modules about the rest; None if the request is unknown."""
        gather = self.gathers.get((probe.home, probe.request))
        if gather is None:
            return None
        sends = self._flush(gather)
        return sends + [Send(module, probe) for module in set(gather.waiting.values()) if module != self.me]

    def forget_below(self, batch: int) -> None:
        """Drop what belongs to completed batches."""
        for key in [k for k, g in self.gathers.items() if g.dispatch.batch < batch]:
            del self.gathers[key]

    def on_view(self, view: View) -> list[Send]:
        """Stop waiting for modules that died or hang; forget homes that died."""
        sends = []
        for (home, request), gather in list(self.gathers.items()):
            if view.incarnations[home] != request >> INCARNATION_SHIFT or view.state[home] == DEAD:
                del self.gathers[home, request]
                continue
            then = gather.view.incarnations
            gone = [s for s, m in gather.waiting.items() if m != self.me and not view.serves(m, then[m])]
            for start in gone:
                del gather.waiting[start]
            if gone and not gather.waiting:
                sends += self._flush(gather)
        return sends

    def _flush(self, gather: _Gather) -> list[Send]:
        d = gather.dispatch
        if not gather.waiting:
            self.gathers.pop((d.home, d.request), None)
        if not gather.spans:
            return []
        # All of them: an earlier answer may have been lost. Copies: each way out notes its own codec.
        spans = [list(span) for span in sorted(gather.spans)]
        if sum(span[1] for span in spans) == len(gather.rows):
            rows = gather.rows
        else:
            rows = np.concatenate([gather.rows[start : start + count] for start, count, *_ in spans])
        return [Send(d.home, Reply(d.home, d.request, d.batch, d.micro, d.layer, self.me, rows, spans))]
