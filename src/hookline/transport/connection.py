"""One HTTP/1.1 connection: a socket that carries one exchange at a time.

Lives here: writing a request, feeding the reply, one timer, back-pressure both ways, and the decision whether the connection
may be used again. Elsewhere: which connection a request gets (pool.py), what a reply is (reply_reader.py), who waits
(response.py).

States: *idle* (`response` is None: any byte that arrives closes it) -> *held* (the request leaves at the end of this turn of the loop; what arrives or
ends before was not meant for it, and nothing was written) -> *writing* (the transport asked us to pause) -> *waiting* (no byte of a reply yet) -> *receiving* -> idle again, or gone. Gone is final and reached once, by `_leave()`.

The timer. Every arrival moves `_deadline`, which is one attribute; the timer is re-armed only when it fires too early, or when
the deadline moves before it. So a chunk costs no timer call, and a connection that is reused keeps its timer."""

from __future__ import annotations

import asyncio
import math
import select
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from hookline.transport.contract import Timeouts
from hookline.transport.errors import Kind, TransportError
from hookline.transport.exchange_watch import ExchangeWatch
from hookline.transport.reply_reader import ReplyReader
from hookline.transport.response import Http1Response
from hookline.transport.write_batch import WriteBatch

HIGH_WATER_BYTES = 256 * 1024  # unread body above which reading is paused; it goes on when the caller takes it
JOIN_BYTES = (
    64 * 1024
)  # up to here, head and body are copied into one write; above, a copy costs more than a second write
_EARLY_S = 0.002  # loop clocks tick in milliseconds, so a timer may fire this much too early


class Owner(Protocol):
    """Who gets the connection back."""

    def on_idle(self, connection: Connection) -> None:
        """The exchange ended cleanly; the connection may carry another."""

    def on_gone(self, connection: Connection) -> None:
        """The connection will carry nothing more. Called once."""

    def on_lost(self, connection: Connection) -> None:
        """The socket is closed. Called once, after `on_gone`."""


