"""What a scenario refuses: by its path, with the value and what is allowed."""

from __future__ import annotations

import re

import pytest

from rayemu.scenario.errors import problem_of, show
from tests.scenarios import problems

REFUSED = [
    # unknown keys, with the known ones
    (["run.batchs=3"], ["run.batchs: unknown key; known: batches, batch_tokens", "did you mean batches?"]),
    (["modle={}"], ["modle: unknown key; known: name, model", "did you mean model?"]),
    (["exchange.codec.nodes=raw"], ["exchange.codec.nodes: unknown key; known: module, node"]),
    (["faults.0.modul=3"], ["faults.0.modul: unknown key; known: kind, module, at, for"]),
    # wrong types are not converted
    (["run.batches=many"], ["run.batches: 'many' is not allowed; it should be a valid integer"]),
    (["run.batches='3'"], ["run.batches: '3' is not allowed"]),
    (["run.batches=3.0"], ["run.batches: 3.0 is not allowed"]),
    (["run.batches=true"], ["run.batches: True is not allowed"]),
    (["run=5"], ["run: 5 is not allowed; it takes keys: batches"]),
    (["faults={}"], ["faults: {} is not allowed; allowed: a list"]),
    (["faults.0=3"], ["faults.0: 3 is not allowed; it takes keys: kind"]),
    (["cluster.replace=1"], ["cluster.replace: 1 is not allowed"]),
    (["model=7"], ["model: 7 is not allowed; it takes keys: preset"]),
    # ranges
    (["run.batches=0"], ["run.batches: 0 is not allowed", "greater than or equal to 1"]),
    (["run.seed=-1"], ["run.seed: -1 is not allowed"]),
    (["exchange.micro_batches=0"], ["exchange.micro_batches: 0 is not allowed"]),
    (
        ["exchange.chunk=64 MiB"],
        ["exchange.chunk: 64 MiB is not allowed; allowed: 1 B to 32 MiB, the window"],
    ),
    (["cluster.nodes=0"], ["cluster.nodes: 0 is not allowed"]),
    (
        ["cluster.suspect_after=20 ms"],
        ["cluster.suspect_after: 20 ms is not allowed; allowed: more than 40 ms"],
    ),
    (["cluster.evict_after=1 ms"], ["cluster.evict_after: 1 ms is not allowed; allowed: at least 120 ms"]),
    (["cluster.heartbeat=0"], ["cluster.heartbeat: 0 s is not allowed"]),
    (["name=a/b"], ["name: 'a/b' is not allowed"]),
    # units
    (["exchange.window=32 Mb"], ["exchange.window: '32 Mb' is not a size", "MiB"]),
    (["cluster.heartbeat=10 sec"], ["cluster.heartbeat: '10 sec' is not a time", "ms"]),
    # names in tables
    (
        ["model.preset=mixtral"],
        ["model.preset: 'mixtral' is not a preset; known: mixtral-8x7b, mixtral-8x22b"],
    ),
    (["stream.kind=zipff"], ["stream.kind: 'zipff' is not a stream; known: zipf, uniform, text"]),
    (["routing.kind=best"], ["routing.kind: 'best' is not a router; known: softmax_topk"]),
    (["placement.kind=x"], ["placement.kind: 'x' is not a placement; known: linear, round_robin, random"]),
    (
        ["replicas.kind=x"],
        ["replicas.kind: 'x' is not a replica choice; known: nearest, least_loaded, even"],
    ),
    (["exchange.kind=x"], ["exchange.kind: 'x' is not an exchange; known: flat, hierarchical"]),
    (
        ["exchange.order=x"],
        ["exchange.order: 'x' is not an order of sending; known: largest_first, rotation"],
    ),
    (["exchange.relay=x"], ["exchange.relay: 'x' is not a relay choice; known: spread, first"]),
    (
        ["cluster.transport=zmk"],
        ["cluster.transport: 'zmk' is not allowed; allowed: 'zmq', 'ray' or 'memory'"],
    ),
    (
        ["routing.place=here"],
        ["routing.place: 'here'", "allowed: 'coordinator', 'modules', 'hybrid' or 'distributed'"],
    ),
    (["run.check=maybe"], ["run.check: 'maybe' is not allowed; allowed: 'exact' or 'none'"]),
    (["run.on_lost_expert=cry"], ["run.on_lost_expert: 'cry' is not allowed; allowed: 'fail' or 'drop'"]),
    # codecs
    (["exchange.codec.node=int9"], ["exchange.codec.node: ", "'int9'", "known", "int8", "zstd"]),
    (["exchange.codec.module=zstd+int8"], ["exchange.codec.module: ", "int8", "zstd"]),
    (["exchange.codec.node=[raw]"], ["exchange.codec.node: ['raw'] is not a codec", "int8+zstd"]),
    # parameters of strategies
    (
        ["stream.alpha=2"],
        ["stream.alpha: is not a parameter of text, which takes: path, vocabulary, context"],
    ),
    (["stream.vocabulary=many"], ["stream.vocabulary: 'many' is not allowed; it should be a valid integer"]),
    (["stream.vocabulary='64'"], ["stream.vocabulary: '64' is not allowed; it should be a valid integer"]),
    (["stream={kind: uniform, alpha: 1}"], ["stream.alpha: is not a parameter of uniform, which takes"]),
    (["stream.context=1"], ["stream.context: 1 is not allowed; allowed: 0 up to"]),
    (["stream.path=/no/such/text"], ["stream.path: '/no/such/text' does not exist"]),
    (
        ["routing.renormalize=true"],
        ["routing.renormalize: is not a parameter of softmax_topk", "renormalise"],
    ),
    (["routing.top_k=3"], ["routing.top_k: is not a parameter of softmax_topk"]),
    (["routing.renormalise=3"], ["routing.renormalise: 3 is not allowed"]),
    (
        ["routing={kind: sigmoid_group_topk, groups: 3}"],
        ["routing.groups: 3 is not allowed; allowed: a divisor of 8"],
    ),
    # impossible models
    (["model.top_k=9"], ["model.top_k: 9 is not allowed; allowed: at most experts = 8"]),
    (["model.scale=3"], ["model.scale: 3 is not allowed; allowed: a divisor of d_model = 4096"]),
    (["model={}"], ["model: give preset, or checkpoint, or d_model, d_ff, experts, top_k"]),
    (["model={d_model: 8, d_ff: 8, experts: 2}"], ["model.top_k: is missing"]),
    (["model.checkpoint=/x"], ["model: preset and checkpoint exclude each other"]),
    (["model={checkpoint: /no/such, layers: 2}"], ["model.layers: is set by the checkpoint"]),
    (["model={checkpoint: /no/such}"], ["model.checkpoint: ", "/no/such"]),
    (["cluster.memory=1 MiB"], ["cluster.memory: 1.00 MiB is not enough: module 0 needs 4", "MiB; raise it"]),
    # copies
    (["placement.copies=9"], ["placement.copies: 9 is not allowed; allowed: 1 to 8, the number of modules"]),
    (["placement.copies={2: 9}"], ["placement.copies.2: 9 is not allowed; allowed: 1 to 8"]),
    (["placement.copies={8: 2}"], ["placement.copies.8: there is no expert 8; the model has 8"]),
    (["placement.copies=0"], ["placement.copies: 0 is not allowed"]),
    (["placement.copies=two"], ["placement.copies: 'two' is not allowed"]),
    # faults
    (["faults.0.kind=boom"], ["faults.0.kind: 'boom' is not allowed; allowed: 'kill', 'hang'"]),
    (["faults.0.module=8"], ["faults.0.module: 8 is not allowed; allowed: 0 to 7, or random"]),
    (["faults.0.module=-1"], ["faults.0.module: -1 is not allowed"]),
    (["faults.0.module=somewhere"], ["faults.0.module: 'somewhere' is not allowed", "random"]),
    (["faults.0.module=null"], ["faults.0.module: is missing; kill needs a module number or random"]),
    (["faults.0.rate=0.5"], ["faults.0.rate: is not a parameter of kill, which takes: module, at"]),
    (["faults.0={kind: hang, module: 1, for: 0}"], ["faults.0.for: 0 is not allowed"]),
    (["faults.0={kind: drop, rate: 1.5}"], ["faults.0.rate: 1.5 is not allowed"]),
    (["faults.0={kind: slow, module: 1, factor: .inf}"], ["faults.0.factor: inf is not allowed"]),
    (["faults.0.at={}"], ["faults.0.at: give either batch (a number) or time"]),
    (["faults.0.at={batch: 1, time: 1 s}"], ["faults.0.at: give either batch (a number) or time"]),
    (["faults.0.at.batch=-1"], ["faults.0.at.batch: -1 is not allowed"]),
    (["cluster.links.node=0"], ["cluster.links.node: 0 is not a rate", "200 MB/s"]),
    (["cluster.links.node=5 MB/h"], ["cluster.links.node: '5 MB/h' is not a rate"]),
    (["cluster={transport: memory, links: {node: 1 MB/s}}"], ["cluster.links: ", "zmq or ray"]),
    (["exchange.codec.node={deadline: {within_ms: 0}}"], ["exchange.codec.node", "within_ms"]),
    (["exchange.codec.node={auto: [raw, delta]}"], ["exchange.codec.node", "delta"]),
    (
        ["exchange.codec.node=delta"],
        [
            "exchange.codec.node: delta looks at several rows at once",
            "; leave out delta and project here",
        ],
    ),
    # what cannot be meant
    (
        ["run.batches=" + "9" * 60],
        ["run.batches: 99999999999999999999... is not allowed", "less than or equal to 2147483647"],
    ),
    (["model.experts=4294967296"], ["model.experts: 4294967296 is not allowed", "65536"]),
    (["model.d_model=" + "9" * 400], ["model.d_model: a number of more than 3", "digits is not allowed"]),
    # 2 GiB without 1 MiB hold (2^31 - 2^20 - 64) / 2064 rows of 512 values and two choices of 8 bytes
    (
        ["run.batch_tokens=1100000"],
        ["run.batch_tokens: 1100000 is not allowed; allowed: 1 to 1039939", "what a frame holds"],
    ),
    (
        ["stream.vocabulary=" + "9" * 20],
        ["stream.vocabulary: 999", "is not allowed; allowed: less than 2**63"],
    ),
    (["run.seed=" + "9" * 30], ["run.seed: 999", "less than 9223372036854775808"]),
    (["model.norm_eps=1e-320"], ["model.norm_eps: 1e-320 is not allowed"]),  # 0 in float32
    (["cluster.nodes=5000"], ["cluster: nodes x modules_per_node = 20000", "allowed: up to 4096"]),
    (["cluster.heartbeat=1 us"], ["cluster.heartbeat: 1 us is not allowed; allowed: at least 1 ms"]),
    (["cluster.address=' '"], ["cluster.address: ' ' is not allowed"]),
    (["cluster.replace=no"], ["cluster.replace: 'no' is not allowed; allowed: true or false"]),
    (["cluster.evict_after=1:30"], ["cluster.evict_after: '1:30' is not a time"]),
    (["run.batches=1_000"], ["run.batches: '1_000' is not allowed"]),
    (["run.batches=!!int x"], ["run.batches:1:1: 'x' cannot be read as !!int"]),
    (["run.batches=" + "9" * 5000], ["run.batches:1:1: '999", "cannot be read as !!int"]),
    (["run.batches=!!timestamp x"], ["run.batches:1:1: 'x' cannot be read as !!timestamp"]),
    (["run.batches={[1]: 2}"], ["run.batches:1:2: [1] is not a key"]),
    (["run.batches=" + "[" * 3000], ["run.batches: lists or mappings lie too deep"]),
    (["run.batches=&a [*a, *a]"], ["run.batches: [[", "... is not allowed; it should be a valid integer"]),
    (["run.batches=3 # three"], ["run.batches: '3 # three' is not allowed"]),  # no comments here
    (["stream.path=&anchor # all"], ["stream.path: '# all' would be a comment"]),
    (["faults.0={kind: drop} # all"], ["faults.0: '# all' would be a comment"]),
    (["faults.x.rate=1"], ["'x' is not a position in a list of 1"]),
    (["x." * 3000 + "y=1"], ["x." * 38 + " ...: is not an assignment"]),
    (["stream.path=''"], ["stream.path: '' does not exist"]),
    (["model={checkpoint: ''}"], ["model.checkpoint: '' is not allowed"]),
    (["model.d_model.x=1"], ["model.d_model: {'x': 1} is not allowed"]),
    # assignments
    (["top_k"], ["top_k: is not an assignment"]),
    (["run..seed=1"], ["is not an assignment"]),
    (["faults.5.module=1"], ["'5' is not a position in a list of 1"]),
    (["name.x=1"], ["'laptop' has no key 'x'"]),
    (["run.seed={"], ["run.seed:1:2: "]),
]


