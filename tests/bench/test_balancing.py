"""The simulation of load balancing: what it must show, and that the docs show it."""

from __future__ import annotations

import pytest
from bench.balancing import BEGIN, END, PAGE, SCENARIOS, simulate, table


@pytest.mark.parametrize("seed", [11, 12, 13])
@pytest.mark.parametrize("scenario", SCENARIOS[1:3], ids=lambda scenario: scenario.name)
def test_latency_aware_choice_beats_round_robin_where_one_of_five_is_slow(scenario, seed):
    by_turn = simulate("round_robin", scenario.slowness, seed=seed, calls=1_000)
    by_latency = simulate("lowest_latency", scenario.slowness, seed=seed, calls=1_000)

    assert by_latency.percentile(0.99) < by_turn.percentile(0.99) / 1.5
    assert by_latency.share_of_first < 0.05


def test_it_harms_nobody_where_all_are_well():
    by_latency = simulate("lowest_latency", SCENARIOS[0].slowness, calls=1_000)

    assert by_latency.percentile(0.99) < 1.1 * simulate("round_robin", SCENARIOS[0].slowness, calls=1_000).percentile(
        0.99
    )
    assert 0.15 < by_latency.share_of_first < 0.25


def test_the_docs_show_what_the_simulation_says():
    shown = PAGE.read_text().partition(f"{BEGIN}\n")[2].partition(f"\n{END}")[0]

    assert shown.splitlines() == list(table())
