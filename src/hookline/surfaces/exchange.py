"""One request and its reply on a connection.

Lives here: reading the body within limits, writing head and body, the request's id. Elsewhere: the connection's life and deadlines
(http_server.py), what the request means (openai.py, routes.py).
Idea: the head is bytes made here, once, and leaves together with the first bytes of the body in one write."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs
from aiohttp.http import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy, istr

from hookline.call import Call
from hookline.errors import ApiError, ClientGone, TooLarge
from hookline.relay import RelayedBody
from hookline.reply import Reply
from hookline.shared_body import SharedBody

if TYPE_CHECKING:
    from hookline.surfaces.http_server import Connection
    from hookline.surfaces.spool import SpoolRoom

log = logging.getLogger("hookline.surfaces")

X_REQUEST_ID: Final = istr("x-request-id")
OURS: Final = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "x-request-id"})
"""Reply headers that only the surface writes."""
STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
JOINED_BYTES_MAX: Final = 65_536
"""Up to here head and body are copied into one buffer; beyond, a second write is cheaper than the copy."""


class Exchange:
    """A request as it arrived, and the way to answer it once."""

    __slots__ = (
        "_has_continued", "call", "connection", "headers", "is_persistent", "is_started", "kept_bytes", "message",
        "method", "payload", "request_id",
    )  # fmt: skip

    def __init__(self, connection: Connection, message: RawRequestMessage, payload: StreamReader) -> None:
        self.connection = connection
        self.message = message
        self.payload = payload
        self.method: str = message.method
        self.headers: CIMultiDictProxy[str] = message.headers
        self.request_id = connection.front.ids.choose(message.headers.get(X_REQUEST_ID))
        self.call: Call | None = None
        """The call this became: it is told when the client goes."""
        self.is_started = False
        """The reply's head has been written."""
        self.is_persistent = True
        """The connection may carry another request after this one."""
        self.kept_bytes = 0
        """Taken from the spool's room for a body that is kept whole; the door gives it back."""
        self._has_continued = False

    @property
    def target(self) -> str:
        """The request target, byte for byte."""
        path: str = self.message.path
        return path

    @property
    def has_body(self) -> bool:
        return not self.payload.at_eof()

    @property
    def declared_bytes(self) -> int | None:
        """The body's length, if the client said it."""
        value = self.headers.get(hdrs.CONTENT_LENGTH)
        return int(value) if value is not None else None

    def client_closed(self) -> None:
        """Called by the connection when it is lost."""
        if self.call is not None and self.call.client_closed is not None:
            self.call.client_closed()

    # -- the body

    async def read_body(self, max_bytes: int, room: SpoolRoom | None = None) -> bytes:
        """The whole body. Raises TooLarge beyond `max_bytes`, Unavailable without room, RequestTimeout, BadRequest (broken framing), ClientGone."""
        payload = self.payload
        if payload.is_eof():
            body = payload.read_nowait()
            if len(body) > max_bytes:
                raise too_large(max_bytes)
            return body
        declared_bytes = self.declared_bytes
        if declared_bytes is not None and declared_bytes > max_bytes:
            raise too_large(max_bytes)
        pieces: list[bytes] = []
        size_bytes = 0
        while piece := await self.read_piece():
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                raise too_large(max_bytes)
            if room is not None:
                self.keep(piece, room)
            pieces.append(piece)
        return b"".join(pieces)

    def keep(self, piece: bytes, room: SpoolRoom) -> None:
        """Count a piece that stays in memory until the call ends. Raises Unavailable. What comes in one read is not counted: connections are bounded."""
        room.take(len(piece))
        self.kept_bytes += len(piece)

    async def read_piece(self) -> bytes:
        """The next bytes of the body, b"" at its end; raises like `read_body`. Nobody is asked to continue before this."""
        if not self._has_continued:
            self._continue()
        connection = self.connection
        connection.phase = "body"
        connection.deadline_at = connection._loop.time() + connection.settings.body_idle_timeout_s
        try:
            return await self.payload.readany()
        finally:
            connection.phase = "handling"
            connection.deadline_at = float("inf")

    def _continue(self) -> None:
        self._has_continued = True
        if (
            self.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
            and self.message.version is HttpVersion11
            and not self.is_started
            and not self.payload.is_eof()
            and self.connection.transport is not None
        ):
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # -- the reply

    async def send_error(self, error: ApiError) -> None:
        """Answer with the error, or, if another reply has begun, cut the connection."""
        if self.is_started:
            self.is_persistent = False
            self.connection.abort()
        else:
            await self.send(Reply.from_error(error))

    async def send(self, reply: Reply) -> None:
        """Write the reply: the surface's `deliver`. Raises ClientGone, and whatever the body's iterator raises."""
        connection = self.connection
        if connection.transport is None:
            self.is_persistent = False
            raise ClientGone("the client closed its connection")
        body = reply.body
        if not isinstance(body, bytes):
            await self._send_stream(reply, body)
            return
        head = self._make_head(reply, len(body))
        if self.method == "HEAD" or not body:
            connection.write(head)
        elif len(body) <= JOINED_BYTES_MAX:
            connection.write(head + body)
        else:
            connection.write(head)
            connection.write(body)
        if connection.writing_paused:
            await connection.drained()

    async def _send_stream(self, reply: Reply, body: AsyncIterator[bytes]) -> None:
        connection = self.connection
        head = self._make_head(reply, None)
        if self.method == "HEAD" or is_bodyless(reply.status):
            self._write(head)
            return
        is_chunked = self.message.version is HttpVersion11
        relayed = body if isinstance(body, RelayedBody | SharedBody) and is_chunked else None
        try:
            async for chunk in body:
                if connection.transport is None:
                    raise ClientGone("the client closed its connection")
                if chunk:
                    framed = b"%x\r\n%b\r\n" % (len(chunk), chunk) if is_chunked else chunk
                    connection.write(head + framed if head else framed)
                    head = b""
                    if relayed is not None:
                        relayed.sink = connection.write_chunk
                if connection.writing_paused:
                    await connection.drained()
        except BaseException:
            # No terminator: the client must be able to tell a cut reply from a complete one.
            self.is_persistent = False
            if head and connection.transport is not None:
                connection.write(head)
            if not is_chunked and not reply.is_event_stream:
                connection.reset()  # close-delimited: only a reset tells it
            raise
        finally:
            if relayed is not None:
                relayed.sink = None
        self._write(head + b"0\r\n\r\n" if is_chunked else head)
        if connection.writing_paused:
            await connection.drained()

    def _write(self, data: bytes) -> None:
        if self.connection.transport is None:
            raise ClientGone("the client closed its connection")
        if data:
            self.connection.write(data)

    def _make_head(self, reply: Reply, body_bytes: int | None) -> bytes:
        """Status line and headers. `body_bytes` None: chunked, or to the end of the connection for HTTP/1.0."""
        self.is_started = True
        connection = self.connection
        message = self.message
        front = connection.front
        is_http10 = message.version is HttpVersion10
        self.is_persistent = (
            not message.should_close
            and not message.upgrade
            and self.payload.is_eof()
            and not connection.is_deaf
            and not front.is_draining
            and not (is_http10 and body_bytes is None)
        )
        status = reply.status
        headers = reply.headers
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or _holds_ours(headers):
            lines = _write_what_may_pass(headers)
        if front.cors is not None:
            lines += front.cors.reply_lines(self.headers)
        if is_bodyless(status):
            framing = ""
        elif body_bytes is None:
            framing = "" if is_http10 else "transfer-encoding: chunked\r\n"
        else:
            framing = f"content-length: {body_bytes}\r\n" if body_bytes or self.method != "HEAD" else ""
        if not self.is_persistent:
            framing += "connection: close\r\n"
        elif is_http10:
            framing += "connection: keep-alive\r\n"
        first = STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
        date = "" if hdrs.DATE in headers else front.date_line()
        head = f"{first}{lines}{framing}x-request-id: {self.request_id}\r\n{date}\r\n"
        return head.encode("utf-8", "surrogateescape")


def is_bodyless(status: int) -> bool:
    """Statuses whose replies have no body and no length."""
    return status in (204, 304) or status < 200


def too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the request body is larger than {max_bytes} bytes, which is all this gateway accepts here")


def _holds_ours(headers: CIMultiDict[str]) -> bool:
    return (
        hdrs.CONTENT_LENGTH in headers
        or hdrs.TRANSFER_ENCODING in headers
        or hdrs.CONNECTION in headers
        or hdrs.KEEP_ALIVE in headers
        or X_REQUEST_ID in headers
    )


def _write_what_may_pass(headers: CIMultiDict[str]) -> str:
    lines: list[str] = []
    for name, value in headers.items():
        if name.lower() in OURS:
            continue
        line = f"{name}: {value}"
        if "\r" in line or "\n" in line:
            log.warning("reply header %r holds a line break and was not sent; whoever sets it must not", name)
            continue
        lines.append(line + "\r\n")
    return "".join(lines)
