"""A front on a real socket, before a scripted pipeline: the only part that is not real is what happens to the call.

Every async test in this folder runs on asyncio's loop and on uvloop: they differ in pausing, closing and half-closing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import pytest
import uvloop

from hookline.call import Call
from hookline.errors import ApiError, ClientGone
from hookline.principal import Principal
from hookline.reply import Reply
from hookline.surfaces.http_front import HttpFront
from hookline.surfaces.routes import Routes
from hookline.surfaces.settings import Deliver, FrontSettings, Serving


def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


Answer = Callable[[Call], Awaitable[Reply]]


async def answer_ok(call: Call) -> Reply:
    return Reply(200, {"content-type": "application/json"}, b'{"ok":true}')


class ScriptedPipeline:
    """Does what the real one promises to a surface, and nothing else: `check`, `load`, one `deliver`, `client_closed`."""

    def __init__(self, answer: Answer = answer_ok, check: Callable[[Call], None] | None = None) -> None:
        self.answer = answer
        self.check = check
        self.calls: list[Call] = []
        self.ended: list[str] = []
        self.bodies: list[bytes] = []
        self.is_running = asyncio.Event()
        self.has_ended = asyncio.Event()

    async def run(self, call: Call, deliver: Deliver) -> None:
        self.calls.append(call)
        self.is_running.set()
        task = asyncio.current_task()
        assert task is not None
        call.client_closed = task.cancel
        outcome = "ok"
        try:
            await deliver(await self._make_reply(call))
        except (ClientGone, asyncio.CancelledError):
            outcome = "client_gone"
        except Exception as error:
            outcome = f"cut: {error}"
        finally:
            call.client_closed = None
            self.ended.append(outcome)
            self.has_ended.set()

    async def _make_reply(self, call: Call) -> Reply:
        try:
            if self.check is not None:
                self.check(call)
            if call.load is not None:
                await call.load(call)
            if call.upload is not None:
                self.bodies.append(b"".join([chunk async for chunk in call.upload.chunks(None)]))
            return await (call.local or self.answer)(call)
        except ApiError as error:
            return Reply.from_error(error)


@dataclass
class SimpleCatalog:
    names: Sequence[str] = ()
    default_provider: str | None = None

    def model_names(self) -> Sequence[str]:
        return self.names

    def is_allowed(self, principal: Principal, name: str) -> bool:
        return any(fnmatch(name, glob) for glob in principal.models)


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()


@dataclass
class RawReply:
    """A reply as read from the socket."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool = True
    """False: the connection ended before the body's framing did."""


class RawClient:
    """A client that writes exactly the bytes it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_reply(self, *, is_head: bool = False) -> RawReply:
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        names = [line.partition(":")[0].lower() for line in lines if line]
        assert len(set(names)) == len(names), f"a header twice: {names}"
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines if line}
        status = int(first.split(" ")[1])
        if is_head or status in (100, 204, 304):
            return RawReply(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            chunks: list[bytes] = []
            try:
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    chunks.append(await self.reader.readexactly(size))
                    assert await self.reader.readexactly(2) == b"\r\n"
                assert await self.reader.readexactly(2) == b"\r\n"
            except asyncio.IncompleteReadError:
                return RawReply(status, headers, b"".join(chunks), is_whole=False)
            return RawReply(status, headers, b"".join(chunks))
        if "content-length" in headers:
            return RawReply(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        return RawReply(status, headers, await self.reader.read())

    async def ask(self, data: bytes) -> RawReply:
        await self.send(data)
        return await self.read_reply()

    async def is_closed(self) -> bool:
        """Read to the end; True if nothing more came."""
        return await self.reader.read() == b""

    def hang_up(self) -> None:
        self.writer.transport.abort()


@dataclass
class Door:
    """What a test needs of the running front."""

    front: HttpFront
    pipeline: ScriptedPipeline
    server: asyncio.Server
    port: int
    stack: AsyncExitStack

    async def connect(self) -> RawClient:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        client = RawClient(reader, writer)
        self.stack.callback(writer.transport.abort)
        return client

    async def ask(self, data: bytes) -> RawReply:
        """One request on a connection of its own."""
        return await (await self.connect()).ask(data)

    def serve(self, **changes: object) -> None:
        """Replace what is served, as a reload does."""
        self.front.serving = replace(self.front.serving, **changes)


OpenDoor = Callable[..., Awaitable[Door]]


@pytest.fixture
async def open_door() -> AsyncIterator[OpenDoor]:
    """`await open_door(answer, check=..., limits=FrontSettings(...), **serving)`."""
    async with AsyncExitStack() as stack:

        async def open_it(
            answer: Answer = answer_ok,
            *,
            check: Callable[[Call], None] | None = None,
            limits: FrontSettings | None = None,
            routes: Routes | None = None,
            catalog: SimpleCatalog | None = None,
            **serving: object,
        ) -> Door:
            pipeline = ScriptedPipeline(answer, check)
            front = HttpFront(
                limits or FrontSettings(),
                Serving(pipeline, catalog or SimpleCatalog(), routes or Routes(), **serving),
                SystemClock(),
            )
            server = await asyncio.get_running_loop().create_server(front, "127.0.0.1", 0)
            door = Door(front, pipeline, server, server.sockets[0].getsockname()[1], stack)

            async def close() -> None:
                server.close()
                front.abort()
                assert await front.drain(5.0), "connections were left open"

            stack.push_async_callback(close)
            return door

        yield open_it


@pytest.fixture
def make_catalog() -> Callable[..., SimpleCatalog]:
    """`make_catalog("own", "names", default="provider")`."""
    return lambda *names, default=None: SimpleCatalog(names, default)
