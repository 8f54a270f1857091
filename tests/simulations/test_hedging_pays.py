"""Hedging in made-up time: 2,000 calls on two deployments with a long tail each, the real pipeline, a seed."""

from __future__ import annotations

import asyncio
import random
from statistics import mean
from typing import Any

import pytest

from hookline import Attempt, Call, Reply
from hookline.builtins import fallback, hedging
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer
from hookline.testing.virtual_time import run_in_virtual_time

CALLS = 2_000
CALLS_PER_S = 20.0


def simulate(*, slow_share: float, options: dict[str, Any] | None, seed: int = 7) -> tuple[list[float], int]:
    """(sorted latencies in seconds, attempts). A first byte takes 0.4 to 0.6 s, and 5 s in `slow_share` of the attempts."""

    async def main(clock: FakeClock) -> tuple[list[float], int]:
        draw = random.Random(seed)

        async def send(call: Call, attempt: Attempt) -> Reply:
            is_slow = draw.random() < slow_share
            await asyncio.sleep(5.0 if is_slow else draw.uniform(0.4, 0.6))
            return answer()

        provider = ScriptedProvider(send)
        plugins = [fallback.Plugin] if options is None else [hedging.Plugin, fallback.Plugin]
        kit = PipelineKit(
            *plugins,
            providers=[provider],
            deployments={"m": ["up/1", "up/2"]},
            options={"hedging": options or {}},
            clock=clock,
        )

        async def one() -> float:
            started_at = clock.monotonic()
            assert (await kit.call({"model": "m", "messages": []})).status == 200
            return clock.monotonic() - started_at

        tasks = []
        for _ in range(CALLS):
            tasks.append(asyncio.ensure_future(one()))
            await asyncio.sleep(draw.expovariate(CALLS_PER_S))
        return sorted(await asyncio.gather(*tasks)), len(provider.sent)

    return run_in_virtual_time(main)


def p(latencies: list[float], share: float) -> float:
    return latencies[int(share * len(latencies))]


def test_hedging_cuts_the_tail_for_less_than_its_budget() -> None:
    """The figures of docs/howto/hedging.md."""
    plain, plain_attempts = simulate(slow_share=0.03, options=None)
    hedged, hedged_attempts = simulate(slow_share=0.03, options={})

    print(f"\np50 {p(plain, 0.5):.2f} -> {p(hedged, 0.5):.2f}, p98 {p(plain, 0.98):.2f} -> {p(hedged, 0.98):.2f}, ")
    print(f"p99 {p(plain, 0.99):.2f} -> {p(hedged, 0.99):.2f} s, mean {mean(plain):.3f} -> {mean(hedged):.3f}, ")
    print(f"attempts {plain_attempts} -> {hedged_attempts}")
    assert plain_attempts == CALLS
    assert hedged_attempts <= CALLS * 1.05 + hedging.TOKENS_MAX
    assert p(plain, 0.99) == pytest.approx(5.0)
    assert p(hedged, 0.99) < 1.5


def test_when_everything_is_slow_hedges_stay_within_their_budget() -> None:
    """An outage must not double the load on what is left."""
    latencies, attempts = simulate(slow_share=0.6, options={"percentile": 0, "after_s": 1.0})

    assert attempts <= CALLS * 1.05 + hedging.TOKENS_MAX
    assert attempts > CALLS * 1.04
    assert p(latencies, 0.99) == pytest.approx(5.0)
