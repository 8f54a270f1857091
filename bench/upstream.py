"""The scripted OpenAI upstream of every load run: asyncio, httptools and uvloop, so that it is not the bottleneck.

Lives here: the replies, their pace, the counters. Elsewhere: the upstream of the tests (hookline.testing), who starts this one (run.py, slo.py).
Idea: what it does next is set by `POST /bench/script`; every stream event carries the caller's id and its own number, so
any client can see a lost, doubled, swapped or foreign event. Each event is one write of its own.

Run: python -m bench.upstream --port 9000"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import heapq
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import httptools
import orjson
import uvloop

MODEL = "gpt-4o-mini"
ID_BYTES = 12
NO_ID = b"0" * ID_BYTES

_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_USER = re.compile(rb'"user"\s*:\s*"([^"]{%d})"' % ID_BYTES)


@dataclass(slots=True)
class Script:
    """How calls are answered from now on."""

    chunks: int = 100
    pause_ms: float = 0.0
    """Between two events of a stream; 0 = one event of each stream per turn of the loop."""
    delay_ms: float = 0.0
    """Before the first byte of any reply."""


@dataclass(slots=True)
class Counts:
    """What happened since the start; `cut` = the other side left before its reply was complete."""

    calls: int = 0
    streams: int = 0
    events: int = 0
    """Numbered stream events written."""
    cut: int = 0
    open_now: int = 0
    open_most: int = 0


@dataclass(slots=True)
class Upstream:
    """One upstream: its script, its counters, and an event per cut call for who measures cancellation."""

    script: Script = field(default_factory=Script)
    counts: Counts = field(default_factory=Counts)
    was_called: asyncio.Event = field(default_factory=asyncio.Event)
    was_cut: asyncio.Event = field(default_factory=asyncio.Event)
    pacer: _Pacer = field(init=False)

    async def listen(self, port: int) -> tuple[asyncio.Server, int]:
        """In: a port, 0 = any free one. Out: the server and its port. Raises OSError when the port is taken."""
        self.pacer = _Pacer()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=4096)
        return server, server.sockets[0].getsockname()[1]


def build_reply(body: bytes, content_type: bytes = b"application/json") -> bytes:
    """In: a body. Out: the bytes of a whole 200 reply."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-request-id: req_1\r\ncontent-length: %d\r\n\r\n%b" % (
        content_type,
        len(body),
        body,
    )


CHAT = build_reply(
    orjson.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1700000000,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog. " * 6},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 60, "total_tokens": 80},
            "system_fingerprint": "fp_1",
        }
    )
)
MODELS = build_reply(orjson.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}))

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: req_1\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _frame(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": MODEL}
    return _frame(orjson.dumps({**head, "choices": [choice]}))


def _usage(chunks: int) -> bytes:
    usage = {"prompt_tokens": 20, "completion_tokens": chunks, "total_tokens": 20 + chunks}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": MODEL}
    return _frame(orjson.dumps({**head, "choices": [], "usage": usage}))


# A numbered event is BEFORE + id + ":" + 4 digits + AFTER: fixed width, so that its chunk size is known beforehand.
_HOLE = "@" * (ID_BYTES + 5)
_BEFORE, _AFTER = _chunk({"content": f"{_HOLE} "}).split(_HOLE.encode())
_FIRST = _chunk({"role": "assistant", "content": ""})
_STOP = _chunk({}, "stop")
_DONE = _frame(b"[DONE]") + b"0\r\n\r\n"


class _Pacer:
    """Sends what is due, for all connections: one timer, no task and no future per event."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.due: list[tuple[float, int, _Connection]] = []
        self.serial = 0
        self.timer: asyncio.Handle | None = None
        self.wakes_at = math.inf
        """When `_tick` runs next; while it runs, nothing is earlier."""

    def add(self, connection: _Connection, delay_s: float) -> None:
        self.serial += 1
        due_at = self.loop.time() + delay_s
        heapq.heappush(self.due, (due_at, self.serial, connection))
        if due_at < self.wakes_at:
            self._arm()

    def _arm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.wakes_at = None, math.inf
        if self.due:
            self.wakes_at = self.due[0][0]
            wait_s = self.wakes_at - self.loop.time()
            self.timer = self.loop.call_later(wait_s, self._tick) if wait_s > 0 else self.loop.call_soon(self._tick)

    def _tick(self) -> None:
        self.wakes_at = -math.inf
        turn, now = [], self.loop.time()
        while self.due and self.due[0][0] <= now:
            turn.append(heapq.heappop(self.due)[2])
        for connection in turn:  # once each, so that no two events of one stream share a write
            connection.send_next()
        self._arm()


class _Connection(asyncio.Protocol):
    """One client connection; calls on it come one after the other."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.pieces: list[bytes] = []
        self.to_send: Iterator[bytes] | None = None
        self.pause_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.to_send is not None:
            self._end_reply()
            self.upstream.counts.cut += 1
            self.upstream.was_cut.set()

    def on_message_begin(self) -> None:
        self.url = b""
        self.pieces.clear()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self.pieces)
        if self.parser.get_method() != b"POST":
            self._answer_get()
        elif self.url.startswith(b"/bench/"):
            self.upstream.script = Script(**orjson.loads(body))
            self.transport.write(build_reply(b"{}"))
        else:
            self._answer_call(body)

    def send_next(self) -> None:
        """Writes the next piece of the reply under way, if there still is one."""
        if self.to_send is None:
            return
        piece = next(self.to_send, None)
        if piece is None:
            self._end_reply()
        else:
            self.transport.write(piece)
            self.upstream.pacer.add(self, self.pause_s)

    def _answer_get(self) -> None:
        if self.url.startswith(b"/bench/"):
            self.transport.write(build_reply(orjson.dumps(dataclasses.asdict(self.upstream.counts))))
        else:
            self.transport.write(MODELS)

    def _answer_call(self, body: bytes) -> None:
        counts, script = self.upstream.counts, self.upstream.script
        counts.calls += 1
        self.upstream.was_called.set()
        is_stream = _STREAM.search(body) is not None
        if not is_stream and not script.delay_ms:
            self.transport.write(CHAT)
            return
        counts.streams += is_stream
        counts.open_now += 1
        counts.open_most = max(counts.open_most, counts.open_now)
        self.to_send = self._iterate_stream(body, script.chunks) if is_stream else iter((CHAT,))
        self.pause_s = script.pause_ms / 1000
        self.upstream.pacer.add(self, script.delay_ms / 1000)

    def _end_reply(self) -> None:
        self.to_send = None
        self.upstream.counts.open_now -= 1

    def _iterate_stream(self, body: bytes, chunks: int) -> Iterator[bytes]:
        user, counts = _USER.search(body), self.upstream.counts
        prefix = _BEFORE + (user[1] if user else NO_ID)
        yield STREAM_HEAD + _FIRST
        for number in range(chunks):
            counts.events += 1
            yield b"%b:%04d%b" % (prefix, number, _AFTER)
        yield (_STOP + _usage(chunks) if _USAGE.search(body) else _STOP) + _DONE


async def serve(port: int) -> None:
    """In: a port. Serves until cancelled."""
    server, _ = await Upstream().listen(port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Scripted OpenAI upstream for load runs.")
    parser.add_argument("--port", type=int, required=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
