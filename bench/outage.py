"""An outage, simulated: what upstreams and clients see while a deployment is dead, and when it comes back.

Lives here: the simulation, and the picture of it in the docs (`python -m bench.outage` makes it again). Elsewhere: what must hold (tests/simulations/test_outage.py), made-up time
(hookline.testing.virtual_time).
Idea: the real pipeline with the real plugins, on an event loop whose time is made up: ten thousand calls over minutes take seconds, and a seed gives the same minutes again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hookline import Attempt, Call, Reply, Target, UpstreamError, hookimpl
from hookline.builtins.circuit_breaker import Plugin as CircuitBreaker
from hookline.builtins.fallback import Plugin as Fallback
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer
from hookline.testing.virtual_time import run_in_virtual_time

Death = Literal["errors", "hangs", "rate limits"]

TIMEOUT_S = 5.0
PICTURE = Path(__file__).parent.parent / "docs" / "explanation" / "outage.svg"


@dataclass(slots=True)
class Asked:
    """One attempt."""

    deployment: str
    at_s: float
    is_ok: bool = False


@dataclass(slots=True)
class Served:
    """One call."""

    at_s: float
    took_s: float
    status: int
    attempts: int
    first: str
    """The deployment it was to go to."""


@dataclass(slots=True)
class Outage:
    """What happened. Times are seconds since the begin."""

    began_s: float
    ended_s: float
    calls: list[Served] = field(default_factory=list)
    attempts: list[Asked] = field(default_factory=list)
    opened_until_s: float = 0.0
    """When the dead deployment's circuit was to open again for a probe, as it stood when the outage ended."""


class RoundRobin:
    """Each call begins at the next deployment."""

    _turn = 0

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        self._turn += 1
        first = self._turn % len(targets)
        return targets[first:] + targets[:first]


def simulate(
    *,
    seed: int,
    dead: Sequence[str],
    death: Death,
    plugins: Sequence[type] = (RoundRobin, CircuitBreaker, Fallback),
    calls_per_s: float = 50.0,
    lasts_s: float = 150.0,
    began_s: float = 30.0,
    ended_s: float = 90.0,
    max_retries: int = 2,
) -> Outage:
    """`calls_per_s` at random moments to a model with two deployments, a/m and b/m, of which `dead` are dead from `began_s` to `ended_s`."""
    lot = random.Random(seed)
    outage = Outage(began_s, ended_s)

    async def main(clock: FakeClock) -> None:
        begin_s = clock.monotonic()

        def now_s() -> float:
            return clock.monotonic() - begin_s

        async def send(call: Call, attempt: Attempt) -> Reply:
            asked = Asked(attempt.deployment.id, now_s())
            outage.attempts.append(asked)
            if attempt.deployment.id in dead and began_s <= now_s() < ended_s:
                if death == "errors":
                    await asyncio.sleep(0.05)
                    return answer(b"{}", 500)
                if death == "rate limits":
                    return answer(b"{}", 429, **{"retry-after": "4"})
                await asyncio.sleep(TIMEOUT_S)
                raise UpstreamError("no answer", kind="first_byte_timeout")
            await asyncio.sleep(lot.lognormvariate(-1.2, 0.5))  # a median of 0.3 s
            asked.is_ok = True
            return answer()

        kit = PipelineKit(
            *plugins,
            providers=[_Sending("a", send), _Sending("b", send)],
            deployments={"m": ["a/m", "b/m"]},
            options={"fallback": {"max_retries": max_retries}} if Fallback in plugins else {},
            clock=clock,
        )
        for plugin in kit.chain.plugins:  # every lot is drawn by the seed
            if hasattr(plugin.instance, "_draw"):
                plugin.instance._draw = lot.random

        async def ask() -> None:
            call, at_s = kit.make_call({"model": "m", "messages": []}), now_s()
            delivered = await kit.run(call)
            first = call.attempts[0].deployment.id if call.attempts else ""
            outage.calls.append(Served(at_s, now_s() - at_s, delivered.status, len(call.attempts), first))

        async def watch() -> None:
            await asyncio.sleep(ended_s)
            if CircuitBreaker in plugins and (circuit := kit.plugin(CircuitBreaker)._circuits.get("a/m")) is not None:
                outage.opened_until_s = circuit.open_until - begin_s

        tasks = [asyncio.create_task(watch())]
        while now_s() < lasts_s:
            tasks.append(asyncio.create_task(ask()))
            await asyncio.sleep(lot.expovariate(calls_per_s))
        await asyncio.gather(*tasks)

    run_in_virtual_time(main)
    return outage


