"""A scripted upstream on raw sockets: the test plays the other side itself, byte by byte.

Raw sockets, because a test must be able to send, close and reset at a moment it chooses, without the loop in between.
Every async test in this folder runs on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import pytest_asyncio
import uvloop

from hookline.transport import HttpPool, Timeouts, TransportError, UpstreamResponse

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""  # beyond what was asked for

    async def receive(self) -> bytes:
        """Some bytes; empty at the end of the connection, also if it was reset."""
        try:
            return await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except ConnectionError:
            return b""

    async def receive_until(self, mark: bytes) -> bytes:
        while mark not in self.received:
            data = await self.receive()
            if not data:
                raise EOFError(self.received)
            self.received += data
        found, self.received = self.received.split(mark, 1)
        return found + mark

    async def receive_request(self) -> tuple[bytes, bytes]:
        """Head and body of one request, the body still in its chunks if it is chunked."""
        head = await self.receive_until(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            return head, await self.receive_until(b"0\r\n\r\n")
        announced = re.search(rb"content-length: (\d+)", head)
        missing = int(announced[1]) if announced else 0
        while len(self.received) < missing:
            data = await self.receive()
            if not data:
                raise EOFError(self.received)
            self.received += data
        body, self.received = self.received[:missing], self.received[missing:]
        return head, body

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def is_closed_by_client(self) -> bool:
        """Wait for the end of the connection. Fails on bytes that nobody expects."""
        data = await self.receive()
        assert data == b"", data
        return True

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()


class Upstream:
    """A listening socket. `accept()` in the test, or `serve(handler)` for many connections."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.peers: list[Peer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self) -> Peer:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock)
        self.peers.append(peer)
        return peer

    def serve(self, handler: Callable[[Peer], Awaitable[None]]) -> None:
        """Run `handler` for each connection; it ends quietly when the client is gone."""
        self._spawn(self._accept_for(handler))

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.listener.close()
        for peer in self.peers:
            peer.close()

    async def _accept_for(self, handler: Callable[[Peer], Awaitable[None]]) -> None:
        while True:
            self._spawn(self._handle(handler, await self.accept()))

    async def _handle(self, handler: Callable[[Peer], Awaitable[None]], peer: Peer) -> None:
        with suppress(EOFError, ConnectionError):
            await handler(peer)
        peer.close()

    def _spawn(self, work) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    surprises: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: surprises.append(context))
    upstream = Upstream()
    yield upstream
    await upstream.aclose()
    assert surprises == []  # what a callback of the transport raised reaches nobody else


@pytest_asyncio.fixture
async def make_pool(upstream: Upstream) -> AsyncIterator[Callable[..., HttpPool]]:
    """Pools towards `upstream`. Afterwards: nothing may be open, waiting or running."""
    pools: list[HttpPool] = []

    def make(host: str = "127.0.0.1", port: int | None = None, **options) -> HttpPool:
        pool = HttpPool("http", host, port or upstream.port, **options)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.aclose()
        stats = pool.stats()
        assert (stats.open, stats.idle, stats.waiting) == (0, 0, 0)


@pytest.fixture
def pool(make_pool: Callable[..., HttpPool]) -> HttpPool:
    return make_pool()


@pytest.fixture
def ask() -> Callable[..., Awaitable[UpstreamResponse]]:
    """`await ask(pool)`: a small GET, or what the arguments say."""

    def ask(
        pool: HttpPool,
        *,
        method: bytes = b"GET",
        target: bytes = b"/",
        head: bytes = b"",
        body: bytes | AsyncIterator[bytes] | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        content_length: int | None = None,
    ) -> Awaitable[UpstreamResponse]:
        return pool.request(
            method=method, target=target, head=head, body=body, timeouts=timeouts, content_length=content_length
        )

    return ask


@pytest.fixture
def exchange(upstream: Upstream, ask) -> Callable[..., Awaitable[tuple[UpstreamResponse, Peer]]]:
    """`await exchange(pool, reply)`: one request on a new connection, answered with these bytes; the reply's head is there."""

    async def exchange(pool: HttpPool, reply: bytes, **request) -> tuple[UpstreamResponse, Peer]:
        pending = asyncio.ensure_future(ask(pool, **request))
        peer = await upstream.accept()
        await peer.receive_request()
        await peer.send(reply)
        return await pending, peer

    return exchange


@pytest.fixture
def outcome() -> Callable[[Awaitable[UpstreamResponse]], Awaitable[tuple[int, bytes, str]]]:
    """What a caller sees of a request: status (0 = no reply), the body as far as it came, kind of error ("" = none)."""

    async def outcome(request: Awaitable[UpstreamResponse]) -> tuple[int, bytes, str]:
        try:
            response = await request
        except TransportError as error:
            return 0, b"", error.kind
        body = b""
        try:
            async for chunk in response.chunks():
                body += chunk
        except TransportError as error:
            return response.status, body, error.kind
        return response.status, body, ""

    return outcome


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Let the loop run until a claim about the pool holds; the test's own timeout bounds it."""

    async def until(claim: Callable[[], bool]) -> None:
        while not claim():  # noqa: ASYNC110 - there is no event for "someone waits": that is what is asked
            await asyncio.sleep(0)

    return until
