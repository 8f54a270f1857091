"""Connections to one origin, kept alive and handed out.

Lives here: which connection a request gets, how many there may be, who waits. Elsewhere: connecting (dial.py), what happens
on a connection (connection.py).

Rules
- A *slot* is the right to have one connection; dialling, busy and idle ones each hold one, and there are `max_connections`.
- Idle connections are taken last-in-first-out, so the ones that are not needed grow old and close.
- Nobody overtakes: while someone waits there is no idle connection, because what becomes free goes to the first waiter.
- What was handed to a waiter that has been cancelled goes to the next one.
- A request runs in its caller's task; if that is cancelled, the connection is closed and never comes back here."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from hookline.transport.connection import Connection
from hookline.transport.contract import Timeouts, UpstreamResponse
from hookline.transport.dial import Origin, Resolver, dial, resolve
from hookline.transport.errors import TransportError
from hookline.transport.http1 import request_prefix
from hookline.transport.tls import TlsOptions, load_tls_context
from hookline.transport.upload import upload
from hookline.transport.write_batch import WriteBatch

MAX_CACHED_PREFIXES = 256
_DEFAULT_PORTS = {"http": 80, "https": 443}
_WITHOUT_EMPTY_BODY = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"))


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A snapshot. `open` includes connections that are being dialled."""

    open: int
    idle: int
    in_use: int
    waiting: int


