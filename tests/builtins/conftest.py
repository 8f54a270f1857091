"""What the tests of single plugins stand on: a clock moved by hand, a host that keeps what plugins register and count, calls and attempts made from plain arguments."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from hookline import ENDPOINTS, Attempt, Call, Deployment, Flights, Price, Principal, Result, Target, Usage
from hookline.builtins import budget
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryLimits
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PRICE, PipelineKit, ScriptedProvider


class HandClock:
    """Time that moves only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_795_000_000.0 + self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class CountedMetrics:
    """Every sample by family and labels: counters summed, gauges kept, histograms as the list of what was observed."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.observed: dict[tuple[str, ...], list[float]] = {}

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., Any]:
        return lambda *values: _Child(self, (name, *values))

    gauge = counter

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> Callable[..., Any]:
        return lambda *values: _Child(self, (name, *values))

    def render(self) -> bytes:
        return b"".join(f"{' '.join(key)} {value}\n".encode() for key, value in self.values.items())


class _Child:
    def __init__(self, metrics: CountedMetrics, key: tuple[str, ...]) -> None:
        self._metrics, self._key = metrics, key

    def inc(self, amount: float = 1) -> None:
        self._metrics.values[self._key] = self._metrics.values.get(self._key, 0) + amount

    def set(self, value: float) -> None:
        self._metrics.values[self._key] = value

    def observe(self, amount: float) -> None:
        self._metrics.observed.setdefault(self._key, []).append(amount)


class DictReplies:
    """A reply store without bounds, whose entries expire by the hand clock."""

    def __init__(self, clock: HandClock) -> None:
        self._clock = clock
        self.entries: dict[bytes, tuple[bytes, float, tuple[str, ...]]] = {}

    async def get(self, key: bytes) -> bytes | None:
        value, expires_at, _ = self.entries.get(key, (None, 0.0, ()))
        return value if expires_at > self._clock.monotonic() else None

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [await self.get(key) for key in keys]

    def put_many(self, entries: dict[bytes, bytes], *, ttl_s: float, tags: Sequence[str] = ()) -> None:
        for key, value in entries.items():
            self.put(key, value, ttl_s=ttl_s, tags=tags)

    async def delete(self, keys: Sequence[bytes]) -> int:
        return sum(self.entries.pop(key, None) is not None for key in keys)

    def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> None:
        self.entries[key] = (value, self._clock.monotonic() + ttl_s, tuple(tags))

    async def delete_tagged(self, tag: str) -> int:
        gone = [key for key, (_, _, tags) in self.entries.items() if tag in tags]
        for key in gone:
            del self.entries[key]
        return len(gone)

    async def aclose(self) -> None:
        self.entries.clear()


class PluginHost:
    """What one plugin is given, made of the parts above."""

    def __init__(self, clock: HandClock, options_by_model: dict[str, Any], settings: dict[str, Any]) -> None:
        self.plugin = "under_test"
        self.clock = clock
        self.metrics = CountedMetrics()
        self.limits = None
        self.replies = DictReplies(clock)
        self.flights = Flights(None, clock)
        self.offers: dict[Any, Any] = {}
        self.log = logging.getLogger("hookline.under_test")
        self.options_by_model = options_by_model
        self.settings = {"tenants": {}, "users": {}, "global": {}, "server": {}, "models": [], **settings}
        self.spawned: list[Coroutine[Any, Any, Any]] = []

    def describe(self) -> dict[str, Any]:
        return {}

    def spawn(self, name: str, coro: Coroutine[Any, Any, Any]) -> None:
        self.spawned.append(coro)

    async def finish_spawned(self) -> None:
        """Run what the plugin started in the background, to its end."""
        while self.spawned:
            await self.spawned.pop(0)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def make_host(clock: HandClock) -> Callable[..., Any]:
    def make(*, options_by_model: dict[str, Any] | None = None, **settings: Any) -> PluginHost:
        return PluginHost(clock, options_by_model or {}, settings)

    return make


@pytest.fixture
def make_call(clock: HandClock) -> Callable[..., Call]:
    """`make_call({"model": "m", ...}, path="/v1/embeddings", headers={...})`: loaded and frozen, as hooks 3-12 see it."""

    def make(
        payload: dict[str, Any] | None = None,
        *,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        query: str = "",
        headers: dict[str, str] | None = None,
        principal: Principal | None = None,
        id: str = "call-1",
    ) -> Call:
        call = Call(
            id=id,
            method=method,
            path=path,
            query=query,
            endpoint=ENDPOINTS.get(path, "relay") if method == "POST" else "relay",
            headers=CIMultiDict(headers or {}),
            started_at=clock.monotonic(),
            started_time=clock.time(),
            principal=principal,
        )
        if payload is not None:
            call.set_json(orjson.dumps(payload), payload)
        call.freeze()
        return call

    return make


@pytest.fixture
def make_attempt(clock: HandClock) -> Callable[..., Attempt]:
    """`make_attempt("up/m", error=..., latency_s=0.2)`: an ended attempt, ok unless there is an error."""

    def make(
        deployment: str | Deployment = "up/m",
        *,
        error: Any = None,
        usage: Usage | None = None,
        latency_s: float = 0.0,
        status: int | None = None,
    ) -> Attempt:
        if isinstance(deployment, str):
            provider, _, model = deployment.partition("/")
            deployment = Deployment(deployment, provider, model)
        attempt = Attempt(Target(deployment), 1, clock.monotonic())
        attempt.ended_at = clock.monotonic() + latency_s
        attempt.error, attempt.usage = error, usage
        attempt.is_complete = error is None
        attempt.status = status or (getattr(error, "upstream_status", None) if error else 200)
        return attempt

    return make


@pytest.fixture
def make_result(clock: HandClock) -> Callable[..., Result]:
    """`make_result(attempt, cost_nanousd=5)`: the Result of a call that ended with this attempt."""

    def make(attempt: Attempt | None = None, **changes: Any) -> Result:
        error = attempt.error if attempt is not None else None
        fields: dict[str, Any] = {
            "outcome": "ok" if error is None else "upstream_error",
            "attempt": attempt,
            "status": 200 if error is None else error.reply_status,
            "usage": attempt.usage if attempt is not None else None,
            "error": error,
            "ended_at": attempt.ended_at if attempt is not None else clock.monotonic(),
        }
        return Result(**{**fields, **changes})

    return make


@pytest.fixture
async def make_kit(tmp_path: Path) -> AsyncIterator[Callable[..., PipelineKit]]:
    """The budget plugin in the real pipeline, on the memory store and one SQLite ledger; what is not named goes to `host.settings`."""
    records: list[SqliteRecords] = []

    def make(
        *,
        options: dict[str, Any] | None = None,
        price: Price | None = PRICE,
        provider: Any = None,
        limits: MemoryLimits | None = None,
        clock: FakeClock | None = None,
        plugins: Sequence[type] = (),
        **settings: Any,
    ) -> PipelineKit:
        clock = clock or FakeClock()
        records.append(SqliteRecords(tmp_path / "ledger.db"))
        return PipelineKit(
            *plugins,
            budget.Plugin,
            providers=[provider or ScriptedProvider()],
            options={"budget": options or {}},
            price=price,
            stores=Stores(limits or MemoryLimits(clock), None, records[-1]),  # type: ignore[arg-type]
            host_settings={"tenants": {}, "users": {}, "global": {}, "server": {}, "models": [], **settings},
            clock=clock,
        )

    yield make
    for record in records:
        await record.aclose()
