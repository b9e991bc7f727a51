"""The view of a run while it runs: a Rich live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rayemu.report.progress import Progress
from rayemu.report.totals import Totals
from rayemu.report.wording import count, describe, since_start
from rayemu.scenario import Scenario
from rayemu.units import format_bytes

SHOWN_MODULES = 16
SHOWN_EVENTS = 6
SHOWN_REPEATS = 5  # of what can happen to every batch
_MAY_BE_MANY = ("failed", "mismatch", "slow_batch")
PLAIN_EVERY_S = 2.0
_STATE_AFTER = {
    "joined": "up",
    "recovered": "up",
    "suspected": "suspected",
    "dead": "dead",
    "replace": "restarting",
}
_COLOURS = {"up": "green", "suspected": "yellow", "dead": "red", "restarting": "yellow", "": "dim"}


class ViewConsole(Console):
    """A console whose reader may go away, as `| head` does: the run goes on without being seen."""

    def on_broken_pipe(self) -> None:
        """Show nothing any more."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class View(AbstractContextManager["View"]):
    """Shows each `Progress` that it is called with. This one shows nothing."""

    def __init__(self) -> None:
        self._repeats: Counter[str] = Counter()

    def __call__(self, progress: Progress) -> None:
        """Take in a report of the run."""

    def __exit__(self, *_: object) -> None:
        return None

    def events_to_show(self, progress: Progress) -> Iterator[tuple[str, str]]:
        """The (time, text) of events that are new and not more of the same."""
        for event in progress.events:
            kind, text = event["kind"], describe(event)
            if not text or (
                kind == "joined" and not event["incarnation"]
            ):  # those of the start are all alike
                continue
            self._repeats[kind] += kind in _MAY_BE_MANY
            if self._repeats[kind] <= SHOWN_REPEATS:
                yield since_start(event), text
            elif self._repeats[kind] == SHOWN_REPEATS + 1:
                yield since_start(event), f"more events of the kind {kind} are in events.jsonl only"


def make_view(
    scenario: Scenario, console: Console, quiet: bool = False, priced_on: Sequence[str] = ()
) -> View:
    """The view that fits: nothing if `quiet`, live on a terminal, otherwise lines."""
    if quiet:
        return View()
    kind = LiveView if console.is_terminal else LinesView
    return kind(scenario, console, priced_on)


def headline(scenario: Scenario, priced_on: Sequence[str] = ()) -> str:
    """What is run, in one line; `priced_on` is hardware whose time is told when the run is over."""
    spec, cluster, exchange = scenario.spec, scenario.cluster, scenario.exchange
    codecs = f"{exchange.codec.module} in a node, {exchange.codec.node} between nodes"
    return (
        f"{scenario.name}: {spec.name} (D={spec.d_model} F={spec.d_ff} E={spec.experts} K={spec.top_k} "
        f"L={spec.layers}) on {cluster.nodes} x {cluster.modules_per_node} modules, {cluster.transport}, "
        f"{exchange.kind} exchange, {codecs}"
        + (f"; emulated time on {', '.join(priced_on)} when it is over" if priced_on else "")
    )


def headway(progress: Progress) -> str:
    """How far the run is, in one line."""
    if progress.phase == "start":
        return "starting the cluster"
    if progress.phase == "check":
        return f"comparing with the reference: {progress.done} of {progress.batches} batches"
    line = f"{progress.done} of {progress.batches} batches"
    if progress.tokens and progress.wall_s:
        line += f", {count(progress.tokens)} tokens, {count(progress.tokens / progress.wall_s)} tokens/s"
    return line


