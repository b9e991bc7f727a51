"""What the state machines need to know of a scenario."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rayemu.alltoall import ORDERS
from rayemu.compression import Codec, CodecError, Policy, make_codec, make_policy
from rayemu.protocol.messages import MOST_CODECS

LOCAL, MODULE, NODE = 0, 1, 2  # link levels: same module, same node, across nodes
LEVELS = ("local", "module", "node")
# Where choices are made: all at the coordinator; at the home; groups at the coordinator and experts at the
# home; scores at the modules that hold the experts and choices at the home.
PLACES = ("coordinator", "modules", "hybrid", "distributed")
# What a module counts, from its start on.
TOTALS = ("rows", "busy_s", "raw_bytes", "sent_bytes", *(f"sent_{level}" for level in LEVELS))


@dataclass(frozen=True)
class ProtocolConfig:
    """Policies and limits of the exchange. Sizes in bytes, times in seconds."""

    exchange: Any  # a member of EXCHANGES
    replicas: Any  # a member of REPLICAS
    dispatch: tuple[Policy, Policy]  # for rows on their way to experts, on the module link and the node link
    combine: tuple[Policy, Policy]  # for rows on their way back
    order: Any = ORDERS["largest_first"]  # of sending: a member of ORDERS
    micro_batches: int = 1
    chunk_bytes: int = 16 << 20
    window_bytes: int = 32 << 20
    min_slice_rows: int | None = None  # by default as many slices as their work is worth
    linger: float = 0.1
    modules_per_core: float = 1.0  # a module that waits leaves its core to this many others
    retry_after: float = 0.25
    place: str = "coordinator"  # where choices are made, see `PLACES`
    drop_lost_experts: bool = False
    suspect_after: float = 0.12
    evict_after: float = 5.0
    replace_after: float = 0.3
    replace: bool = True
    stall_after: float = 60.0
    move_rate: float = 100e6  # bytes of weights that a module that loads experts asks for per second

    def __post_init__(self) -> None:
        self.codecs  # noqa: B018  too many are refused here, not by an actor

    @cached_property
    def codecs(self) -> tuple[Codec, ...]:
        """All codecs of the run, by the number that frames and paths name them by; raw is 0."""
        policies = (*self.dispatch, *self.combine)
        table = dict.fromkeys([make_codec("raw"), *(c for policy in policies for c in policy.codecs)])
        if len(table) > MOST_CODECS:
            raise CodecError(f"exchange.codec: {len(table)} codecs in one run; at most {MOST_CODECS} fit")
        return tuple(table)

    @classmethod
    def from_scenario(cls, scenario: Any) -> ProtocolConfig:
        """Build the policies that a validated scenario names."""
        exchange, cluster, run = scenario.exchange, scenario.cluster, scenario.run
        link = exchange.codec
        return cls(
            exchange=exchange.build(),
            replicas=scenario.replicas.build(),
            dispatch=(make_policy(link.module.dispatch), make_policy(link.node.dispatch)),
            combine=(make_policy(link.module.combine), make_policy(link.node.combine)),
            order=ORDERS[exchange.order],
            micro_batches=exchange.micro_batches,
            chunk_bytes=exchange.chunk or min(cls.chunk_bytes, exchange.window),
            window_bytes=exchange.window,
            min_slice_rows=exchange.min_slice_rows,
            linger=exchange.linger,
            retry_after=cluster.retry_after,
            place=scenario.routing.place,
            drop_lost_experts=run.on_lost_expert == "drop",
            suspect_after=cluster.suspect_after,
            evict_after=cluster.evict_after,
            replace_after=cluster.replace_after,
            replace=cluster.replace,
            stall_after=cluster.stall_after,
            **({} if scenario.rebalance is None else {"move_rate": float(scenario.rebalance.rate)}),
        )