@pytest.mark.parametrize(("assignments", "expected"), REFUSED, ids=[case[0][0][:60] for case in REFUSED])
def test_refused_with_path_value_and_what_is_allowed(assignments: list[str], expected: list[str]) -> None:
    (line,) = problems(*assignments)
    for part in expected:
        assert part in line


def test_all_problems_come_at_once_one_line_each() -> None:
    found = problems("run.batches=x", "cluster.nodes=0", "exchange.codec.node=int9", "faults.0.factor=2")
    assert [line.split(":")[0] for line in found] == [
        "cluster.nodes",
        "exchange.codec.node",
        "faults.0.factor",
        "run.batches",
    ]
    found = problems("placement.copies={1: 9, 20: 1}", "faults.0.module=9")
    assert [line.split(":")[0] for line in found] == [
        "placement.copies.1",
        "placement.copies.20",
        "faults.0.module",
    ]


def test_all_assignments_that_are_none_come_at_once() -> None:
    found = problems("top_k", "faults.7.module=1", "a..b=1", "run.seed={")
    assert [line.split(":")[0] for line in found] == ["top_k", "faults.7.module", "a..b=1", "run.seed"]


def test_numbers_are_shown_with_their_digits_or_how_many_these_are() -> None:
    assert show(10**75) == "1" + "0" * 75
    for exponent in (100, 101, 1000):
        found = re.fullmatch(r"a number of more than (\d+) digits", show(-(10**exponent)))
        assert found and 0.98 * exponent < int(found[1]) < exponent + 1


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("model.top_k is 9; allowed: 1 to 8", ("model", "top_k"), "9 is not allowed; allowed: 1 to 8"),
        ("model.name is no preset; allowed: a, b", ("model", "name"), "is no preset; allowed: a, b"),
        ("model.name is no preset; allowed: no a", ("model", "name"), "is no preset; allowed: no a"),
        ("model.name is 3; allowed: no 3", ("model", "name"), "3 is not allowed; allowed: no 3"),
        ("model.name is 'a\nb'; allowed: c", ("model", "name"), "'a\nb' is not allowed; allowed: c"),
        ("context: 1.5 is too much", ("stream", "context"), "1.5 is too much"),
        ("something else", ("stream",), "something else"),
    ],
)
def test_where_other_modules_say_that_something_is_wrong(text: str, path: tuple[str, ...], says: str) -> None:
    assert problem_of(ValueError(text), "stream") == (path, says)