class LinesView(View):
    """Plain lines, for logs and pipes: what happens, and how far the run is every two seconds."""

    def __init__(self, scenario: Scenario, console: Console, priced_on: Sequence[str] = ()) -> None:
        super().__init__()
        self.console = console
        self.headline = headline(scenario, priced_on)
        self.phase, self.next_at = "", 0.0

    def __call__(self, progress: Progress) -> None:
        lines = [] if self.phase else [self.headline]
        lines += [f"{at} {text}".strip() for at, text in self.events_to_show(progress)]
        now = time.monotonic()
        last = progress.done == progress.batches
        if progress.phase != self.phase or now >= self.next_at or last:
            if progress.phase == "start" or progress.done:
                lines.append(headway(progress))
            self.phase, self.next_at = progress.phase, now + PLAIN_EVERY_S
        for line in lines:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView(View):
    """A display, redrawn four times a second: progress, load by module, bytes by link level, events."""

    def __init__(self, scenario: Scenario, console: Console, priced_on: Sequence[str] = ()) -> None:
        super().__init__()
        self.scenario, self.priced_on = scenario, priced_on
        self.progress = Progress("start", 0, scenario.run.batches)
        self.events: deque[str] = deque(maxlen=SHOWN_EVENTS)
        self.states = [""] * scenario.cluster.modules
        self.epoch = 0
        self.totals = Totals(scenario.cluster.modules)
        self._spinner = Spinner("dots")
        self._live = Live(self, console=console, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        if progress.phase == "check":  # keeps the figures of the run on the screen
            progress = replace(progress, tokens=self.progress.tokens, wall_s=self.progress.wall_s)
        self.totals.update(progress.totals)
        for event in progress.events:
            if event["kind"] in _STATE_AFTER:
                self.states[event["module"]] = _STATE_AFTER[event["kind"]]
                self.epoch = max(self.epoch, event.get("epoch", 0))
        self.events.extend(f"{at:>12}  {text}" for at, text in self.events_to_show(progress))
        self.progress = progress

    def __rich__(self) -> RenderableType:
        """The display as it is now; called by the refreshing thread."""
        parts: list[RenderableType] = [
            Text(headline(self.scenario, self.priced_on), style="bold"),
            self._bar(),
        ]
        if self.progress.phase != "start":
            parts += [self._modules(), self._links()]
        parts += [Text(line, style="yellow", no_wrap=True, overflow="ellipsis") for line in list(self.events)]
        return Group(*parts)

    def _bar(self) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        p = self.progress
        if p.phase == "start":
            self._spinner.update(text=headway(p))
            return self._spinner
        bar = ProgressBar(total=max(p.batches, 1), completed=p.done, width=30)
        row.add_row(bar, Text(headway(p)))
        return row

    def _modules(self) -> RenderableType:
        modules = range(self.scenario.cluster.modules)
        rows = [self.totals.of(m, "rows") for m in modules]
        top = max(*rows, 1.0)
        shown = list(modules)
        if len(shown) > SHOWN_MODULES:  # the busiest, and whatever is not up
            shown = sorted(modules, key=lambda m: (self.states[m] in ("up", ""), -rows[m]))[:SHOWN_MODULES]
        table = Table.grid(padding=(0, 1))
        for module in sorted(shown):
            node = module // self.scenario.cluster.modules_per_node
            state = self.states[module]
            table.add_row(
                Text(f"node {node} module {module}", style="dim"),
                ProgressBar(total=top, completed=rows[module], width=24),
                Text(f"{count(rows[module])} rows", justify="right"),
                Text(state, style=_COLOURS[state]),
            )
        if len(shown) < len(modules):
            table.add_row(Text(f"and {len(modules) - len(shown)} more", style="dim"))
        return table

    def _links(self) -> RenderableType:
        raw, sent = self.totals.sum("raw_bytes"), self.totals.sum("sent_bytes")
        codec = self.scenario.exchange.codec
        levels = [("in a node", "sent_module", codec.module), ("between nodes", "sent_node", codec.node)]
        parts = [f"{name} {format_bytes(self.totals.sum(key))} ({c})" for name, key, c in levels]
        ratio = f"{raw / sent:.2f}" if sent else "-"
        return Text(f"modules sent {', '.join(parts)}; raw/sent {ratio}; epoch {self.epoch}")