class HttpPool:
    """HTTP/1.1 to one origin. Implements `Transport`. Belongs to the loop it is first used on."""

    def __init__(
        self,
        scheme: str,
        host: str,
        port: int | None = None,
        *,
        max_connections: int = 1000,
        max_waiters: int = 10_000,
        keepalive_s: float = 60.0,
        tls: TlsOptions | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        """Raises ValueError for another scheme than http or https, and for TLS files that cannot be used."""
        if scheme not in _DEFAULT_PORTS:
            raise ValueError(f"scheme {scheme!r} is not http or https")
        options = tls or TlsOptions()
        is_tls = scheme == "https"
        self._origin = Origin(
            host=host,
            port=port or _DEFAULT_PORTS[scheme],
            tls=load_tls_context(options) if is_tls else None,
            server_hostname=(options.server_hostname or host) if is_tls else None,
        )
        self._host_header = _host_header(scheme, options.server_hostname or host, self._origin.port)
        self._max_connections = max_connections
        self._max_waiters = max_waiters
        self._keepalive_s = keepalive_s
        self._resolver = resolver
        self._slots_taken = 0
        self._idle: dict[Connection, None] = {}
        self._sockets: set[Connection] = set()  # until the socket is closed, which is a little after its slot is free
        self._waiters: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._prefixes: dict[tuple[bytes, bytes], bytes] = {}
        self._batch = WriteBatch()
        self._is_closed = False
        self._all_lost = asyncio.Event()
        self._all_lost.set()

    async def request(
        self,
        *,
        method: bytes,
        target: bytes,
        head: bytes,
        body: bytes | AsyncIterator[bytes] | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        content_length: int | None = None,
    ) -> UpstreamResponse:
        """See `Transport.request`. Raises TransportError, and ValueError for what cannot be put on one line."""
        prefix = self._prefixes.get((method, target)) or self._add_prefix(method, target)
        if body is None or isinstance(body, bytes):
            content, pieces = body, None
            if body is not None:
                framing = b"content-length: %d\r\n\r\n" % len(body)
            else:
                framing = b"\r\n" if method in _WITHOUT_EMPTY_BODY else b"content-length: 0\r\n\r\n"
        else:
            content, pieces = None, body
            if content_length is None:
                framing = b"transfer-encoding: chunked\r\n\r\n"
            else:
                framing = b"content-length: %d\r\n\r\n" % content_length

        head = prefix + head + framing
        while True:
            connection = self._take_idle() or await self._acquire(timeouts)
            response = connection.start(head, content, timeouts, is_head_request=method == b"HEAD")
            try:
                if pieces is not None:
                    connection.flush()  # a body that is read only once must not begin on a dead connection
                    if response.error is None:
                        await upload(connection, response, pieces, content_length)
                while not response.status and response.error is None:
                    await response.changed()
            except BaseException:
                response.close()
                raise
            if response.error is None or response.status:
                return response
            if response.error.is_written or not connection.was_used:
                raise response.error
            # It died while it was idle, and nothing was written: the next one takes its place silently.

    async def aclose(self) -> None:
        """Close every connection, busy ones too, and wait until the sockets are gone. Waiting requests fail."""
        self._is_closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self._closed_error())
        for connection in list(self._sockets):
            connection.abort()
        await self._all_lost.wait()

    def stats(self) -> PoolStats:
        """How many connections there are now, and how many requests wait for one."""
        idle = len(self._idle)
        return PoolStats(open=self._slots_taken, idle=idle, in_use=self._slots_taken - idle, waiting=len(self._waiters))

    # Getting a connection.

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_usable():
                return connection
            connection.abort()
        return None

    async def _acquire(self, timeouts: Timeouts) -> Connection:
        if self._is_closed:
            raise self._closed_error()
        if self._slots_taken < self._max_connections:
            self._slots_taken += 1
            return await self._dial(timeouts.connect_s)
        connection = await self._wait(timeouts.pool_s)
        if connection is None:
            return await self._dial(timeouts.connect_s)
        if connection.is_usable():
            return connection
        if not connection.holds_slot:  # it died on the way here, and its slot went to somebody else
            return await self._acquire(timeouts)
        connection.holds_slot = False
        connection.abort()
        return await self._dial(timeouts.connect_s)

    async def _dial(self, connect_s: float) -> Connection:
        """Connect on a slot that is taken already; gives it back on failure."""
        try:
            connection = await dial(self._origin, self._resolver, connect_s, self._make_connection)
            if self._is_closed:
                connection.abort()
                raise self._closed_error()
            if connection.is_gone:
                raise TransportError("reset", f"{self._origin.name} hung up, or spoke first, right after accepting")
        except BaseException:
            self._free_slot()
            raise
        connection.holds_slot = True
        self._sockets.add(connection)
        self._all_lost.clear()
        return connection

    def _make_connection(self) -> Connection:
        return Connection(self, self._origin.name, self._keepalive_s, self._batch)

    async def _wait(self, pool_s: float) -> Connection | None:
        """Wait for a connection, or for a slot (None)."""
        if len(self._waiters) >= self._max_waiters:
            raise TransportError("pool_timeout", f"{len(self._waiters)} requests to {self._origin.name} wait already")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        self._waiters[waiter] = None
        timer = loop.call_later(pool_s, self._give_up, waiter, pool_s)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())
            raise
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)

    def _give_up(self, waiter: asyncio.Future[Connection | None], pool_s: float) -> None:
        if not waiter.done():
            message = f"all {self._max_connections} connections to {self._origin.name} stayed busy for {pool_s:g} s"
            waiter.set_exception(TransportError("pool_timeout", message))

    def _pass_on(self, connection: Connection | None) -> None:
        if connection is None:
            self._free_slot()
        elif not connection.is_gone:
            self.on_idle(connection)

    # Giving it back: called by connections.

    def on_idle(self, connection: Connection) -> None:
        """See `Owner`."""
        if self._is_closed:
            connection.abort()
        elif not self._give(connection):
            self._idle[connection] = None

    def on_gone(self, connection: Connection) -> None:
        """See `Owner`."""
        self._idle.pop(connection, None)
        if connection.holds_slot:
            connection.holds_slot = False
            self._free_slot()

    def on_lost(self, connection: Connection) -> None:
        """See `Owner`."""
        self._sockets.discard(connection)
        if not self._sockets:
            self._all_lost.set()

    def _free_slot(self) -> None:
        if not self._give(None):
            self._slots_taken -= 1

    def _give(self, what: Connection | None) -> bool:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(what)
                return True
        return False

    def _closed_error(self) -> TransportError:
        return TransportError("connect", f"the pool for {self._origin.name} is closed")

    def _add_prefix(self, method: bytes, target: bytes) -> bytes:
        prefix = request_prefix(method, target, self._host_header)
        if len(self._prefixes) >= MAX_CACHED_PREFIXES:
            self._prefixes.clear()  # targets with ids in them; the few that repeat are back at once
        self._prefixes[method, target] = prefix
        return prefix


def _host_header(scheme: str, host: str, port: int) -> bytes:
    name = f"[{host}]" if ":" in host else host
    return (name if port == _DEFAULT_PORTS[scheme] else f"{name}:{port}").encode(
        "idna" if not name.isascii() else "ascii"
    )
