"""Bounds in seconds, measured on a running `hookline`: one function each, a table of pass and fail, exit code 1 on a miss.

Lives here: everything whose promise is a time. Elsewhere: that the event happens at all, clock or not (tests/), cost and rate (run.py).
Idea: a bound is an async function from a `World` (a scripted upstream in this process, a way to start gateways) to seconds,
with the limit in its decorator; a new one is a new function. The median of its rounds counts.

Run: python -m bench.slo [--only NAME]"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import aiohttp

from bench.contenders import Site, prepare_hookline
from bench.installs import REPO, WORK
from bench.overload import SERVICE_S, call_at, upstream_with_places
from bench.processes import Process, choose_cores, find_free_port
from bench.streams import Door, read_stream
from bench.upstream import ID_BYTES, Script, Upstream
from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer

_HOOKLINE = Path(sys.executable).with_name("hookline")
_USER = "s" * ID_BYTES
_GIVE_UP_S = 20.0


class Broken(Exception):
    """What should have been timed did not happen."""


@dataclass(slots=True)
class Gateway:
    process: Process
    door: Door
    config: Path
    ready_s: float
    """From the spawn to the first 200 of /healthz."""


@dataclass(slots=True)
class World:
    upstream: Upstream
    upstream_port: int

    @contextlib.asynccontextmanager
    async def gateway(self, config: str = "bare.toml") -> AsyncIterator[Gateway]:
        """In: a file of bench/. Yields a running gateway; ends it afterwards. Raises Broken when it does not get ready."""
        WORK.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="slo-", dir=WORK))
        site = Site(find_free_port(), self.upstream_port, folder)
        launch = prepare_hookline(config, _HOOKLINE, REPO)(site)
        assert launch.argv is not None
        process = Process(launch.argv, core=choose_cores()[0], env=launch.env, cwd=folder)
        try:
            ready_s = await _wait_until_ready(process, site.port)
            yield Gateway(process, Door(site.port), folder / config, ready_s)
        finally:
            await asyncio.to_thread(process.stop)
            shutil.rmtree(folder, ignore_errors=True)


Measure = Callable[[World], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Bound:
    name: str
    limit_s: float
    rounds: int
    measure: Measure


BOUNDS: list[Bound] = []


def bound(name: str, limit_s: float, *, rounds: int = 3) -> Callable[[Measure], Measure]:
    """Registers a measurement. In: what is promised, in how many seconds, how often it is tried."""

    def register(measure: Measure) -> Measure:
        BOUNDS.append(Bound(name, limit_s, rounds, measure))
        return measure

    return register


@bound("`hookline --help` answers", 0.4, rounds=5)
async def time_help(world: World) -> float:
    started_at = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        str(_HOOKLINE), "--help", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    took_s = time.monotonic() - started_at
    if process.returncode != 0:
        raise Broken(f"exit code {process.returncode}: {errors.decode(errors='replace')[-300:]}")
    return took_s


@bound("`hookline serve` is ready, no plugins", 1.5)
async def time_ready_bare(world: World) -> float:
    async with world.gateway("bare.toml") as gateway:
        return gateway.ready_s


@bound("`hookline serve` is ready, all nine plugins", 1.5)
async def time_ready_full(world: World) -> float:
    async with world.gateway("full.toml") as gateway:
        return gateway.ready_s


@bound("a client leaves its stream: the upstream call ends", 1.0)
async def time_stream_cancel(world: World) -> float:
    return await _time_cancel(world, Script(chunks=10_000, pause_ms=20), stream=True)


@bound("a client leaves before a stream's first byte: the upstream call ends", 1.0)
async def time_silent_stream_cancel(world: World) -> float:
    return await _time_cancel(world, Script(chunks=10, delay_ms=60_000), stream=True)


@bound("a client leaves a call that is not streamed: the upstream call ends", 1.0)
async def time_call_cancel(world: World) -> float:
    return await _time_cancel(world, Script(delay_ms=60_000), stream=False)


@bound("SIGTERM without calls: the process ends", 1.0)
async def time_idle_stop(world: World) -> float:
    async with world.gateway() as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        return await _time_end(gateway.process)


@bound("SIGTERM during a stream: it is delivered whole, then the process ends", 1.0)
async def time_drain(world: World) -> float:
    world.upstream.script = Script(chunks=20, pause_ms=50)  # lasts 1 s; drain_s is 2 in bare.toml
    async with world.gateway() as gateway:
        world.upstream.was_called.clear()
        reading = asyncio.create_task(read_stream(gateway.door, _USER, events=20, timeout_s=_GIVE_UP_S))
        await _wait_for(world.upstream.was_called, "the call to reach the upstream")
        gateway.process.send_signal(signal.SIGTERM)
        stream = await reading
        if stream.problem is not None:
            seen = f"{stream.problem} after {stream.events} of 20 events"
            raise Broken(f"the running stream: {seen}; {gateway.process.tail}")
        return await _time_end(gateway.process)


@bound("a second SIGTERM during a stream: the process ends at once", 1.0)
async def time_second_sigterm(world: World) -> float:
    world.upstream.script = Script(chunks=10_000, pause_ms=20)
    async with world.gateway() as gateway:
        world.upstream.was_called.clear()
        reading = asyncio.create_task(read_stream(gateway.door, _USER, events=10_000, timeout_s=_GIVE_UP_S))
        await _wait_for(world.upstream.was_called, "the call to reach the upstream")
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)  # two signals sent together are one
        gateway.process.send_signal(signal.SIGTERM)
        took_s = await _time_end(gateway.process)
        await reading
        return took_s


@bound("SIGHUP with a first key in proxy.toml: callers without it are refused", 1.0)
async def time_reload(world: World) -> float:
    async with world.gateway() as gateway:
        text = gateway.config.read_text(encoding="utf-8").replace("plugins = []", 'plugins = ["auth"]')
        key = '\n[[plugins.auth.keys]]\nname = "first"\nkey = "sk-another"\n'
        gateway.config.write_text(text + key, encoding="utf-8")
        started_at = time.monotonic()
        gateway.process.send_signal(signal.SIGHUP)
        while (status := await _ask_status(gateway.door)) != 401:
            if time.monotonic() - started_at > _GIVE_UP_S:
                raise Broken(f"still answered {status} after {_GIVE_UP_S:.0f} s")
            await asyncio.sleep(0.01)
        return time.monotonic() - started_at


@bound(
    "overload, three times capacity: p99 of important calls, at most twice the unloaded", 2 * 1.1 * SERVICE_S, rounds=1
)
async def time_overload(world: World) -> float:
    """Raises Broken if less than 90 % of capacity is served, or the unloaded p99 is not what the limit stands on."""
    async with upstream_with_places() as port, World(world.upstream, port).gateway("overload.toml") as gateway:
        quiet = await call_at(gateway.door.port, 0.5, 6.0)
        seen = await call_at(gateway.door.port, 3.0, 10.0)
    told = (
        f"goodput {seen.goodput:.0%}, p99 {quiet.p99('high'):.3f} -> {seen.p99('high'):.3f} s, "
        f"refused {seen.refused}, failed {quiet.failed + seen.failed}"
    )
    print(told, flush=True)
    if seen.goodput < 0.9 or seen.failed or quiet.failed:
        raise Broken(told)
    return seen.p99("high") * min(1.1 * SERVICE_S / quiet.p99("high"), 1.0)


@bound("four processes know of a dead deployment", 1.0)
async def time_breakers_agree(world: World) -> float:
    """From the failure that opens a circuit in one process until three others, on one Redis, have opened theirs."""
    config = """
