"""One measurement of one running contender: load on, CPU before and after, memory, what the upstream saw.

Lives here: `Standing` (a started contender), `Sample` (the figures of one round), one function per kind of scenario.
Elsewhere: /proc (processes.py), wrk (load.py), checked streams (streams.py), medians and ratios (report.py).
Idea: a figure counts only if the upstream saw the same calls: a proxy that answers from a cache, or asks twice, is marked."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import orjson
import uvloop

from bench.load import Aim, Calls, LoadError, run_wrk
from bench.processes import Process, read_cpu_s, read_rss_mib
from bench.scenarios import Kind, Scenario
from bench.streams import Door, Tally, hold_streams, percentile, read_stream
from bench.upstream import CHAT, ID_BYTES, Script

_PROBE_CHUNKS = 20
_IDLE_LIMIT_S = 15.0
_OPEN_RATE_PER_S = 400.0
_MEMORY_SLICE_S = 2
_MEMORY_LIMIT_S = 60.0


class NotReady(Exception):
    """A contender did not answer correctly in time."""


@dataclass(slots=True)
class Sample:
    """One round. `cpu_s` and `rss_mib` are None where there is no process to look at."""

    calls: int
    seconds: float
    errors: int = 0
    served: int = 0
    """Calls that the upstream saw: `calls` and those under way when the load ended. CPU is divided by it."""
    chunks: int = 0
    """Stream events that the upstream sent."""
    cpu_s: float | None = None
    rss_mib: float | None = None
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    problems: dict[str, int] = field(default_factory=dict)
    open_most: int = 0
    rss_series: list[tuple[int, float]] = field(default_factory=list)
    """Kind MEMORY: calls so far, MiB."""


@dataclass(slots=True)
class UpstreamControl:
    """The scripted upstream, seen from outside its process."""

    port: int

    def set_script(self, script: Script) -> None:
        """Raises OSError when the upstream is gone."""
        body = {"chunks": script.chunks, "pause_ms": script.pause_ms, "delay_ms": script.delay_ms}
        self._ask("POST", orjson.dumps(body))

    def read_counts(self) -> Mapping[str, int]:
        """Raises OSError when the upstream is gone."""
        counts: dict[str, int] = orjson.loads(self._ask("GET", None))
        return counts

    def _ask(self, method: str, body: bytes | None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, "/bench/", body)
            return connection.getresponse().read()
        finally:
            connection.close()


@dataclass(slots=True)
class Standing:
    """A started contender. `process` is None for the upstream itself and for servers somebody else runs."""

    name: str
    aim: Aim
    door: Door | None
    process: Process | None
    upstream: UpstreamControl | None
    load_core: int | None

    @property
    def cpu_s(self) -> float | None:
        return read_cpu_s(self.process.pid) if self.process else None

    @property
    def rss_mib(self) -> float | None:
        return read_rss_mib(self.process.pid) if self.process else None


def wait_until_right(standing: Standing, *, limit_s: float) -> None:
    """Returns when a call and a stream came back as the upstream sent them. Raises NotReady saying what was wrong."""
    assert standing.door is not None
    assert standing.upstream is not None
    standing.upstream.set_script(Script(chunks=_PROBE_CHUNKS, pause_ms=5))
    end = time.monotonic() + limit_s
    while (problem := _find_problem(standing.door)) is not None:
        if standing.process is not None and not standing.process.is_running:
            raise NotReady(f"{standing.name} ended: {standing.process.tail}")
        if time.monotonic() > end:
            tail = standing.process.tail if standing.process else ""
            raise NotReady(f"{standing.name} is not right after {limit_s:.0f} s: {problem}\n{tail}")
        time.sleep(0.2)


def _find_problem(door: Door) -> str | None:
    try:
        reply = _call(door)
        if reply != CHAT.partition(b"\r\n\r\n")[2] and not _says_the_same(reply):
            return f"a call was answered {reply[:300]!r}"
    except (OSError, http.client.HTTPException) as error:
        return f"a call failed: {error!r}"
    stream = asyncio.run(read_stream(door, "s" * ID_BYTES, events=_PROBE_CHUNKS, timeout_s=15))
    return f"a stream: {stream.problem}" if stream.problem else None


def _call(door: Door) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=15)
    try:
        head, _, body = door.build_request("p" * ID_BYTES, stream=False).partition(b"\r\n\r\n")
        names = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
        connection.request("POST", door.path, body, names)
        return connection.getresponse().read()
    finally:
        connection.close()


def _says_the_same(reply: bytes) -> bool:
    """Some proxies write the JSON anew; the answer must be the same."""
    try:
        seen, sent = orjson.loads(reply), orjson.loads(CHAT.partition(b"\r\n\r\n")[2])
        return bool(seen["choices"][0]["message"]["content"] == sent["choices"][0]["message"]["content"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return False


def measure(standing: Standing, scenario: Scenario, *, seconds: int) -> Sample:
    """In: a contender and what to ask of it. Out: one round's figures. Raises LoadError when the load could not be made."""
    if standing.upstream is not None:
        standing.upstream.set_script(Script(chunks=scenario.chunks, pause_ms=scenario.pause_ms))
    sample = _BY_KIND[scenario.kind](standing, scenario, seconds)
    if standing.process is not None and not standing.process.is_running:
        raise LoadError(f"{standing.name} ended under load: {standing.process.tail}")
    return sample


