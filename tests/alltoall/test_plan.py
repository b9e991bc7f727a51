"""Plans against brute force; replica choice and relays against hand-made clusters."""

import itertools

import numpy as np
import pytest

from rayemu.alltoall import (
    ALIVE,
    DEAD,
    EXCHANGES,
    LEAVING,
    LOADING,
    ORDERS,
    READY,
    RELAYS,
    REPLICAS,
    SUSPECTED,
    View,
    cut_micro_batches,
    cut_slices,
    plan_parcels,
)
from rayemu.placement import PLACEMENTS, from_columns, problem_of
from tests.views import a_view, placed_on


def make_view(states: list[int], nodes: int = 2, copies: int = 2, experts: int = 8) -> View:
    modules = len(states)
    placed = PLACEMENTS["linear"]().place(problem_of(np.full(experts, copies), modules))
    module_to_node = np.repeat(np.arange(nodes), modules // nodes)
    return a_view(placed, module_to_node, experts, states)


def test_orders_of_sending_by_hand() -> None:
    hops = np.array([3, 1, 1, 1, 0, 0, 2, 4])
    parcels = plan_parcels(np.arange(8), hops, hops, np.zeros(8, int), 2)

    def sent(order: str, home: int) -> list[tuple[int, int]]:
        return [(p.hop, len(p.pairs)) for p in ORDERS[order](parcels, home, 5)]

    assert sent("largest_first", 3) == [(0, 2), (1, 2), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert sent("rotation", 3) == [(3, 1), (4, 1), (0, 2), (1, 2), (1, 1), (2, 1)]
    assert sent("rotation", 1) == [(1, 2), (1, 1), (2, 1), (3, 1), (4, 1), (0, 2)]


@pytest.mark.parametrize("kind", EXCHANGES)
def test_homes_that_rotate_in_step_send_to_modules_of_their_own(kind: str) -> None:
    """Every home has a row for every module; to relays the steps are whole nodes."""
    view, modules = make_view([ALIVE] * 12, nodes=3), np.arange(12)
    step_of: dict[int, list[int]] = {}
    for home in range(12):
        hops = EXCHANGES[kind]().first_hops(modules, view, home)
        parcels = plan_parcels(modules, hops, modules, modules, 100)
        hop_sequence = [p.hop for p in ORDERS["rotation"](parcels, home, 12)]
        assert hop_sequence == sorted(set(hops.tolist()), key=lambda hop: (hop - home) % 12)
        for hop in hop_sequence:
            step_of.setdefault((hop - home) % 12, []).append(hop)
    assert all(len(hops) == len(set(hops)) for hops in step_of.values())
    assert len(step_of[0]) == len(step_of[4]) == len(step_of[8]) == 12


@pytest.mark.parametrize("kind", REPLICAS)
def test_replicas_hold_the_expert_and_live(kind: str) -> None:
    view = make_view([ALIVE, DEAD, ALIVE, ALIVE, ALIVE, ALIVE, SUSPECTED, ALIVE])
    experts = np.random.default_rng(0).integers(0, 8, (50, 2))
    for home in range(8):
        slots = REPLICAS[kind]().choose(0, experts, view, home, np.zeros(8, np.int64))
        assert (view.placement.expert[slots] == experts).all()
        assert (view.state[view.slot_to_module[slots]] == ALIVE).all()
        assert slots.dtype == np.int32


@pytest.mark.parametrize("kind", REPLICAS)
def test_replicas_without_copies(kind: str) -> None:
    states = [ALIVE] * 8
    states[0] = states[4] = DEAD  # both copies of expert 0
    view = make_view(states)
    slots = REPLICAS[kind]().choose(0, np.array([[0, 1]]), view, 3, np.zeros(8, np.int64))
    assert slots[0, 0] == -1 and view.slot_to_module[slots[0, 0]] == -1 and slots[0, 1] >= 0


@pytest.mark.parametrize("kind", REPLICAS)
def test_suspected_only_where_nothing_else_lives(kind: str) -> None:
    states = [SUSPECTED, ALIVE, ALIVE, ALIVE, DEAD, ALIVE, ALIVE, ALIVE]
    view = make_view(states)
    slots = REPLICAS[kind]().choose(0, np.array([[0]]), view, 3, np.zeros(8, np.int64))
    assert view.slot_to_module[slots[0, 0]] == 0


@pytest.mark.parametrize("kind", REPLICAS)
def test_slots_that_load_or_leave_are_given_no_work(kind: str) -> None:
    """Expert 0 is ready on a suspected module only, expert 1 on one live one, expert 2 nowhere."""
    placed = placed_on([0, 0, 1, 1, 1, 2, 2], [0, 1, 0, 1, 2, 0, 3])
    slots = [LOADING, READY, LEAVING, LOADING, READY, LEAVING, LOADING]
    view = a_view(placed, [0, 0, 1, 1], 3, [ALIVE, SUSPECTED, ALIVE, ALIVE], slot_states=slots)
    for home in range(4):
        found = REPLICAS[kind]().choose(0, np.array([[0, 1, 2]] * 3), view, home, np.zeros(4))
        assert found.tolist() == [[1, 4, -1]] * 3


def test_nearest_prefers_home_then_node() -> None:
    placed = placed_on(np.array([0, 0, 1, 1], np.int32), np.array([1, 3, 0, 2], np.int32))
    view = a_view(placed, np.array([0, 0, 1, 1]), 2)
    nearest = REPLICAS["nearest"]()
    load = np.zeros(4, np.int64)
    assert view.slot_to_module[nearest.choose(0, np.array([[0, 1]]), view, 1, load)].tolist() == [[1, 0]]
    assert view.slot_to_module[nearest.choose(0, np.array([[0, 1]]), view, 2, load)].tolist() == [[3, 2]]


def test_nearest_takes_the_copy_at_home_before_its_neighbour_s() -> None:
    experts = np.arange(5)  # each on modules 0, 1 and 2; the turn among equals goes by expert and home
    placed = placed_on(np.repeat(experts, 3).astype(np.int32), np.tile(np.arange(3, dtype=np.int32), 5))
    view = a_view(placed, np.array([0, 0, 1, 1]), 5)
    for home, wanted in enumerate((0, 1, 2, 2)):  # module 3 is the neighbour of 2 and holds nothing
        slots = REPLICAS["nearest"]().choose(0, experts[None], view, home, np.zeros(4))
        assert view.slot_to_module[slots].tolist() == [[wanted] * 5]


@pytest.mark.parametrize("kind", REPLICAS)
def test_every_layer_has_its_own_copies(kind: str) -> None:
    """Three layers, in each of which the copies of an expert are one module further on."""
    layer, expert, copy = (i.ravel() for i in np.indices((3, 4, 2)))
    placed = from_columns(layer, expert, (layer + expert + 2 * copy) % 4)
    view = a_view(placed, np.array([0, 0, 1, 1]), 4)
    for of, home in itertools.product(range(3), range(4)):
        rows = np.arange(4)[None].repeat(6, 0)
        found = view.slot_to_module[REPLICAS[kind]().choose(of, rows, view, home, np.zeros(4))]
        assert ((found - of - np.arange(4)) % 2 == 0).all()


def test_nearest_takes_equals_in_turn_by_home_and_expert() -> None:
    """Five experts on all modules of the other node: home h and expert e take number (h + e) of them."""
    placed = placed_on(np.repeat(np.arange(5), 3), np.tile([3, 4, 5], 5))
    view = a_view(placed, np.array([0, 0, 0, 1, 1, 1]), 5)
    for home in range(3):
        slots = REPLICAS["nearest"]().choose(0, np.arange(5)[None], view, home, np.zeros(6))
        assert view.slot_to_module[slots].tolist() == [[3 + (home + e) % 3 for e in range(5)]]


def test_even_cuts_the_rows_of_an_expert_into_one_run_for_each_copy() -> None:
    """Experts with 1, 8, 5 and 7 rows on three modules each, and homes that begin with different copies."""
    view = a_view(placed_on(np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)), np.zeros(3, int), 4)
    experts = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [1, 8, 5, 7]))
    begins = []
    for home in range(3):
        slots = REPLICAS["even"]().choose(0, experts[:, None], view, home, np.zeros(3))[:, 0]
        runs = [[m for m, _ in itertools.groupby(view.slot_to_module[slots[experts == e]])] for e in range(4)]
        assert [len(run) for run in runs] == [1, 3, 3, 3]
        begins.append([run[0] for run in runs])
    assert (np.sort(begins, axis=0) == np.arange(3)[:, None]).all()


