"""Whatever is asked in whatever order, Redis decides as memory does."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from hookline.stores.memory import MemoryLimits
from hookline.stores.protocols import Refusal, Spend, Take
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_limits import RedisLimits
from hookline.testing.clock import FakeClock
from hookline.testing.redis import RedisServer
from hookline.testing.store_contracts import done

NEVER = float("inf")
TAKES = (
    Take("a/requests", 12, 60.0),
    Take("a/tokens", 100, 60.0),
    Take("b/parallel", 4, 0.0),
    Take("b/day", 90, 600.0),
)
SPENDS = (
    Spend("a/total", 300, NEVER, alert_nanousd=200),
    Spend("a/soft", 50, NEVER, is_hard=False, alert_nanousd=40),
    Spend("b/rolling", 120, NEVER, window_s=600.0, alert_nanousd=90),
)
some_takes = st.lists(st.sampled_from(range(len(TAKES))), min_size=1, unique=True)
some_spends = st.lists(st.sampled_from(range(len(SPENDS))), min_size=1, unique=True)
LONG_S = 1e6
"""Nothing expires here: when an expired hold ends is up to each store, and has tests of its own."""


def near(one, other) -> bool:
    """Equal, but for the microseconds that Redis rounds to."""
    if isinstance(one, float) or isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-4) or one == other
    if isinstance(one, (tuple, list)) and not isinstance(one, (Take, Spend)):
        return type(one) is type(other) and len(one) == len(other) and all(map(near, one, other))
    return bool(one == other)


def make_machine(url: str) -> type[RuleBasedStateMachine]:
    class Both(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.clock, self.runner = FakeClock(), asyncio.Runner()
            self.memory = MemoryLimits(self.clock)
            self.runner.run(self.forget())
            self.redis = RedisLimits(RedisClient(url + "?leases=0"), self.clock)
            self.names = 0
            self.holds: dict[str, list[int]] = {}
            self.reserved: list[str] = []

        async def forget(self) -> None:
            client = RedisClient(url)
            await client.send("FLUSHALL")
            await client.aclose()

        def teardown(self) -> None:
            self.runner.run(self.redis.aclose())
            self.runner.close()

        def ask(self, method: str, *arguments, **named):
            async def both():
                return [await done(getattr(store, method)(*arguments, **named)) for store in (self.memory, self.redis)]

            expected, actual = self.runner.run(both())
            if isinstance(expected, tuple) and not hasattr(expected, "_fields"):
                expected = list(expected)
            if isinstance(actual, tuple) and not hasattr(actual, "_fields"):
                actual = list(actual)
            assert near(expected, actual), f"{method}: memory {expected}, redis {actual}"
            return expected

        def name(self) -> str:
            self.names += 1
            return f"id{self.names}"

        @rule(chosen=some_takes, size=st.integers(0, 3))
        def take(self, chosen, size):
            name = self.name()
            amounts = [size if TAKES[i].window_s == 0 or i == 0 else size * 9 for i in chosen]
            answer = self.ask("take", name, [TAKES[i] for i in chosen], amounts, expires_s=LONG_S)
            if not isinstance(answer, Refusal):
                self.holds[name] = amounts

        @rule(data=st.data())
        def give_back(self, data):
            if self.holds:
                name = data.draw(st.sampled_from(sorted(self.holds)))
                amounts = [data.draw(st.integers(0, 2 * amount)) for amount in self.holds.pop(name)]
                self.ask("give_back", name, amounts)

        @rule(chosen=some_spends, amount=st.integers(0, 60))
        def reserve(self, chosen, amount):
            name = self.name()
            if self.ask("reserve", name, [SPENDS[i] for i in chosen], amount, expires_s=LONG_S) is None:
                self.reserved.append(name)

        @rule(data=st.data(), amount=st.integers(0, 70))
        def settle(self, data, amount):
            if self.reserved:
                name = data.draw(st.sampled_from(self.reserved))
                self.ask("settle", name, amount)

        @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 9.0, 58.5, 59.0, 59.5, 540.0, 599.0]))
        def advance(self, seconds):
            self.clock.advance(seconds)

        @rule(
            gaps=st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.25]), max_size=4),
            pause_s=st.sampled_from([57.5, 59.0, 59.5]),
        )
        def ripple(self, gaps, pause_s):
            """Takes close together, and one when some of them leave: which of them share an entry shows."""
            for gap_s in (*gaps, pause_s):
                self.take(chosen=[0, 1], size=1)
                self.clock.advance(gap_s)
            self.take(chosen=[0, 1], size=3)

        @rule()
        def held(self):
            self.ask("held", [spend.window for spend in SPENDS])

    return Both


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_decides_as_memory_does(redis_server):
    run_state_machine_as_test(
        make_machine(redis_server.url),
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