[server]
port = 0
[state]
shared = "{redis}"
[chain]
plugins = ["circuit_breaker", "fallback"]
[providers.demo]
kind = "demo"
default = true
"""
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="slo-", dir=WORK))
    with RedisServer(folder) as redis, contextlib.ExitStack() as stack:
        processes = []
        for number in range(4):
            (folder / str(number)).mkdir()
            text = config.format(redis=redis.url)
            starting = asyncio.to_thread(ProxyProcess, folder / str(number), text)
            processes.append(stack.enter_context(await starting))
        first, *others = processes
        url = f"{first.base_url}/v1/chat/completions"
        async with aiohttp.ClientSession() as client:
            for _ in range(5):
                async with client.post(url, json={"model": "demo/error-500", "messages": []}) as reply:
                    await reply.read()
        started_at = time.monotonic()
        knowing = (asyncio.to_thread(process.wait_for, "circuit of demo/error-500 opened") for process in others)
        await asyncio.gather(*knowing)
        return time.monotonic() - started_at


async def _time_cancel(world: World, script: Script, *, stream: bool) -> float:
    async with world.gateway() as gateway:
        world.upstream.script = script
        world.upstream.was_called.clear()
        world.upstream.was_cut.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.door.port)
        writer.write(gateway.door.build_request(_USER, stream=stream))
        await _wait_for(world.upstream.was_called, "the call to reach the upstream")
        await asyncio.sleep(0.2)  # into the wait, or into the stream
        started_at = time.monotonic()
        writer.close()
        await _wait_for(world.upstream.was_cut, "the upstream call to end")
        return time.monotonic() - started_at


async def _ask_status(door: Door) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        writer.write(door.build_request(_USER, stream=False))
        return int((await asyncio.wait_for(reader.readline(), _GIVE_UP_S)).split()[1])
    finally:
        writer.close()


async def _wait_until_ready(process: Process, port: int) -> float:
    while time.monotonic() - process.started_at < _GIVE_UP_S:
        if not process.is_running:
            raise Broken(f"hookline ended: {process.tail}")
        with contextlib.suppress(OSError, IndexError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            status = (await asyncio.wait_for(reader.readline(), _GIVE_UP_S)).split()[1]
            writer.close()
            if status == b"200":
                return time.monotonic() - process.started_at
        await asyncio.sleep(0.01)
    raise Broken(f"not ready after {_GIVE_UP_S:.0f} s: {process.tail}")


async def _wait_for(event: asyncio.Event, what: str) -> None:
    try:
        await asyncio.wait_for(event.wait(), _GIVE_UP_S)
    except TimeoutError:
        raise Broken(f"waited {_GIVE_UP_S:.0f} s for {what}") from None


async def _time_end(process: Process) -> float:
    started_at = time.monotonic()
    while process.is_running:
        if time.monotonic() - started_at > _GIVE_UP_S:
            raise Broken(f"still running after {_GIVE_UP_S:.0f} s")
        await asyncio.sleep(0.005)
    return time.monotonic() - started_at


async def run_bounds(only: str) -> bool:
    """In: part of a name, empty = all. Prints the table. Out: whether all held."""
    upstream = Upstream()
    server, port = await upstream.listen(0)
    world, all_held = World(upstream, port), True
    print(f"{'bound':72} {'limit':>7} {'median':>7} {'worst':>7}")
    for each in BOUNDS:
        if only not in each.name:
            continue
        try:
            seen_s = [await each.measure(world) for _ in range(each.rounds)]
        except Broken as error:
            print(f"{each.name:72} {each.limit_s:6.2f}s  FAIL  {error}", flush=True)
            all_held = False
            continue
        holds = median(seen_s) <= each.limit_s
        all_held = all_held and holds
        verdict = "pass" if holds else "FAIL"
        print(f"{each.name:72} {each.limit_s:6.2f}s {median(seen_s):6.2f}s {max(seen_s):6.2f}s  {verdict}", flush=True)
    server.close()
    return all_held


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Hookline's bounds in seconds.")
    parser.add_argument("--only", default="", help="Bounds whose name holds this.")
    options = parser.parse_args()
    raise SystemExit(0 if asyncio.run(run_bounds(options.only)) else 1)


if __name__ == "__main__":
    main()