def test_hash_is_multiplicative_in_expert_and_home() -> None:
    """Knuth's method on 32 bits, its upper half modulo the copies; in Python numbers."""
    experts, copies = 64, 3
    slots = np.repeat(np.arange(experts, dtype=np.int32), copies)
    placed = placed_on(slots, np.tile(np.arange(copies, dtype=np.int32), experts))
    view = a_view(placed, np.zeros(8, int), experts)
    for home in range(8):
        found = REPLICAS["hash"]().choose(0, np.arange(experts)[None], view, home, np.zeros(8))[0]
        mixed = [(e * 2654435761 + home * 2246822519) % 2**32 // 2**16 % copies for e in range(experts)]
        assert view.slot_to_module[found].tolist() == mixed


@pytest.mark.parametrize("kind", ["nearest", "hash"])
def test_homes_and_experts_spread_over_copies_that_are_equally_good(kind: str) -> None:
    experts = 64  # each on modules 4 and 5, far from the homes 0 to 3
    slots = np.repeat(np.arange(experts, dtype=np.int32), 2)
    placed = placed_on(slots, np.tile(np.array([4, 5], np.int32), experts))
    view = a_view(placed, np.repeat([0, 1], 4), experts)
    load = np.zeros(8, np.int64)
    table = np.array(
        [
            view.slot_to_module[REPLICAS[kind]().choose(0, np.arange(experts)[None], view, home, load)[0]]
            for home in range(4)
        ]
    )  # [home, expert]
    for share in ((table == 4).mean(axis=0), (table == 4).mean(axis=1)):
        assert abs(share.mean() - 0.5) < 0.1, "both copies get their part"
    assert ((table == 4).mean(axis=1) > 0.3).all() and ((table == 4).mean(axis=1) < 0.7).all()
    assert len({row.tobytes() for row in table}) > 1, "homes choose for themselves"
    again = REPLICAS[kind]().choose(0, np.arange(experts)[None], view, 2, load + 1000)[0]
    assert (view.slot_to_module[again] == table[2]).all(), "whatever the load"


@pytest.mark.parametrize("home", range(8))
def test_even_gives_every_copy_the_same_share_of_its_experts_rows(home: int) -> None:
    view = make_view([ALIVE, ALIVE, DEAD, ALIVE, ALIVE, ALIVE, ALIVE, ALIVE], copies=3)
    experts = np.random.default_rng(home).choice(8, (200, 2), p=np.arange(1, 9) / 36)
    modules = view.slot_to_module[REPLICAS["even"]().choose(0, experts, view, home, np.zeros(8))]
    for expert in range(8):
        holders = [m for m in view.placement.module[view.placement.expert == expert].tolist() if m != 2]
        given = np.bincount(modules[experts == expert], minlength=8)
        assert sorted(np.flatnonzero(given).tolist()) == sorted(holders)
        assert given[holders].max() - given[holders].min() <= 1


def test_split_takes_the_least_that_the_fullest_module_can_have() -> None:
    """By hand: 12 rows of expert 0 on modules 0 and 1, 6 of expert 1 on 1 and 2, 2 of expert 2 on 2 alone.

    20 rows on three modules are 20 / 3 each: module 0 gets at most 7 of the first 12.
    """
    view = a_view(placed_on([0, 0, 1, 1, 2], [0, 1, 1, 2, 2]), [0, 0, 0], 4)
    experts = np.repeat([0, 1, 2, 3], [12, 6, 2, 1])[:, None]
    found = REPLICAS["split"]().choose(0, experts, view, 1, np.zeros(3))[:, 0]
    assert found[-1] == -1, "an expert without copies"
    given = np.bincount(view.slot_to_module[found[:-1]], minlength=3)
    assert given.max() == 7 and (view.placement.expert[found[:-1]] == experts[:-1, 0]).all()
    loaded = REPLICAS["split"]().choose(0, experts[:12], view, 1, np.array([20, 0, 0]))[:, 0]
    assert (view.slot_to_module[loaded] == 1).all(), "what is outstanding counts"


def test_least_loaded_counts_what_it_gives_away_busiest_expert_first() -> None:
    """Experts with 5, 3, 2 and 1 rows, each on both modules; where both have as much, the home decides."""
    slots = np.repeat(np.arange(4, dtype=np.int32), 2)
    placed = placed_on(slots, np.tile(np.array([0, 1], np.int32), 4))
    view = a_view(placed, np.array([0, 0]), 4)
    experts = np.repeat([3, 1, 2, 0], [1, 3, 2, 5])[:, None]

    def given(load: list[int], home: int) -> list[int]:
        found = REPLICAS["least_loaded"]().choose(0, experts, view, home, np.array(load))
        return np.bincount(view.slot_to_module[found[:, 0]], minlength=2).tolist()  # type: ignore[no-any-return]

    for home in range(2):
        assert sorted(given([0, 0], home)) == [5, 6]  # 5; 3, 2; 1 to either
        assert given([0, 3], home) == [7, 4]  # loads after each: (5, 3), (5, 6), (7, 6), (7, 7)
        assert given([20, 0], home) == [0, 11]


def test_least_loaded_experts_with_as_many_rows_take_turns_by_number() -> None:
    """Brute force over 40 experts on 3 of 7 modules each, with equal numbers of rows."""
    modules, experts, home = 7, 40, 3
    held = [sorted({e % 7, (3 * e + 1) % 7, (5 * e + 2) % 7}) for e in range(experts)]
    slots = np.array([(e, m) for e in range(experts) for m in held[e]], np.int32)
    placed = placed_on(slots[:, 0], slots[:, 1])
    view = a_view(placed, np.zeros(modules, int), experts)
    load = np.array([3, 0, 1, 4, 1, 5, 9])
    wanted, outstanding = [], load.tolist()
    for e in range(experts):
        turn = (home + e) % len(held[e])
        best = min(held[e][turn:] + held[e][:turn], key=lambda m: outstanding[m])
        outstanding[best] += 2
        wanted.append(best)
    found = REPLICAS["least_loaded"]().choose(0, np.arange(experts).repeat(2)[:, None], view, home, load)
    assert (
        view.slot_to_module[found[::2, 0]].tolist() == view.slot_to_module[found[1::2, 0]].tolist() == wanted
    )
    assert load.tolist() == [3, 0, 1, 4, 1, 5, 9], "what the home keeps is left alone"


def test_tables_are_made_once_for_a_view_and_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for kind in RELAYS:
        monkeypatch.setitem(
            RELAYS, kind, lambda members, home, of=kind: chosen.append((of, home)) or members[0]
        )
    view, modules = make_view([ALIVE] * 8), np.arange(8)
    for _ in range(3):
        for home in range(4):
            for kind in RELAYS:
                EXCHANGES["hierarchical"](relay=kind).first_hops(modules, view, home)
    assert sorted(chosen) == sorted((kind, home) for kind in RELAYS for home in range(4))
    for kind in ("nearest", "hash"):
        kept = []
        for home in (1, 1, 2, 1):
            assert REPLICAS[kind]().choose(0, modules[None], view, home, np.zeros(8)).dtype == np.int32
            kept.append(dict(view._derived))
        assert len(kept[1]) == len(kept[0]) and len(kept[3]) == len(kept[2]) == len(kept[1]) + 1
        assert all(table is not None and kept[3][key] is table for key, table in kept[0].items())


def test_least_loaded_homes_do_not_all_begin_with_the_same_copy() -> None:
    view, load = make_view([ALIVE] * 8), np.zeros(8, np.int64)  # expert 0 lives on 0 and 4
    slots = [
        REPLICAS["least_loaded"]().choose(0, np.zeros((9, 1), int), view, home, load) for home in range(8)
    ]
    assert sorted(int(view.slot_to_module[s[0, 0]]) for s in slots) == [0] * 4 + [4] * 4


def test_least_loaded_avoids_the_busy_module() -> None:
    view = make_view([ALIVE] * 8)
    load = np.zeros(8, np.int64)
    load[0] = 1000  # expert 0 lives on 0 and 4
    for home in range(8):
        slots = REPLICAS["least_loaded"]().choose(0, np.zeros((9, 1), int), view, home, load)
        assert (view.slot_to_module[slots] == 4).all()


def test_hierarchical_hops_use_one_live_relay_per_remote_node() -> None:
    view = make_view([ALIVE] * 4 + [DEAD, ALIVE, ALIVE, ALIVE])
    modules = np.arange(8)
    hops = EXCHANGES["hierarchical"]().first_hops(modules, view, 2)
    assert hops[:4].tolist() == [0, 1, 2, 3]
    assert len(set(hops[4:].tolist())) == 1 and hops[4] in (5, 6, 7)
    relays = {int(EXCHANGES["hierarchical"]().first_hops(modules, view, home)[7]) for home in range(3)}
    assert relays == {5, 6, 7}, "homes spread over relays"
    assert (EXCHANGES["flat"]().first_hops(modules, view, 2) == modules).all()
    assert EXCHANGES["hierarchical"](relay="first").first_hops(modules, view, 1)[7] == 5
    assert RELAYS["first"](np.array([3, 4]), 7) == 3


def test_only_live_modules_relay_and_without_any_rows_go_directly() -> None:
    modules = np.arange(8)
    for kind in RELAYS:
        exchange = EXCHANGES["hierarchical"](relay=kind)
        view = make_view([ALIVE] * 4 + [SUSPECTED, DEAD, ALIVE, SUSPECTED])
        for home in range(4):
            assert exchange.first_hops(modules, view, home)[4:].tolist() == [6] * 4
        view = make_view([ALIVE] * 4 + [SUSPECTED, DEAD, SUSPECTED, SUSPECTED])
        assert exchange.first_hops(modules, view, 0).tolist() == modules.tolist()
    assert make_view([ALIVE, SUSPECTED, DEAD, ALIVE]).live_in_node(0).tolist() == [0]
    three = make_view([ALIVE] * 6, nodes=3)
    hops = EXCHANGES["hierarchical"](relay="first").first_hops(np.arange(6), three, 2)
    assert hops.tolist() == [0, 0, 2, 3, 4, 4]


def test_only_the_same_incarnation_of_a_live_module_is_waited_for() -> None:
    view = make_view([ALIVE, SUSPECTED, DEAD, ALIVE])
    assert [view.serves(module, 0) for module in range(4)] == [True, False, False, True]
    assert not view.serves(0, 1)


@pytest.mark.parametrize(
    ("tokens", "modules", "least"),
    [(1, 8, 64), (64, 8, 64), (127, 8, 64), (128, 8, 64), (512, 8, 64), (513, 3, 100), (7, 4, 1), (9, 4, 0)],
)
def test_cuts_cover_the_rows(tokens: int, modules: int, least: int) -> None:
    for cuts in (cut_slices(tokens, modules, least), cut_micro_batches(tokens, modules)):
        assert cuts[0][0] == 0 and cuts[-1][1] == tokens
        assert all(type(edge) is int for cut in cuts for edge in cut)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(cuts))
        sizes = [high - low for low, high in cuts]
        assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1 and len(cuts) <= modules
    slices = cut_slices(tokens, modules, least)
    assert len(slices) == 1 or min(high - low for low, high in slices) >= least
    more = len(slices) + 1  # are as many as may be
    assert more > min(modules, tokens) or tokens // more < least
