"""A raw-socket client that opens many streams at once and checks every event of each: nothing lost, doubled, swapped or foreign.

Lives here: one connection per stream, the order check, the tally. Elsewhere: wrk, which is faster and checks nothing (load.py).
Idea: upstream.py writes the caller's id and a running number into each event; so order and ownership are visible in the bytes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools
import orjson

from bench.upstream import ID_BYTES

_NUMBERED = re.compile(rb'"content":\s?"([^":]{%d}):(\d{4}) "' % ID_BYTES)
_DONE = re.compile(rb"data: ?\[DONE\]")


@dataclass(slots=True)
class StreamResult:
    """What one stream showed. `problem` is None when every event came once, in order, and the end was said."""

    status: int = 0
    events: int = 0
    reads: int = 0
    """Socket reads that carried events: near `events` when they came one by one."""
    first_event_s: float = 0.0
    problem: str | None = None


@dataclass(slots=True)
class Tally:
    """All streams of one run."""

    streams: int = 0
    events: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    first_event_s: list[float] = field(default_factory=list)
    open_most: int = 0

    @property
    def errors(self) -> int:
        return sum(self.problems.values())


@dataclass(frozen=True, slots=True)
class Door:
    """Where calls go: an address of this machine, a path and the headers every call carries."""

    port: int
    path: str = "/v1/chat/completions"
    model: str = "gpt-4o-mini"
    key: str = "sk-bench"
    headers: Mapping[str, str] = field(default_factory=dict)

    def build_request(self, user: str, *, stream: bool) -> bytes:
        """In: who calls (ID_BYTES characters). Out: the bytes of one chat call."""
        body: dict[str, object] = {
            "model": self.model,
            "temperature": 0,
            "user": user,
            "messages": [{"role": "user", "content": f"Say something about foxes. Case {user}"}],
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        raw = orjson.dumps(body)
        head = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Content-Length": str(len(raw)),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + raw


class EventCheck:
    """Checks the numbered events of one stream, fed in pieces of any size."""

    def __init__(self, user: str) -> None:
        self.expected_user = user.encode()
        self.events = 0
        self.is_done = False
        self.problem: str | None = None
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """In: body bytes as they came. The first thing wrong stays in `problem`."""
        text = self._rest + data
        lines = text.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if found := _NUMBERED.search(line):
                self._check(found[1], int(found[2]))
            elif _DONE.match(line):
                self.is_done = True

    def finish(self, expected_events: int) -> str | None:
        """Out: what was wrong with the whole stream, None when nothing was."""
        if self.problem is None and self.events != expected_events:
            self.problem = "cut" if self.events < expected_events else "too many events"
        if self.problem is None and not self.is_done:
            self.problem = "no [DONE]"
        return self.problem

    def _check(self, user: bytes, number: int) -> None:
        if user != self.expected_user:
            self.problem = self.problem or "event of another stream"
        elif number != self.events:
            self.problem = self.problem or "out of order"
        self.events += 1


class _StreamClient(asyncio.Protocol):
    def __init__(self, request: bytes, user: str) -> None:
        self.request = request
        self.check = EventCheck(user)
        self.result = StreamResult()
        self.parser = httptools.HttpResponseParser(self)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.started_at = time.perf_counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        before = self.check.events
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("reply is not HTTP")
        if self.check.events > before:
            self.result.reads += 1
            self.result.first_event_s = self.result.first_event_s or time.perf_counter() - self.started_at

    def on_headers_complete(self) -> None:
        self.result.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.check.feed(body)

    def on_message_complete(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("connection lost")

    def _end(self, problem: str | None) -> None:
        if not self.ended.done():
            self.result.problem = problem
            self.ended.set_result(None)
            self.transport.close()


async def read_stream(door: Door, user: str, *, events: int, timeout_s: float) -> StreamResult:
    """One streamed call. In: how many numbered events its upstream was told to send. Out: the result; network errors are
    problems in it, never raised."""
    request = door.build_request(user, stream=True)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            transport, client = await loop.create_connection(
                lambda: _StreamClient(request, user), "127.0.0.1", door.port
            )
            try:
                await client.ended
            finally:
                transport.close()
    except TimeoutError:
        return StreamResult(problem="timeout")
    except OSError as error:
        return StreamResult(problem=f"connect: {error.strerror or error}")
    result = client.result
    result.events = client.check.events
    if result.status not in (0, 200):
        result.problem = f"status {result.status}"
    result.problem = result.problem or client.check.finish(events)
    return result


async def hold_streams(door: Door, *, streams: int, events: int, per_s: float, timeout_s: float) -> Tally:
    """Opens streams at a steady rate and reads each to its end. Out: the tally of all."""
    tally, open_now = Tally(), 0

    async def hold(number: int) -> None:
        nonlocal open_now
        await asyncio.sleep(number / per_s)
        open_now += 1
        tally.open_most = max(tally.open_most, open_now)
        result = await read_stream(door, f"{number:0{ID_BYTES}d}", events=events, timeout_s=timeout_s)
        open_now -= 1
        tally.streams += 1
        tally.events += result.events
        tally.first_event_s.append(result.first_event_s)
        if result.problem is not None:
            tally.problems[result.problem] = tally.problems.get(result.problem, 0) + 1

    await asyncio.gather(*(hold(number) for number in range(streams)))
    return tally


def percentile(values: Sequence[float], percent: float) -> float:
    """Out: the smallest value that at least `percent` % of the values do not exceed (nearest rank); 0.0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]