class Connection(asyncio.Protocol):
    """Created by a pool, connected by `loop.create_connection`."""

    def __init__(self, owner: Owner, peer: str, keepalive_s: float, batch: WriteBatch) -> None:
        self.response: Http1Response | None = None
        self.is_reading_paused = False
        self.is_write_paused = False
        self.is_gone = False  # will carry nothing more
        self.was_used = False  # has carried an exchange, so it may have died since
        self.holds_slot = False  # set and cleared by the owner
        self.is_uploading = False  # an iterator body is not fully handed over yet
        self._owner = owner
        self._peer = peer
        self._keepalive_s = keepalive_s
        self._batch = batch
        self._held: bytes | None = None  # a request that has not left
        self._reader = ReplyReader()
        self._timeouts = Timeouts()
        self._idle_s = math.inf  # of the exchange; without limit during an upload
        self._has_first_byte = False
        self._unsent_bytes = 0
        self._drained: asyncio.Future[None] | None = None
        self._deadline = self._fire_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._watch: ExchangeWatch | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.loop = asyncio.get_running_loop()
        self._now = self.loop.time
        self._poll = _poller(self._transport)

    # The exchange.

    def is_usable(self) -> bool:
        """Whether an idle connection may be asked: nobody has said yet that it is closed. `flush` looks once more."""
        return not (self.is_gone or self._transport.is_closing())

    def start(self, head: bytes, body: bytes | None, timeouts: Timeouts, *, is_head_request: bool) -> Http1Response:
        """Send a request and return its reply, which fills up from now on.

        A small one leaves at the end of this turn of the loop. If the connection turns out to be dead by then, the reply's error says that nothing was written."""
        self._reader.start(is_head_request=is_head_request)
        self._timeouts = timeouts
        self._idle_s = timeouts.idle_s
        self._has_first_byte = False
        response = self.response = Http1Response(self)
        self._set_deadline(self._now() + timeouts.first_byte_s)
        if timeouts.total_s is not None or timeouts.min_bytes_per_s:
            self._watch = ExchangeWatch(self, timeouts)
        if body is None or len(body) <= JOIN_BYTES:
            self._held = head + body if body else head
            self._batch.add(self, self.loop)
        else:
            self._held = head
            self.flush()
            if not self.is_gone:
                self._transport.write(body)
        return response

    def flush(self) -> None:
        """Write what is held. On a connection that was idle the kernel is asked at this very moment whether it still lives."""
        held = self._held
        if held is None:
            return
        if self.was_used and self._poll is not None and self._poll(0):
            self._fail("reset", "had closed, or spoken, before the request was written")
            return
        self._held = None
        self._transport.write(held)

    def write(self, piece: bytes) -> None:
        """One more piece of a body that is uploaded. Afterwards wait for `drained()` if `is_write_paused`."""
        self._transport.write(piece)

    def drained(self) -> asyncio.Future[None]:
        """A future that is done when the transport takes more. If the connection dies it never is: watch the response too."""
        drained = self._drained = self.loop.create_future()
        return drained

    def upload_started(self) -> None:
        """The request's head is written and pieces follow: silence of the upstream is no fault meanwhile."""
        self.is_uploading = True
        self._idle_s = math.inf
        if not self.is_write_paused:
            self._set_deadline(math.inf)

    def upload_ended(self) -> None:
        """The last piece is written: the upstream's time to answer begins."""
        self.is_uploading = False
        self._idle_s = self._timeouts.idle_s
        if not self.is_write_paused:
            self._set_deadline(self._now() + self._patience_s())

    def resume_reading(self) -> None:
        """The caller has taken what was buffered."""
        self.is_reading_paused = False
        if not self.is_gone and not self._transport.is_closing():
            self._transport.resume_reading()
            if not self.is_write_paused:
                self._set_deadline(self._now() + self._idle_s)

    def abort(self) -> None:
        """Close at once, whatever is going on. The reply in progress, if any, gets an error."""
        self._fail("reset", "was left before the end of its reply: we closed the connection")

    def fail(self, kind: Kind, what: str) -> None:
        """The exchange has broken a limit."""
        self._fail(kind, what)

    # Called by the transport.

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None or self._held is not None:  # nobody asked: these bytes must not become the next answer
            self._fail("reset", "spoke before it was asked")
            return
        reader = self._reader
        try:
            reader.feed(data)
        except TransportError as error:
            self._fail("garbage", f"sent what is {error}")
            return
        if not response.status:
            if not reader.status:
                self._has_first_byte = reader.has_begun
                self._progressed()
                return
            self._adopt_head(response)
            # A head alone is no first byte of the answer: the time for that goes on, unless silence breaks its own limit before.
            self._has_first_byte = self._has_first_byte or self._now() + self._idle_s < self._deadline
        take_piece = response.take_piece
        if parts := reader.parts:
            self._has_first_byte = True
            piece = b"".join(parts)  # of one part: itself, not a copy
            parts.clear()
            if take_piece is None:
                response.parts.append(piece)
                response.buffered_bytes += len(piece)
            elif not take_piece(piece):
                take_piece = response.take_piece = None
                response.wake()
            if self._watch is not None:
                self._watch.received(len(piece))
        if reader.is_complete:
            self._finish(response)
            return
        if (
            self._has_first_byte and not self.is_write_paused
        ):  # a request that is not taken stays late, however much comes back
            deadline = self._deadline = self._now() + self._idle_s
            if deadline < self._fire_at:
                self._arm(deadline)
        if take_piece is not None:
            return
        if not response.is_read_whole:
            if response.buffered_bytes > HIGH_WATER_BYTES:
                self._transport.pause_reading()
                self.is_reading_paused = True
            response.wake()
        elif 0 <= response.limit_bytes < response.buffered_bytes:
            response.wake()

    def eof_received(self) -> bool:
        self._end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._leave()
        self._reader.discard()
        self._owner.on_lost(self)

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._set_deadline(self._now() + self._timeouts.write_s)

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._set_deadline(math.inf if self.is_uploading else self._now() + self._patience_s())
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # How an exchange ends.

    def _adopt_head(self, response: Http1Response) -> None:
        reader = self._reader
        response.status = reader.status
        response.reason = reader.reason
        response.http_version = reader.http_version
        response.headers = reader.headers
        response.is_eof_delimited = reader.is_eof_delimited

    def _finish(self, response: Http1Response) -> None:
        self.response = None
        if self._watch is not None:
            self._end_watch()
        if self.is_reading_paused:
            self.resume_reading()
        # A reply that came before the request was fully written ends the connection: the rest would be read as a request.
        if self._reader.can_reuse and not self.is_uploading and not self._transport.get_write_buffer_size():
            self._set_deadline(self._now() + self._keepalive_s)
            self.was_used = True
            response.complete()
            self._owner.on_idle(self)
        else:
            response.complete()
            self._leave()

    def _end(self, exc: Exception | None) -> None:
        response = self.response
        if response is None:
            self._leave()
        elif exc is None and response.status and self._reader.end():
            self._finish(response)
        elif isinstance(exc, ssl.SSLError):
            self._fail("tls", f"broke TLS: {exc.reason or type(exc).__name__}")
        elif response.status:
            self._fail("reset", "closed the connection before the end of its reply")
        else:
            self._fail("reset", "closed the connection without a reply")

    def _fail(self, kind: Kind, what: str) -> None:
        response, self.response = self.response, None
        if self._watch is not None:
            self._end_watch()
        is_written, self._held = self._held is None, None
        if response is not None:
            response.fail(TransportError(kind, f"{self._peer} {what}", is_written=is_written))
        self._leave()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _leave(self) -> None:
        if self.is_gone:
            return
        self.is_gone = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        self._owner.on_gone(self)

    # The timer.

    def _patience_s(self) -> float:
        return self._idle_s if self._has_first_byte else self._timeouts.first_byte_s

    def _progressed(self) -> None:
        """Bytes before the reply's head is whole: part of it, or an interim reply, which is no first byte but a sign of life."""
        if not self.is_write_paused:
            self._set_deadline(math.inf if self.is_uploading else self._now() + self._patience_s())

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._fire_at:
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fire_at = deadline
        if deadline != math.inf and not self.is_gone:
            self._timer = self.loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._now() < self._deadline - _EARLY_S:
            self._arm(self._deadline)
        elif self.response is None:
            self._leave()  # kept alive long enough
        elif self.is_write_paused:
            self._check_write_progress()
        elif self.is_reading_paused:
            self._arm(math.inf)  # the caller is slow, not the upstream; resume_reading() sets the next deadline
        elif self._has_first_byte:
            self._fail("idle_timeout", f"sent nothing for {self._timeouts.idle_s:g} s in the middle of its reply")
        else:
            self._fail("first_byte_timeout", f"did not begin to answer within {self._timeouts.first_byte_s:g} s")

    def _check_write_progress(self) -> None:
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes >= self._unsent_bytes:
            self._fail("write_timeout", f"did not read the request for {self._timeouts.write_s:g} s")
            return
        self._unsent_bytes = unsent_bytes
        self._deadline = self._now() + self._timeouts.write_s
        self._arm(self._deadline)


def _poller(transport: asyncio.Transport) -> Callable[[float], list[tuple[int, int]]] | None:
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(select, "poll"):  # Windows: is_closing() alone must do
        return None
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return poller.poll