class _Sending(ScriptedProvider):
    """Sends by a function."""

    def __init__(self, name: str, send: Any) -> None:
        super().__init__(name=name)
        self._send = send

    async def send(self, call: Call, attempt: Attempt, /) -> Reply:
        reply: Reply = await self._send(call, attempt)
        return reply


def p99(values: Sequence[float]) -> float:
    """The value that 99 of 100 do not exceed; 0 of none."""
    return sorted(values)[int(0.99 * len(values))] if values else 0.0


def render(outages: Sequence[tuple[str, Outage]]) -> str:
    """An SVG: per outage, attempts a second at each deployment and failed calls a second."""
    width, height, left, panel = 860, 30 + 190 * len(outages), 60, 150
    parts = []
    for number, (title, outage) in enumerate(outages):
        top, seconds = 30 + number * 190, int(max(call.at_s for call in outage.calls)) + 1
        lines = {
            ("#0b7a75", "attempts/s at a (dead in the grey time)"): [
                a.at_s for a in outage.attempts if a.deployment == "a/m"
            ],
            ("#8a94a0", "attempts/s at b"): [a.at_s for a in outage.attempts if a.deployment == "b/m"],
            ("#b4532a", "failed calls/s"): [c.at_s for c in outage.calls if c.status >= 400],
        }
        most = 80.0
        step = (width - left - 20) / seconds
        shade = f'x="{left + outage.began_s * step:.1f}" width="{(outage.ended_s - outage.began_s) * step:.1f}"'
        parts.append(f'<text x="{left}" y="{top - 8}" font-weight="bold" fill="#222">{title}</text>')
        parts.append(f'<rect {shade} y="{top}" height="{panel}" fill="#eee"/>')
        for index, ((colour, name), moments) in enumerate(lines.items()):
            counts = [0] * seconds
            for moment in moments:
                counts[min(int(moment), seconds - 1)] += 1
            points = " ".join(
                f"{left + i * step:.1f},{top + panel - min(n / most, 1.0) * panel:.1f}" for i, n in enumerate(counts)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(
                f'<text x="{left + 330 + index * 0}" y="{top + 14 + index * 15}" fill="{colour}">{name}</text>'
            )
        for n in (0, 40, 80):
            y = top + panel - n / most * panel
            parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#222">{n}</text>')
        parts.append(f'<text x="{width - 20}" y="{top + panel + 14}" text-anchor="end" fill="#222">{seconds} s</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def main() -> None:
    """Draw, and print the figures."""
    shown: list[tuple[str, Outage]] = []
    for title, dead, death in (
        ("One of two deployments answers 500", ("a/m",), "errors"),
        ("One of two deployments hangs until its timeout (5 s)", ("a/m",), "hangs"),
        ("Both deployments answer 500", ("a/m", "b/m"), "errors"),
    ):
        outage = simulate(seed=1, dead=dead, death=death)  # type: ignore[arg-type]
        shown.append((title, outage))
        during = [c for c in outage.calls if outage.began_s <= c.at_s < outage.ended_s]
        calls, attempts = len(outage.calls), len(outage.attempts)
        failed = sum(c.status >= 400 for c in during)
        print(
            f"{title}: {calls} calls, {attempts} attempts ({attempts / calls:.3f} a call), {failed} of {len(during)} failed in the outage"
        )
    PICTURE.write_text(render(shown))


if __name__ == "__main__":
    main()
