"""The breaker where calls are hedged, wait for a 429, or are given up: what a deployment is judged by then. The real pipeline in made-up time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hookline import Reply, UpstreamError
from hookline.builtins.circuit_breaker import Plugin as Breaker
from hookline.builtins.circuit_breaker.votes import vote_of
from hookline.builtins.fallback import Plugin as Fallback
from hookline.builtins.hedging import Plugin as Hedging
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryLimits
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer
from hookline.testing.virtual_time import run_in_virtual_time

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class World:
    """Model "m" at "one", then at "other". `one` answers `status` after `one_s`; `other` is well, and answers after 0.1 s."""

    def __init__(self, clock: Any, *plugins: type, first: str = "one", alone: bool = False, **options: Any) -> None:
        self.clock, self.status, self.one_s, self.headers = clock, 200, 0.0, dict[str, str]()
        self.fails_with: str | None = None
        breaker = {"consecutive_failures": 2, "open_s": 10.0, "jitter": 0.0, "min_votes": 4}
        names = ["one/m"] if alone else ["one/m", "other/m"] if first == "one" else ["other/m", "one/m"]
        self.kit = PipelineKit(
            *(plugins or (Breaker, Hedging, Fallback)),
            providers=[ScriptedProvider(self._one, name="one"), ScriptedProvider(self._other, name="other")],
            deployments={"m": names},
            options={
                "circuit_breaker": {**breaker, **options.get("circuit_breaker", {})},
                "hedging": {"percentile": 0, "after_s": 0.5, "budget": 1.0, **options.get("hedging", {})},
                "fallback": options.get("fallback", {}),
            },
            stores=Stores(MemoryLimits(clock), None, None),
            clock=clock,
        )

    async def _one(self, call: Any, attempt: Any) -> Reply:
        await asyncio.sleep(self.one_s)
        if self.fails_with is not None:
            raise UpstreamError("it failed", kind=self.fails_with)
        return answer() if self.status == 200 else answer(b"{}", self.status, **self.headers)

    async def _other(self, call: Any, attempt: Any) -> Reply:
        await asyncio.sleep(0.1)
        return answer()

    async def ask(self, **headers: str) -> str:
        """Who answered, after how many attempts."""
        delivered = await self.kit.call(ASKED, headers=headers)
        return f"{delivered.headers['x-hookline-deployment']} {delivered.headers['x-hookline-attempts']}"

    async def open(self) -> None:
        """Two failures of "one", then it answers again, after `one_s`, and the time open is over."""
        self.status, one_s, self.one_s = 500, self.one_s, 0.0
        for _ in range(2):
            await self.kit.call(ASKED)
        assert self.state == "open"
        self.status, self.one_s = 200, one_s
        self.clock.advance(10.0)

    @property
    def state(self) -> str:
        return self.kit.plugin(Breaker)._circuits["one/m"].state


def run(main: Callable[..., Awaitable[Any]]) -> Any:
    return run_in_virtual_time(main)


def test_a_deployment_slower_than_the_hedge_delay_closes_its_circuit() -> None:
    async def main(clock: Any) -> tuple[list[str], str]:
        world = World(clock)
        world.one_s = 2.0
        await world.open()
        return [await world.ask(), await world.ask()], world.state

    (probe, later), state = run(main)

    assert probe == "one/m 1", "the probe is heard to its end"
    assert state == "closed"
    assert later == "other/m 2", "a healthy circuit's calls are hedged again"


@pytest.mark.parametrize(("slow_call_s", "patience_s"), [(1.5, 1.5), (None, 10.0)])
def test_a_probe_is_hedged_once_its_patience_is_over_and_opens_the_circuit_again(
    slow_call_s: float | None, patience_s: float
) -> None:
    """It hangs: without the hedge its client would wait for the first byte's timeout, and without the vote so would the next one's."""

    async def main(clock: Any) -> tuple[str, float, str]:
        world = World(clock, circuit_breaker={"slow_call_s": slow_call_s})
        world.one_s = 60.0
        await world.open()
        began = clock.monotonic()
        return await world.ask(), clock.monotonic() - began, world.state

    answered, took_s, state = run(main)

    assert answered == "other/m 2"
    assert took_s == pytest.approx(patience_s + 0.1, abs=0.01)
    assert state == "open"


@pytest.mark.parametrize(("patience_s", "state"), [(2.0, "half_open"), (15.0, "open")])
def test_a_probe_that_its_client_gave_up_after_the_patience_has_failed(patience_s: float, state: str) -> None:
    """Else each client in turn would wait for a deployment that hangs; one that left early says nothing."""

    async def main(clock: Any) -> str:
        world = World(clock, Breaker, Fallback)
        world.one_s = 60.0
        await world.open()
        running = world.kit.start(world.kit.make_call(ASKED))
        await asyncio.sleep(patience_s)
        running.leave()
        await running.done()
        return world.state

    assert run(main) == state


def test_a_hedge_is_no_probe() -> None:
    async def main(clock: Any) -> tuple[list[str], str]:
        world = World(clock, first="one")
        await world.open()
        swapped = World(clock, first="other", hedging={"after_s": 0.0})
        swapped.kit.plugin(Breaker)._circuits.update(world.kit.plugin(Breaker)._circuits)
        return [await swapped.ask(), await swapped.ask()], swapped.state

    answered, state = run(main)

    assert answered == ["other/m 1"] * 2
    assert state == "open"


def test_who_loses_every_race_late_is_seen_as_slow() -> None:
    async def main(clock: Any) -> tuple[list[str], str, str]:
        world = World(clock, circuit_breaker={"slow_call_s": 0.4})
        world.one_s = 60.0
        answered = [await world.ask() for _ in range(5)]
        circuit = world.kit.plugin(Breaker)._circuits["one/m"]
        return answered, circuit.state, circuit.why

    answered, state, why = run(main)

    assert answered == ["other/m 2"] * 4 + ["other/m 1"]
    assert (state, why) == ("open", "slow_calls")


@pytest.mark.parametrize(
    ("how", "waited_s", "vote"),
    [
        ("loser", 1.9, None),
        ("loser", 2.1, "slow"),
        ("client gone", 1.9, None),
        ("client gone", 2.1, "slow"),
        ("deadline", 1.9, None),
        ("deadline", 2.1, "slow"),
        ("pool", 2.1, None),
        ("refused request", 2.1, None),
    ],
)
def test_late_is_late_whoever_ended_it(
    make_call: Any, make_attempt: Any, how: str, waited_s: float, vote: str | None
) -> None:
    attempt = make_attempt(latency_s=waited_s)
    attempt.is_complete = False
    attempt.is_loser = how == "loser"
    errors = {
        "deadline": UpstreamError("x", kind="deadline"),
        "pool": UpstreamError("x", kind="pool_timeout"),
        "refused request": UpstreamError("x", kind="status", upstream_status=400),
    }
    attempt.error = errors.get(how)

    assert vote_of(make_call({"model": "m"}), attempt, 2.0) == vote
    assert vote_of(make_call({"model": "m"}), attempt, None) is None


def test_a_slow_success_ends_a_row_of_failures() -> None:
    async def main(clock: Any) -> tuple[int, str]:
        world = World(clock, Breaker, Fallback, circuit_breaker={"slow_call_s": 1.0, "slow_call_rate": 1.0})
        world.one_s = 2.0
        for world.status in (500, 200, 500, 200):
            await world.ask()
        circuit = world.kit.plugin(Breaker)._circuits["one/m"]
        return circuit.failures_in_row, circuit.state

    assert run(main) == (0, "closed")


def test_all_who_waited_as_a_429_said_go_back_when_it_is_time() -> None:
    """Ten at once, one deployment: each was told 1 s, none at quite the same moment. One of them is the probe; the others have waited as well."""

    async def main(clock: Any) -> list[str]:
        world = World(clock, Breaker, Fallback, alone=True, fallback={"max_retries": 2})
        world.status, world.headers = 429, {"retry-after": "1"}

        async def one(number: int) -> str:
            await asyncio.sleep(number * 0.02)
            return await world.ask()

        calls = [asyncio.ensure_future(one(number)) for number in range(10)]
        await asyncio.sleep(0.5)
        world.status, world.one_s = 200, 5.0
        answered = await asyncio.gather(*calls)
        return [*answered, world.state]

    assert run(main) == ["one/m 2"] * 10 + ["closed"]


def test_who_has_waited_less_than_the_latest_429_says_does_not_go_back() -> None:
    async def main(clock: Any) -> tuple[str, int, int]:
        world = World(clock, Breaker, Fallback, alone=True, fallback={"max_retries": 2})
        world.status, world.headers = 429, {"retry-after": "1"}
        first = asyncio.ensure_future(world.kit.call(ASKED))
        await asyncio.sleep(0.2)
        world.headers = {"retry-after": "9"}
        other = asyncio.ensure_future(world.kit.call(ASKED, headers={"x-stainless-retry-count": "9"}))
        await asyncio.sleep(0.2)
        world.status = 200
        delivered = [await first, await other]
        return world.state, *(one.status for one in delivered)

    assert run(main) == ("open", 429, 429)


def test_what_was_forced_through_in_a_panic_is_not_asked_twice() -> None:
    async def main(clock: Any) -> tuple[list[str], float]:
        world = World(clock, Breaker, Fallback, alone=True, fallback={"max_retries": 2, "backoff_s": 0.1})
        world.status = 500
        answered = [await world.ask()]
        began = clock.monotonic()
        answered += [await world.ask() for _ in range(3)]
        return answered, clock.monotonic() - began

    assert run(main) == (["one/m 2", "one/m 1", "one/m 1", "one/m 1"], 0.0)  # and none of them waits for nothing


@pytest.mark.parametrize("kind", ["total_timeout", "throughput_timeout"])
def test_a_reply_that_takes_too_long_as_a_whole_is_a_failure_that_falls_back(kind: str) -> None:
    async def main(clock: Any) -> tuple[list[str], str]:
        world = World(clock, Breaker, Fallback)
        world.fails_with = kind
        return [await world.ask() for _ in range(3)], world.state

    answered, state = run(main)

    assert answered == ["other/m 2", "other/m 2", "other/m 1"]
    assert state == "open"
