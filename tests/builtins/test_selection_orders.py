"""Who goes first: every strategy as a property, over any deployments."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookline import Deployment, Price, Target, Usage
from hookline.builtins.model_selection import orders
from hookline.builtins.model_selection.loads import Load
from hookline.builtins.model_selection.ranking import Rank, arrange
from hookline.testing.clock import FakeClock

draws = st.floats(0, 1, exclude_max=True)
weights = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=1, max_size=6)


def target(id: str, **facts) -> Target:
    provider, _, model = id.partition("/")
    return Target(Deployment(id, provider, model, **facts))


def weighing(*given: float) -> list[Target]:
    return [target(f"d{index}/m", weight=weight) for index, weight in enumerate(given)]


def ids(targets) -> list[str]:
    return [t.deployment.id for t in targets]


def loads_of(targets, *in_flight: int) -> dict[int, Load]:
    loads = {id(t): Load(FakeClock(), 10.0) for t in targets}
    for load, count in zip(loads.values(), in_flight, strict=False):
        load.in_flight = count
    return loads


def firsts(order, calls: int = 4_000) -> Counter[str]:
    return Counter(ids(order())[0] for _ in range(calls))


@given(weights, st.randoms(use_true_random=False), st.integers(0, 1_000), st.text())
def test_every_order_keeps_every_target_once(given, rng, turn, who):
    targets = weighing(*given)
    loads = loads_of(targets, *(rng.randrange(5) for _ in targets))
    orders_made = [
        orders.at_random(targets, rng.random),
        orders.by_hash(targets, who),
        orders.by_turn(targets, turn),
        orders.by_in_flight(targets, load_of=loads, draw=rng.random),
        orders.by_latency(targets, load_of=loads, draw=rng.random, is_stream=True, now=5.0),
        orders.by_cost(targets, usage=Usage(10, 10), draw=rng.random),
    ]

    for made in orders_made:
        assert sorted(map(id, made)) == sorted(map(id, targets))


@given(weights.filter(any), st.randoms(use_true_random=False), st.text())
def test_weight_zero_is_behind_everyone_who_weighs_something(given, rng, who):
    targets = weighing(*given)
    loads = loads_of(targets)
    weightless = sum(1 for weight in given if not weight)

    for made in (
        orders.at_random(targets, rng.random),
        orders.by_hash(targets, who),
        orders.by_in_flight(targets, load_of=loads, draw=rng.random),
        orders.by_latency(targets, load_of=loads, draw=rng.random, is_stream=False, now=5.0),
    ):
        assert all(t.deployment.weight == 0 for t in made[len(made) - weightless :])


def test_all_weights_zero_keep_the_listed_order():
    assert ids(orders.at_random(weighing(0, 0), random.Random(1).random)) == ["d0/m", "d1/m"]


@pytest.mark.parametrize("given", [(1, 3), (1, 1, 2), (0.5, 0.25, 0.25, 1)])
def test_each_is_first_in_proportion_to_its_weight(given):
    draw, targets = random.Random(7).random, weighing(*given)

    seen = firsts(lambda: orders.at_random(targets, draw))

    for index, weight in enumerate(given):
        assert math.isclose(seen[f"d{index}/m"] / 4_000, weight / sum(given), abs_tol=0.03)


def test_what_a_dead_first_leaves_is_spread_by_weight_too():
    draw, targets = random.Random(7).random, weighing(1, 1, 3)

    seconds = Counter(made[1] for _ in range(4_000) if (made := ids(orders.at_random(targets, draw)))[0] == "d0/m")

    assert math.isclose(seconds["d2/m"] / seconds.total(), 0.75, abs_tol=0.05)


def test_in_turn_each_is_first_equally_often_and_each_pair_too():
    made = [ids(orders.by_turn(weighing(1, 1, 1), turn)) for turn in range(30)]

    assert set(Counter(order[0] for order in made).values()) == {10}
    assert set(Counter((order[0], order[1]) for order in made).values()) == {5}


def by_keys(**keys_of: int) -> list[Target]:
    """Deployments "a/m" and so on, each with so many keys of its provider; "a" weighs 3, others 1."""
    made = [Deployment(f"{name}/m", name, "m", weight=3.0 if name == "a" else 1.0) for name in keys_of]
    return [Target(one) for deployment in made for one in deployment.by_key(keys_of[deployment.provider])]


@pytest.mark.parametrize("keys_of", [{"a": 2, "b": 2}, {"a": 1, "b": 4}, {"a": 3, "b": 1}])
def test_three_to_one_stays_three_to_one_however_many_keys_each_has(keys_of):
    draw, targets = random.Random(7).random, by_keys(**keys_of)

    drawn = firsts(lambda: orders.at_random(targets, draw))
    hashes = Counter(ids(orders.by_hash(targets, f"user-{n}"))[0] for n in range(4_000))

    for seen in (drawn, hashes):
        by_provider = Counter()
        for id, count in seen.items():
            by_provider[id[0]] += count
        assert by_provider["a"] / 4_000 == pytest.approx(0.75, abs=0.03)
        assert set(seen) == set(ids(targets))


def test_in_turn_a_second_key_is_no_second_turn():
    targets = by_keys(b=2, c=1)

    made = [ids(orders.by_turn(targets, turn))[0] for turn in range(6)]

    assert made == ["b/m#1", "c/m", "b/m#2", "c/m", "b/m#1", "c/m"]


def test_a_second_key_moves_no_sticky_call_to_another_deployment():
    def owner(targets, who: str) -> str:
        return ids(orders.by_hash(targets, who))[0][0]

    one_key, two_keys = by_keys(b=1, c=1), by_keys(b=2, c=1)

    assert all(owner(one_key, f"user-{n}") == owner(two_keys, f"user-{n}") for n in range(500))


def test_two_keys_have_together_as_many_in_flight_as_one():
    targets = by_keys(b=2, c=1)
    loads = loads_of(targets, 2, 2, 3)

    assert ids(orders.by_in_flight(targets, load_of=loads, draw=random.Random(1).random))[0] == "c/m"


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_the_first_by_least_in_flight_has_the_fewest(in_flight, rng):
    targets = weighing(*[1.0] * len(in_flight))
    loads = loads_of(targets, *in_flight)

    made = orders.by_in_flight(targets, load_of=loads, draw=rng.random)

    assert [loads[id(t)].in_flight for t in made] == sorted(in_flight)


def test_twice_the_weight_may_have_twice_in_flight():
    targets = weighing(1, 2)

    assert ids(orders.by_in_flight(targets, load_of=loads_of(targets, 4, 6), draw=random.Random(1).random))[0] == "d1/m"


@given(st.text(min_size=1), weights.filter(lambda w: len(w) > 1), st.data())
def test_a_sticky_key_moves_only_if_its_own_deployment_goes(who, given, data):
    targets = weighing(*given)
    gone = data.draw(st.integers(0, len(targets) - 1))

    before = ids(orders.by_hash(targets, who))
    after = ids(orders.by_hash([t for index, t in enumerate(targets) if index != gone], who))

    assert after == [id for id in before if id != f"d{gone}/m"]


@given(st.text(min_size=1), weights)
def test_a_sticky_key_moves_only_to_a_deployment_that_comes(who, given):
    targets = weighing(*given)

    before = ids(orders.by_hash(targets, who))[0]
    after = ids(orders.by_hash([*targets, target("new/m")], who))[0]

    assert after in (before, "new/m")


def test_sticky_keys_are_spread_by_weight():
    targets = weighing(1, 3)

    seen = Counter(ids(orders.by_hash(targets, f"user-{n}"))[0] for n in range(4_000))

    assert math.isclose(seen["d1/m"] / 4_000, 0.75, abs_tol=0.03)


def test_one_percent_is_one_percent():
    """20,000 users and as many calls: 1 % is 200, give or take four standard deviations (14)."""
    draw, targets = random.Random(7).random, weighing(99, 1)

    users = Counter(ids(orders.by_hash(targets, f"user-{n}"))[0] for n in range(20_000))
    calls = firsts(lambda: orders.at_random(targets, draw), 20_000)

    assert users["d1/m"] == pytest.approx(200, abs=56)
    assert calls["d1/m"] == pytest.approx(200, abs=56)


@given(st.text(), st.floats(0.01, 50), st.floats(0.01, 50))
def test_more_weight_takes_sticky_keys_and_gives_none_away(who, weight, more):
    """So a canary that grows keeps its users, and one that shrinks again has the same ones as before."""
    before = ids(orders.by_hash(weighing(10, 10, weight), who))[0]
    after = ids(orders.by_hash(weighing(10, 10, weight + more), who))[0]

    assert after in (before, "d2/m")


def test_sticky_is_the_same_in_every_process():
    """Else every worker would send a conversation elsewhere. The number is what blake2b makes of it."""
    assert orders.hashed("openai/gpt-4o", "acme\0ann") == pytest.approx(0.594972, abs=1e-6)


def test_cheapest_first_unknown_last_equals_by_weight():
    dear, cheap = Price(10, 10), Price(1, 1)
    targets = [
        target("unknown/m"),
        target("dear/m", price=dear),
        target("b/m", price=cheap, weight=0),
        target("a/m", price=cheap),
    ]

    made = orders.by_cost(targets, usage=Usage(1000, 100), draw=random.Random(3).random)

    assert ids(made) == ["a/m", "b/m", "dear/m", "unknown/m"]


def test_cheapest_depends_on_what_the_call_is_made_of():
    reads_cheap, writes_cheap = target("r/m", price=Price(1_000, 9_000)), target("w/m", price=Price(5_000, 1_000))
    draw = random.Random(3).random

    assert ids(orders.by_cost([writes_cheap, reads_cheap], usage=Usage(10_000, 10), draw=draw))[0] == "r/m"
    assert ids(orders.by_cost([reads_cheap, writes_cheap], usage=Usage(10, 10_000), draw=draw))[0] == "w/m"


@given(
    st.lists(st.floats(0.01, 60), min_size=2, max_size=6),
    st.lists(st.integers(0, 20), min_size=6, max_size=6),
    st.randoms(use_true_random=False),
)
def test_power_of_two_never_chooses_the_worst_of_all(latencies, in_flight, rng):
    targets = weighing(*[1.0] * len(latencies))
    loads = loads_of(targets, *in_flight)
    for load, latency in zip(loads.values(), latencies, strict=True):
        load.observe(latency, True, 100.0)
    cost = {id(t): loads[id(t)].weight_of_one_more(True, 100.0) for t in targets}

    made = orders.by_latency(targets, load_of=loads, draw=rng.random, is_stream=True, now=100.0)

    worst = max(cost.values())
    assert cost[id(made[0])] < worst or list(cost.values()).count(worst) > 1
    rest = [cost[id(t)] for t in made[1:]]
    assert rest == sorted(rest)


def test_who_is_not_known_yet_is_tried_before_who_is_slow_but_not_by_everyone_at_once():
    targets = weighing(1, 1)
    loads = loads_of(targets)
    known, new = (loads[id(t)] for t in targets)
    known.observe(2.0, True, 100.0)

    def first() -> str:
        made = orders.by_latency(targets, load_of=loads, draw=random.Random(1).random, is_stream=True, now=100.0)
        return ids(made)[0]

    assert first() == "d1/m"
    new.in_flight = 3
    assert first() == "d0/m"


ranks = st.builds(Rank, st.sampled_from([0.0, 5.0]), st.integers(0, 2), st.booleans(), st.integers(0, 2))


@settings(max_examples=200)
@given(st.lists(ranks, min_size=1, max_size=8))
def test_groups_come_in_rank_order_and_their_own_order_holds_within(given):
    targets = weighing(*[1.0] * len(given))
    rank_of = dict(zip(map(id, targets), given, strict=True))

    made = arrange(targets, given, lambda group: list(reversed(group)))

    assert [rank_of[id(t)] for t in made] == sorted(given)
    for rank in set(given):
        group = [t for t in targets if rank_of[id(t)] == rank]
        assert [t for t in made if rank_of[id(t)] == rank] == list(reversed(group))
