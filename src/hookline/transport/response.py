"""One HTTP/1.1 reply, from its head to its last byte.

Lives here: the buffer between a connection that fills it and a caller who empties it. Elsewhere: sockets, timers and
back-pressure (connection.py), parsing (reply_reader.py).
Idea: the body belongs to the response, never to the connection, so a connection may carry the next reply while this one is
still being read from memory. The connection sets the fields in the first block; callers use `UpstreamResponse`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from hookline.transport.errors import BodyTooLarge, TransportError

if TYPE_CHECKING:
    from hookline.transport.connection import Connection


class Http1Response:
    """Implements `UpstreamResponse`. One reader at a time."""

    __slots__ = (
        "_waiter",
        "buffered_bytes",
        "connection",
        "error",
        "headers",
        "http_version",
        "is_complete",
        "is_eof_delimited",
        "is_read_whole",
        "limit_bytes",
        "parts",
        "reason",
        "status",
        "take_piece",
    )

    def __init__(self, connection: Connection) -> None:
        self.status = 0  # 0 until the head is there
        self.reason = b""
        self.http_version = ""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_eof_delimited = False
        self.is_complete = False
        self.connection: Connection | None = connection  # None once the reply is complete, failed or closed
        self.error: TransportError | None = None
        self.parts: list[bytes] = []
        self.buffered_bytes = 0
        self.is_read_whole = False  # read(): no back-pressure, and nobody is woken before the end
        self.limit_bytes = -1
        self.take_piece: Callable[[bytes], bool] | None = None  # forward(): who gets the pieces as they arrive
        self._waiter: asyncio.Future[None] | None = None

    # For callers.

    async def read(self, max_bytes: int | None = None) -> bytes:
        """The rest of the body; does not suspend if it is there already."""
        if self.connection is not None:
            await self._fill(max_bytes)
        if self.error is not None:
            raise self.error
        if max_bytes is not None and self.buffered_bytes > max_bytes:
            self.take()
            raise BodyTooLarge(max_bytes)
        return self.take() if self.parts else b""

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the rest of the body, one piece per wake-up."""
        return self

    def __aiter__(self) -> Http1Response:
        return self

    async def __anext__(self) -> bytes:
        while not self.parts:
            if self.connection is None:
                if self.error is not None:
                    raise self.error
                raise StopAsyncIteration
            try:
                await self.changed()
            except BaseException:
                self.close()
                raise
        return self.take()

    async def forward(self, take_piece: Callable[[bytes], bool]) -> None:
        """Hand each piece to `take_piece` in the turn of the loop that read it, until it answers False or the body ends; nobody is woken meanwhile.

        Iterate on afterwards: there is more, the end, or the error. `take_piece` must not raise: the connection would break."""
        while self.parts:
            if not take_piece(self.take()):
                return
        if self.connection is None:
            return
        self.take_piece = take_piece
        try:
            await self.changed()
        except BaseException:
            self.close()
            raise
        finally:
            self.take_piece = None

    def buffered(self) -> bytes | None:
        """What has arrived and was not taken yet; None if nothing has."""
        if not self.parts:
            return None
        if len(self.parts) > 1:
            self.parts[:] = [b"".join(self.parts)]
        return self.parts[0]

    async def arrived(self, within_s: float) -> bool:
        """Wait until the body grows or ends, at most `within_s`. True if it did."""
        if self.connection is None:
            return True
        before_bytes = self.buffered_bytes
        waiter = self.changed()
        timer = self.connection.loop.call_later(within_s, self.wake)
        try:
            await waiter
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        return self.connection is None or self.buffered_bytes > before_bytes

    def close(self) -> None:
        """Abandon the reply; what is buffered and complete stays readable."""
        if self.connection is not None:
            self.connection.abort()

    async def aclose(self) -> None:
        """The same as `close()`."""
        self.close()

    # For the connection.

    def changed(self) -> asyncio.Future[None]:
        """A future that is done at the next `wake()`. Only while there is a connection: nobody else would wake."""
        assert self.connection is not None
        waiter = self._waiter = self.connection.loop.create_future()
        return waiter

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def take(self) -> bytes:
        parts = self.parts
        piece = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.buffered_bytes = 0
        if self.connection is not None and self.connection.is_reading_paused:
            self.connection.resume_reading()
        return piece

    def complete(self) -> None:
        self.is_complete = True
        self.connection = None
        self.wake()

    def fail(self, error: TransportError) -> None:
        self.error = error
        self.connection = None
        self.wake()

    async def _fill(self, max_bytes: int | None) -> None:
        self.is_read_whole = True
        self.limit_bytes = -1 if max_bytes is None else max_bytes
        if self.connection is not None and self.connection.is_reading_paused:
            self.connection.resume_reading()
        try:
            while self.connection is not None and not 0 <= self.limit_bytes < self.buffered_bytes:
                await self.changed()
        except BaseException:
            self.close()
            raise
        if self.connection is not None:  # above the limit
            self.close()
            self.error = BodyTooLarge(self.limit_bytes)
