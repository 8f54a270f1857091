"""Load balancing, simulated: what each strategy makes of a slow deployment among five.

Lives here: the simulation and its table, which it writes into docs/howto/balance-load.md. Elsewhere: the strategies (builtins/model_selection), loads on real sockets (load.py).
Idea: the plugin itself decides, on a fake clock and with seeded dice; only calls and their latencies are made up. So the table is the same on every machine and a test makes it again.

    python -m bench.balancing"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hookline import Attempt, Call, Deployment, Result, Target
from hookline.builtins import model_selection
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider

PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "balance-load.md"
BEGIN, END = "<!-- balancing:begin -->", "<!-- balancing:end -->"
STRATEGIES = ("round_robin", "weighted", "least_in_flight", "lowest_latency")
DEPLOYMENTS = tuple(Deployment(f"d{n}/m", f"d{n}", "m") for n in range(5))
CALLS, CALLS_PER_S = 4_000, 20.0
MEDIAN_S, SIGMA = 0.6, 0.5
"""Of a healthy deployment: log-normal, p99 at 1.9 s."""
CROWDING = 0.02
"""Each call under way makes the next one so much slower: who sends everything to one place is punished."""

Slowness = Callable[[float, int], float]
"""(seconds since the start, which deployment) -> how many times slower than healthy."""


class Scenario(NamedTuple):
    name: str
    slowness: Slowness


SCENARIOS = (
    Scenario("all five are well", lambda at, n: 1.0),
    Scenario("one of five is 5 times slower", lambda at, n: 5.0 if n == 0 else 1.0),
    Scenario("one of five is 20 times slower", lambda at, n: 20.0 if n == 0 else 1.0),
    Scenario("one of five is 10 times slower for a minute", lambda at, n: 10.0 if n == 0 and 60 <= at < 120 else 1.0),
)


@dataclass
class Outcome:
    """What the calls of one run met."""

    latencies_s: list[float]
    to_first: int
    """Calls that went to the deployment that is slow, where one is."""

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1]

    @property
    def share_of_first(self) -> float:
        return self.to_first / len(self.latencies_s)


def simulate(strategy: str, slowness: Slowness, *, seed: int = 1, calls: int = CALLS) -> Outcome:
    """Calls arrive at random, whatever becomes of those before them."""
    clock = FakeClock()
    kit = PipelineKit(
        model_selection.Plugin,
        providers=[ScriptedProvider(name=d.provider) for d in DEPLOYMENTS],
        options={"model_selection": {"strategy": strategy}},
        clock=clock,
    )
    plugin = kit.plugin(model_selection.Plugin)
    plugin._draw = random.Random(seed).random
    world = random.Random(seed + 1)
    started, index_of = clock.monotonic(), {d.id: n for n, d in enumerate(DEPLOYMENTS)}
    in_flight = [0] * len(DEPLOYMENTS)
    ends: list[tuple[float, int, int, Attempt]] = []
    order = itertools.count()
    outcome = Outcome([], 0)
    at = started
    for _ in range(calls):
        at += world.expovariate(CALLS_PER_S)
        for ended_at, _, n, attempt in _until(ends, at):
            _move(clock, ended_at)
            in_flight[n] -= 1
            attempt.ended_at = ended_at
            for ticket in attempt.tickets:
                ticket.settle(Result("ok", attempt=attempt))
        _move(clock, at)
        call: Call = kit.make_call({"model": "m", "messages": []})
        target = plugin.select(call, [Target(d) for d in DEPLOYMENTS])[0]
        attempt = Attempt(target, 1, at)
        if (ticket := plugin.admit_attempt(call, target, attempt)) is not None:
            attempt.tickets.append(ticket)
        n = index_of[target.deployment.id]
        latency_s = world.lognormvariate(math.log(MEDIAN_S), SIGMA) * slowness(at - started, n)
        latency_s *= 1 + CROWDING * in_flight[n]
        in_flight[n] += 1
        heapq.heappush(ends, (at + latency_s, next(order), n, attempt))
        outcome.latencies_s.append(latency_s)
        outcome.to_first += n == 0
    return outcome


def table() -> Iterator[str]:
    """The lines of the table in the docs."""
    yield "| | strategy | p50 s | p90 s | p99 s | calls to that one |"
    yield "|---|---|---:|---:|---:|---:|"
    for scenario in SCENARIOS:
        for strategy in STRATEGIES:
            outcome = simulate(strategy, scenario.slowness)
            figures = " | ".join(f"{outcome.percentile(share):.2f}" for share in (0.5, 0.9, 0.99))
            yield f"| {scenario.name} | `{strategy}` | {figures} | {outcome.share_of_first:.0%} |"


def _until(ends: list[tuple[float, int, int, Attempt]], at: float) -> Iterator[tuple[float, int, int, Attempt]]:
    while ends and ends[0][0] <= at:
        yield heapq.heappop(ends)


def _move(clock: FakeClock, to: float) -> None:
    clock.advance(max(to - clock.monotonic(), 0.0))


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(table())
    print(lines)
    PAGE.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")
