"""One downstream connection: requests in, replies out, in order.

Lives here: the request loop on aiohttp's C parser, deadlines, back pressure, lingering.
Elsewhere: one request and its reply (exchange.py), what the parser lets through and must not (http_faults.py), who answers (front_door.py), all connections together (http_front.py).
Idea: one task per connection runs its requests one after the other; everything that can go wrong with the bytes becomes an `ApiError`
that either breaks the body being read or is the connection's last reply.

`phase` says what the connection waits for, `deadline_at` until when; the front's one clock hand looks at them, so no timer is set per call:

| phase    | waits for                        | when time is up                           |
|----------|----------------------------------|-------------------------------------------|
| idle     | the first byte of a head         | close, silently                           |
| head     | the rest of it                   | 408, close                                |
| handling | the pipeline                     | (no deadline here: the call has its own)  |
| body     | more of a body somebody reads    | 408 to that reader                        |
| linger   | the client to see an early reply | abort                                     |
| closing  | the last bytes to leave          | (see `write_time_is_up`: cut if none did) |

aiohttp's RequestHandler is subclassed for its parser, its flow control and its WebSocket seam: an upgraded message has all that a
`BaseRequest(message, payload, connection, StreamWriter(connection, loop), task, loop)` needs, and `data_received` feeds `set_parser`'s reader."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final, Literal

from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from hookline.errors import ApiError, BadRequest, ClientGone, InternalError, RequestTimeout
from hookline.reply import Reply
from hookline.surfaces.exchange import Exchange
from hookline.surfaces.http_faults import count_head_bytes, find_fault, head_too_large, translate
from hookline.surfaces.socket_state import count_unacknowledged, has_hung_up, reset

if TYPE_CHECKING:
    from hookline.surfaces.http_front import HttpFront

log = logging.getLogger("hookline.surfaces")

Phase = Literal["idle", "head", "handling", "body", "linger", "closing"]

NEVER: Final = math.inf
READ_BUFFER_BYTES: Final = 131_072
"""Half of what a body may hold unread before reading pauses."""
WRITE_BUFFER_BYTES: Final = 262_144
"""What may wait for a slow reader before the pipeline's body is no longer iterated."""
HELD_BYTES_MAX: Final = 65_536
"""What may wait for the end of the loop's turn; beyond, the loop's own buffer and its limits take over."""
PIPELINE_MAX: Final = 4
"""Requests parsed ahead of their turn; beyond it reading pauses."""
DISCARDED_BYTES_MAX: Final = 1 << 30
"""What is read and thrown away after an early refusal, beside `linger_s`."""


