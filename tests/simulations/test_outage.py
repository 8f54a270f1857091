"""An outage of minutes in made-up time: no storm, nobody else harmed, the recovery noticed. Seeded; the long form is three times as long."""

from __future__ import annotations

import os

import pytest
from bench.outage import TIMEOUT_S, Death, Outage, RoundRobin, p99, simulate

from hookline.builtins.circuit_breaker.options import BreakerOptions
from hookline.builtins.fallback import Plugin as Fallback

SCALE = 3 if os.environ.get("HOOKLINE_LONG") == "1" else 1
BOTH = ("a/m", "b/m")


def run(dead: tuple[str, ...], death: Death, **more: object) -> Outage:
    times = {"began_s": 20.0 * SCALE, "ended_s": 60.0 * SCALE, "lasts_s": 60.0 * SCALE + 70.0}
    return simulate(seed=7, dead=dead, death=death, calls_per_s=40.0, **times, **more)  # type: ignore[arg-type]


def most_attempts(outage: Outage) -> float:
    return 1.2 * len(outage.calls) + 10 * max(call.at_s for call in outage.calls)


@pytest.mark.parametrize("death", ["errors", "hangs", "rate limits"])
def test_one_dead_deployment_harms_nobody_and_its_recovery_is_noticed(death):
    outage = run(("a/m",), death)

    during = [call for call in outage.calls if outage.began_s <= call.at_s < outage.ended_s]
    assert len(outage.attempts) <= most_attempts(outage)
    assert [call.status for call in outage.calls if call.status != 200] == []

    before = p99([call.took_s for call in outage.calls if call.at_s < outage.began_s])
    healthy = p99([call.took_s for call in during if call.first == "b/m" and call.attempts == 1])
    known_dead = p99([call.took_s for call in during if call.at_s > outage.began_s + TIMEOUT_S + 1])
    assert healthy <= 1.2 * before
    assert known_dead <= 1.3 * before

    first_ok_s = min(a.at_s for a in outage.attempts if a.deployment == "a/m" and a.is_ok and a.at_s >= outage.ended_s)
    assert first_ok_s <= max(outage.opened_until_s, outage.ended_s) + 0.5
    assert outage.opened_until_s - outage.ended_s <= BreakerOptions().max_open_s
    after = [a for a in outage.attempts if a.at_s > first_ok_s + 1]
    assert 0.4 <= sum(a.deployment == "a/m" for a in after) / len(after) <= 0.6


@pytest.mark.parametrize("death", ["errors", "hangs"])
def test_when_all_are_dead_each_call_is_asked_little_more_than_once(death):
    outage = run(BOTH, death)

    assert len(outage.attempts) <= most_attempts(outage)
    assert any(call.status >= 500 for call in outage.calls)
    late = [call.status for call in outage.calls if call.at_s > max(outage.opened_until_s, outage.ended_s) + 1]
    assert set(late) == {200}


def test_the_budget_alone_holds_without_a_breaker():
    outage = run(BOTH, "errors", plugins=(RoundRobin, Fallback), max_retries=5)

    assert len(outage.attempts) <= most_attempts(outage)
    assert len(outage.attempts) >= 1.1 * len(outage.calls)
