"""Scripted upstream: a server on a real socket that says exactly what a test tells it to say.

Lives here: `ScriptedUpstream`, the steps of a script, and scripts for the usual replies. Elsewhere: what a provider makes of it (hookline.providers), a whole proxy around it (your test).
Idea: the only thing a test may fake is the provider, and it is faked on the wire: bytes, pauses and broken connections, in the order written. A pause ends by an event of the test's or by the client's leaving,
never by time.

    async with ScriptedUpstream() as upstream:
        upstream.play(json_reply({"choices": []}))                       # for the next request
        upstream.play(sse_reply('{"id":1}', RESET))                      # for the one after it
        ...                                                              # base_url = upstream.url
        assert upstream.requests[0].json()["model"] == "gpt-4o"

A script is a sequence of steps: `bytes` are written as they are, an `asyncio.Event` is waited for, `RESET`, `CUT`, `HALF_CLOSE` and `STALL` are what they say."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final

import orjson

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 << 20


class Fault(Enum):
    """How a script can end, beside properly."""

    RESET = auto()
    CUT = auto()
    HALF_CLOSE = auto()
    STALL = auto()


RESET: Final = Fault.RESET
"""Break the connection: the peer sees "connection reset"."""
CUT: Final = Fault.CUT
"""Close the connection: the peer sees its end."""
HALF_CLOSE: Final = Fault.HALF_CLOSE
"""Say that nothing more comes, and go on listening until the client leaves or the server closes."""
STALL: Final = Fault.STALL
"""Say nothing more until the client leaves or the server closes."""

Step = bytes | asyncio.Event | Fault
Script = Sequence[Step]


@dataclass(slots=True)
class RecordedRequest:
    """One request as it came. Header names are in lower case, duplicates kept."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    """Which connection it came on, counted from 1."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client closed the connection while its script was playing."""

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    def json(self) -> Any:
        """The body parsed. Raises orjson.JSONDecodeError."""
        return orjson.loads(self.body)


def reply_head(status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """Status line and headers, with the blank line. Framing headers are the caller's."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Status"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def bytes_reply(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> list[Step]:
    """A whole reply with its length."""
    return [reply_head(status, {**(headers or {}), "content-length": str(len(body))}) + body]


def json_reply(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> list[Step]:
    """A JSON reply."""
    return bytes_reply(
        orjson.dumps(value), status=status, headers={"content-type": "application/json", **(headers or {})}
    )


def sse_reply(*steps: str | bytes | Step, headers: Mapping[str, str] | None = None) -> list[Step]:
    """An event stream in chunks. A str becomes `data: ...` with its blank line, bytes one chunk as they are; it ends properly unless the last step is a Fault."""
    script: list[Step] = [
        reply_head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked", **(headers or {})})
    ]
    for step in steps:
        if isinstance(step, str):
            step = f"data: {step}\n\n".encode()
        script.append(b"%x\r\n%b\r\n" % (len(step), step) if isinstance(step, bytes) else step)
    if not isinstance(script[-1], Fault):
        script.append(b"0\r\n\r\n")
    return script


class ScriptedUpstream:
    """An HTTP/1.1 server on 127.0.0.1, on a free port unless one is named. Plays one script per request, in the order of `play`; then what `always` set; then 500."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[RecordedRequest] = []
        self.connections = 0
        """Connections accepted so far."""
        self._tls = tls
        self._wanted_port = port
        self._scripts: deque[Script] = deque()
        self._always: Callable[[RecordedRequest], Script] = _no_script
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()

    def play(self, *scripts: Script) -> None:
        """Queue scripts, one per request."""
        self._scripts.extend(scripts)

    def always(self, script: Script | Callable[[RecordedRequest], Script]) -> None:
        """The script for every request that finds the queue empty, or a function that makes it."""
        self._always = script if callable(script) else lambda request: script

    @property
    def port(self) -> int:
        """Where it listens. Raises RuntimeError before `start`."""
        if self._server is None:
            raise RuntimeError("the scripted upstream is not started; use `async with`")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """What to write as base_url."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def wait_for_requests(self, number: int) -> None:
        """Return when `number` requests have arrived whole."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= number)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self._wanted_port, limit=MAX_HEAD_BYTES, ssl=self._tls
        )

    async def stop(self) -> None:
        """Stop listening and break what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> ScriptedUpstream:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> None:
        try:
            while (request := await _read_request(reader, writer, connection)) is not None:
                async with self._arrived:
                    self.requests.append(request)
                    self._arrived.notify_all()
                script = self._scripts.popleft() if self._scripts else self._always(request)
                if not await _play(script, request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left: what a test wants to know of it is in `request.left`
        finally:
            writer.close()


def _no_script(request: RecordedRequest) -> Script:
    return json_reply({"error": {"message": f"no script for {request.method} {request.target}"}}, status=500)


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
) -> RecordedRequest | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    named = dict(headers)
    if named.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join([piece async for piece in _read_chunks(reader)])
    else:
        body = await reader.readexactly(min(int(named.get("content-length", "0")), MAX_BODY_BYTES))
    return RecordedRequest(method, target, headers, body, connection)


async def _read_chunks(reader: asyncio.StreamReader) -> Any:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")


async def _play(
    script: Iterable[Step], request: RecordedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Play the steps. True if the connection may carry another request."""
    try:
        for step in script:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, asyncio.Event):
                if not await _wait(step, request, reader):
                    return False
            else:
                await _break(step, request, reader, writer)
                return False
    except ConnectionError:
        request.left.set()
        raise
    return True


async def _break(
    fault: Fault, request: RecordedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if fault is RESET:
        _reset(writer)
    elif fault is not CUT:
        if fault is HALF_CLOSE:
            writer.write_eof()
        await _wait(asyncio.Event(), request, reader)


async def _wait(event: asyncio.Event, request: RecordedRequest, reader: asyncio.StreamReader) -> bool:
    """Wait for the event. False if the client leaves first."""
    waiting = asyncio.ensure_future(event.wait())
    leaving = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            request.left.set()
        return waiting.done()
    finally:
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.wait({waiting, leaving})
        if leaving.done() and not leaving.cancelled():
            leaving.exception()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