class Connection(RequestHandler):
    """A client's connection. Made by `HttpFront` for each accepted socket."""

    __slots__ = (
        "_batch", "_discarded_bytes", "_fatal", "_head_bytes", "_head_until", "_held", "_held_bytes", "_is_deaf", "_last_payload", "_next_request", "_unsent_bytes",
        "deadline_at", "exchange", "front", "phase", "remote", "settings", "write_deadline_at",
    )  # fmt: skip

    def __init__(self, front: HttpFront, loop: asyncio.AbstractEventLoop) -> None:
        self.front = front
        self.settings = front.settings
        self.exchange: Exchange | None = None
        self.phase: Phase = "idle"
        self.deadline_at = NEVER
        self.write_deadline_at = NEVER
        self.remote: str | None = None
        self._fatal: ApiError | None = None
        self._head_bytes = 0
        """Arrived of a head that is not complete."""
        self._head_until = NEVER
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._batch = front.batch
        self._is_deaf = False
        self._discarded_bytes = 0
        self._unsent_bytes = 0
        self._last_payload: StreamReader = EMPTY_PAYLOAD
        self._next_request: asyncio.Future[None] | None = None
        super().__init__(
            front,
            loop=loop,
            keepalive_timeout=0,
            access_log=None,  # type: ignore[arg-type]
            max_line_size=self.settings.max_head_bytes,
            max_field_size=self.settings.max_head_bytes,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
        )
        self._max_msg_queue_size = PIPELINE_MAX
        self._msg_queue_resume_size = PIPELINE_MAX // 2

    @property
    def is_gone(self) -> bool:
        return self.transport is None

    @property
    def is_deaf(self) -> bool:
        """Nothing more that the client sends is looked at: this connection ends with the current reply."""
        return self._is_deaf

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.deadline_at = self._loop.time() + self.settings.keepalive_timeout_s
        peer = transport.get_extra_info("peername")
        self.remote = peer[0] if isinstance(peer, tuple) else None
        super().connection_made(transport)
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.deadline_at = self.write_deadline_at = NEVER
        self._break_body(BadRequest("the client left before the request's body was complete", code="client_gone"))
        if self.exchange is not None:
            self.exchange.client_closed()
        self._wake()

    def eof_received(self) -> None:
        self.flush()  # on return the transport closes, and takes nothing more

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._discard(data)
            return
        if self._payload_parser is not None or self._upgraded:
            super().data_received(data)
            return
        if self._parser is None:
            return
        is_head = self._last_payload.is_eof()
        try:
            messages, self._upgraded, _ = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self.fail(translate(error))
            return
        if messages:
            self._receive(messages, len(data))
        elif data and is_head:
            self._receive_part_of_head(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # The base class parses and resumes on every read of every body; there is only something to do after a pause.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    # -- what arrives

    def _receive(self, messages: list[tuple[RawRequestMessage, StreamReader]], arrived_bytes: int) -> None:
        if self._head_bytes + arrived_bytes > self.settings.max_head_bytes:
            for message, _ in messages:
                if count_head_bytes(message) > self.settings.max_head_bytes:
                    self.fail(head_too_large(self.settings.max_head_bytes))
                    return
        self._head_bytes = 0
        self._messages.extend(messages)
        self._last_payload = messages[-1][1]
        if len(self._messages) >= self._max_msg_queue_size and not self._buffer_paused:
            self._pause_reading_for_buffer()
        self._wake()

    def _receive_part_of_head(self, data: bytes) -> None:
        if not self._head_bytes:
            if not data.strip(b"\r\n"):  # some clients send an empty line after a body
                return
            self._head_until = self._loop.time() + self.settings.header_timeout_s
        self._head_bytes += len(data)
        if self.phase == "idle":
            self.phase = "head"
            self.deadline_at = self._head_until
        if self._head_bytes > self.settings.max_head_bytes:
            self.fail(head_too_large(self.settings.max_head_bytes))

    def _discard(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > DISCARDED_BYTES_MAX and self.phase == "linger":
            self.abort()

    def fail(self, error: ApiError) -> None:
        """The bytes can't be read any further: `error` goes to who reads the body, or is this connection's last reply."""
        self._is_deaf = True
        if not self._break_body(error):
            self._fatal = error
        self._wake()

    def _break_body(self, error: Exception) -> bool:
        payloads = [self._last_payload, self.exchange.payload if self.exchange is not None else EMPTY_PAYLOAD]
        unfinished = [payload for payload in payloads if not payload.is_eof()]
        for payload in unfinished:
            payload.set_exception(error)
        return bool(unfinished)

    def _wake(self) -> None:
        waiter = self._next_request
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- the request loop

    async def start(self) -> None:
        """Answer requests until the connection ends. Runs as the connection's one task."""
        try:
            while await self._has_request():
                message, payload = self._take_request()
                exchange = Exchange(self, message, payload)
                self.exchange = exchange
                try:
                    await self._serve(exchange)
                finally:
                    self.exchange = None
                if self.transport is None or not exchange.is_persistent:
                    break
            if self._fatal is not None and self.transport is not None and not self._messages:
                await self._send_fatal(self._fatal)
            self._end()
        except ClientGone:
            self.abort()
        except BaseException:
            self.abort()
            raise

    async def _has_request(self) -> bool:
        """Wait for the next request; False when there will be none."""
        if self._messages:
            return True
        if self._head_bytes:
            self.phase = "head"
            self.deadline_at = self._head_until
        else:
            self.phase = "idle"
            self.deadline_at = self._loop.time() + self.settings.keepalive_timeout_s
        front = self.front
        while not self._messages:
            if self._fatal is not None or self.transport is None or self._is_deaf:
                return False
            if front.is_draining:
                if front.idle_until <= self._loop.time():
                    return False
                self.deadline_at = min(self.deadline_at, front.idle_until)
            self._next_request = self._loop.create_future()
            try:
                await self._next_request
            finally:
                self._next_request = None
        return self.transport is not None

    def _take_request(self) -> tuple[RawRequestMessage, StreamReader]:
        message, payload = self._messages.popleft()
        self.phase = "handling"
        self.deadline_at = NEVER
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return message, payload  # type: ignore[return-value]

    async def _serve(self, exchange: Exchange) -> None:
        try:
            error = find_fault(exchange.message, exchange.payload)
            if error is not None:
                self._is_deaf = True
                await exchange.send_error(error)
                return
            await self.front.door.serve(exchange)
            if not exchange.is_started and self.transport is not None:
                raise RuntimeError("the request was served without a reply")
        except ClientGone:
            exchange.is_persistent = False
        except ApiError as error:
            await exchange.send_error(error)
        except Exception:
            log.exception("call %s: %s failed while it was answered", exchange.request_id, exchange.method)
            await exchange.send_error(InternalError("the gateway failed while answering this request; see its log"))

    async def _send_fatal(self, error: ApiError) -> None:
        self._is_deaf = True
        headers = CIMultiDictProxy(CIMultiDict[str]())
        message = RawRequestMessage("GET", "/", HttpVersion11, headers, (), True, None, False, False, URL("/"))
        await Exchange(self, message, EMPTY_PAYLOAD).send(Reply.from_error(error))

    # -- writing

    def write(self, data: bytes) -> None:
        """Send, in order: at the end of this turn of the loop, or at once if it is much. Then wait for `drained()` if `writing_paused`."""
        held = self._held
        if held:
            self._held_bytes += len(data)
        else:
            self._held_bytes = len(data)
            self._batch.add(self, self._loop)
        held.append(data)
        if self._held_bytes > HELD_BYTES_MAX:
            self.flush()

    def write_chunk(self, chunk: bytes) -> bool:
        """Send a chunk of a chunked body, as `write` does. False: the client is slow, or gone."""
        if self.transport is None:
            return False
        framed = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self._held or len(chunk) > HELD_BYTES_MAX:
            self.write(framed)
        else:
            self._held_bytes = len(framed)
            self._held.append(framed)
            self._batch.add(self, self._loop)
        return not self._paused

    def flush(self) -> None:
        """Write what is held."""
        held = self._held
        if len(held) == 1:
            data = held.pop()
            if self.transport is not None:
                self.transport.write(data)
        elif held:
            self._held = []
            if self.transport is not None:
                self.transport.writelines(held)

    async def drained(self) -> None:
        """Wait until a slow reader has made room. Raises ClientGone if it went, or took nothing for `write_timeout_s`."""
        transport = self.transport
        if transport is None:
            raise ClientGone("the client closed its connection")
        if not self._paused:
            return
        self._watch_writing(transport)
        try:
            await self._drain_helper()
        except ConnectionError as error:
            raise ClientGone("the client closed its connection") from error
        finally:
            self.write_deadline_at = NEVER
        if self.transport is None:
            raise ClientGone("the client closed its connection or stopped reading")

    def _watch_writing(self, transport: asyncio.Transport) -> None:
        self._unsent_bytes = count_unacknowledged(transport)
        self.write_deadline_at = self._loop.time() + self.settings.write_timeout_s

    # -- the end

    def close_when_idle(self, idle_s: float) -> None:
        """Close in `idle_s`, unless a request is being received or answered."""
        if self.phase != "idle" or self._messages:
            return
        if idle_s > 0:
            self.deadline_at = min(self.deadline_at, self._loop.time() + idle_s)
        else:
            self._close_now()

    def abort(self) -> None:
        """Cut the connection; what has not left is lost."""
        if self.transport is not None:
            self.transport.abort()

    def reset(self) -> None:
        """Cut the connection so that the client notices: a stream without framing would look complete otherwise."""
        self.flush()
        if self.transport is not None:
            reset(self.transport)

    def _end(self) -> None:
        """Close after the last reply; where the client may still be sending, so that it sees that reply before a reset."""
        self.flush()
        if self.transport is None:
            return
        if not self._is_deaf and not self._messages and self._last_payload.is_eof():
            self._close_now()
            return
        self._is_deaf = True
        self.phase = "linger"
        self.deadline_at = self._loop.time() + self.settings.linger_s
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._reading_paused = self._buffer_paused = False
        self._resume_transport_reading()

    def _close_now(self) -> None:
        self._is_deaf = True
        self.phase = "closing"
        self.deadline_at = NEVER
        self.flush()
        if self.transport is not None:
            self._watch_writing(self.transport)
            self.transport.close()

    # -- time

    def time_is_up(self, now: float) -> None:
        """Called by the front's clock hand when `deadline_at` has passed."""
        self.deadline_at = NEVER
        settings = self.settings
        if self.phase == "idle":
            self._close_now()
        elif self.phase == "head":
            self.fail(RequestTimeout(f"the request's head did not arrive within {settings.header_timeout_s:g} s"))
        elif self.phase == "body":
            self.fail(RequestTimeout(f"nothing of the request's body arrived for {settings.body_idle_timeout_s:g} s"))
        else:
            self.abort()

    def write_time_is_up(self, now: float) -> None:
        """Called by the clock hand: a reader that took nothing since is cut, a slow one gets as long again."""
        unsent_bytes = count_unacknowledged(self.transport) if self.transport is not None else 0
        if unsent_bytes < self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self.write_deadline_at = now + self.settings.write_timeout_s
        else:
            self.write_deadline_at = NEVER
            self.reset()

    def look_for_hangup(self) -> None:
        """While reading is paused, the event loop can't tell that the client has gone: ask the socket."""
        transport = self.transport
        if transport is not None and (self._reading_paused or self._buffer_paused) and has_hung_up(transport):
            transport.abort()