def warm_up(standing: Standing, scenario: Scenario, *, seconds: int) -> None:
    """Load that is not counted. Raises LoadError."""
    if standing.upstream is not None:
        standing.upstream.set_script(Script(chunks=scenario.chunks, pause_ms=scenario.pause_ms))
    _load(standing, scenario, seconds)
    _rest(standing)


def _rest(standing: Standing) -> None:
    if standing.process is not None:
        standing.process.wait_idle(limit_s=_IDLE_LIMIT_S)


def _load(standing: Standing, scenario: Scenario, seconds: int) -> Calls:
    return run_wrk(
        standing.aim,
        connections=scenario.connections,
        seconds=seconds,
        core=standing.load_core,
        stream=scenario.is_stream,
        prompt_bytes=scenario.prompt_bytes,
    )


def _measure_load(standing: Standing, scenario: Scenario, seconds: int) -> Sample:
    counts = standing.upstream.read_counts() if standing.upstream else None
    cpu_s = standing.cpu_s
    seen = _load(standing, scenario, seconds)
    _rest(standing)  # calls that wrk left behind and rows written afterwards cost CPU too
    sample = Sample(
        calls=seen.calls,
        seconds=seen.seconds,
        errors=seen.errors,
        served=seen.calls,
        chunks=seen.calls * scenario.chunks,
        cpu_s=_spent(standing, cpu_s),
        rss_mib=standing.rss_mib,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
        problems={"failed calls": seen.errors} if seen.errors else {},
    )
    if standing.upstream is not None and counts is not None:
        after = standing.upstream.read_counts()
        sample.served = after["calls"] - counts["calls"]
        if scenario.is_stream:
            sample.chunks = after["events"] - counts["events"]
        # The slack: calls under way when wrk ended, or that it gave up.
        if abs(sample.served - sample.calls) > scenario.connections + sample.errors + sample.calls // 100:
            sample.problems[f"upstream saw {sample.served} of {sample.calls} calls"] = 1
            sample.errors += 1
    return sample


def _spent(standing: Standing, before_s: float | None) -> float | None:
    after_s = standing.cpu_s
    return None if after_s is None or before_s is None else after_s - before_s


def _measure_open(standing: Standing, scenario: Scenario, seconds: int) -> Sample:
    assert standing.door is not None
    cpu_s, started_at = standing.cpu_s, time.monotonic()
    tally, most_mib = uvloop.run(_hold_and_watch(standing, standing.door, scenario))
    return Sample(
        calls=tally.streams,
        served=tally.streams,
        seconds=time.monotonic() - started_at,
        errors=tally.errors,
        chunks=tally.events,
        cpu_s=_spent(standing, cpu_s),
        rss_mib=most_mib if standing.process else None,
        p50_ms=percentile(tally.first_event_s, 50) * 1000,
        p99_ms=percentile(tally.first_event_s, 99) * 1000,
        problems=tally.problems,
        open_most=tally.open_most,
    )


async def _hold_and_watch(standing: Standing, door: Door, scenario: Scenario) -> tuple[Tally, float]:
    lasts_s = scenario.connections / _OPEN_RATE_PER_S + scenario.chunks * scenario.pause_ms / 1000
    most_mib = 0.0

    async def watch_memory() -> None:
        nonlocal most_mib
        while True:
            most_mib = max(most_mib, standing.rss_mib or 0.0)
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch_memory())
    try:
        tally = await hold_streams(
            door,
            streams=scenario.connections,
            events=scenario.chunks,
            per_s=_OPEN_RATE_PER_S,
            timeout_s=lasts_s + 30,
        )
    finally:
        watcher.cancel()
    return tally, most_mib


def _measure_memory(standing: Standing, scenario: Scenario, seconds: int) -> Sample:
    sample = Sample(calls=0, seconds=0.0, rss_mib=standing.rss_mib)
    started_at, cpu_s = time.monotonic(), standing.cpu_s
    while sample.calls < scenario.calls and time.monotonic() - started_at < _MEMORY_LIMIT_S:
        seen = _load(standing, scenario, _MEMORY_SLICE_S)
        sample.calls += seen.calls
        sample.seconds += seen.seconds
        sample.errors += seen.errors
        if (rss_mib := standing.rss_mib) is not None:
            sample.rss_mib = rss_mib
            sample.rss_series.append((sample.calls, round(rss_mib, 1)))
    _rest(standing)
    sample.cpu_s, sample.served = _spent(standing, cpu_s), sample.calls
    return sample


_BY_KIND: dict[Kind, Callable[[Standing, Scenario, int], Sample]] = {
    Kind.LOAD: _measure_load,
    Kind.OPEN: _measure_open,
    Kind.MEMORY: _measure_memory,
}
