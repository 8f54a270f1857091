"""The reply side of HTTP/1.1: bytes in, one reply at a time out. No sockets, no clock.

Lives here: what counts as an acceptable reply, where it ends, and whether the connection may carry another one.
Elsewhere: sockets and timers (connection.py), who waits for the reply (response.py).

Rules
- httptools (llhttp, strict) finds the lines; we refuse what it accepts and we would not: other transfer codings than one
  `chunked`, versions other than 1.0 and 1.1, 101, statuses outside 100-999, heads above the bounds.
- 1xx replies are skipped, at most `MAX_INTERIM`.
- A reply to HEAD ends with its head; 204 and 304 do so by themselves.
- Whatever follows a reply's end (`can_reuse` is False then) was never asked for: it must not become the next answer.
- Bytes that do not become body are bounded: head, chunk extensions and trailers alike (`MAX_OVERHEAD_BYTES`)."""

from __future__ import annotations

from collections.abc import Callable

import httptools

from hookline.transport.errors import TransportError

MAX_OVERHEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_INTERIM = 10


class ReplyReader:
    """Reads the replies of one connection, one after the other: `start()`, `feed()` until `is_complete`, again."""

    __slots__ = (
        "_body_end",
        "_fault",
        "_feed_parser",
        "_interim_count",
        "_is_head_only",
        "_is_interim",
        "_is_surely_1_1",
        "_needs_new_parser",
        "_overhead_bytes",
        "_parser",
        "_raw_headers",
        "can_reuse",
        "has_begun",
        "headers",
        "http_version",
        "is_chunked",
        "is_complete",
        "is_eof_delimited",
        "on_body",
        "on_header",
        "parts",
        "reason",
        "status",
    )

    def __init__(self) -> None:
        self.parts: list[bytes] = []  # body bytes since the caller last emptied it
        self._raw_headers: list[tuple[bytes, bytes]] = []
        # httptools calls these once per header and per body piece: a C method and a closure without attribute look-ups.
        self.on_body: Callable[[bytes], None] = self.parts.append
        self.on_header = _collect_into(self._raw_headers)
        self._needs_new_parser = True
        self.start(is_head_request=False)

    def start(self, *, is_head_request: bool) -> None:
        """Get ready for the reply to the next request."""
        if self._needs_new_parser:
            self._parser = httptools.HttpResponseParser(self)
            self._feed_parser = self._parser.feed_data
            self._needs_new_parser = False
        self.status = 0
        self.reason = b""
        self.http_version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = self.is_eof_delimited = self.is_chunked = self.can_reuse = False
        self.has_begun = False  # some byte of a reply that is no interim one
        self._is_head_only = is_head_request
        self._is_interim = self._is_surely_1_1 = False
        self._interim_count = self._overhead_bytes = self._body_end = 0
        self._fault = ""
        self._raw_headers.clear()
        self.parts.clear()

    def feed(self, data: bytes) -> None:
        """Take what arrived; look at `status` (0 = no head yet) and `is_complete` afterwards, and empty `parts`.

        Raises TransportError("garbage")."""
        if not self.status:
            if not self._overhead_bytes:
                self._is_surely_1_1 = data.startswith(b"HTTP/1.1 ")
            if len(data) > MAX_OVERHEAD_BYTES:
                self._check_large_head(data)
        parts = self.parts
        try:
            self._feed_parser(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_complete:
                raise _garbage(str(error)) from None
            self.can_reuse = False
        if self._fault:
            raise _garbage(self._fault)
        if self.is_complete:
            if len(parts) > self._body_end:
                del parts[self._body_end :]
                self.can_reuse = False
            elif self.can_reuse and (data[-1] in b"\r\n" or self._is_head_only) and self._has_stray_end(data):
                self.can_reuse = False
        elif not parts:
            self._overhead_bytes += len(data)
            if self._overhead_bytes > MAX_OVERHEAD_BYTES:
                raise _garbage(f"more than {MAX_OVERHEAD_BYTES} bytes of head or trailers")

    def end(self) -> bool:
        """The upstream closed its side. True if that completes the reply."""
        self.can_reuse = False
        if self.is_eof_delimited:
            self.is_complete = True
        return self.is_complete

    def discard(self) -> None:
        """No more replies: let go of the parser, which holds this object, so that no garbage collector is needed."""
        del self._parser, self._feed_parser

    # Called by httptools.

    def on_message_begin(self) -> None:
        self.has_begun = True
        if self.is_complete:
            self.can_reuse = False

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_headers_complete(self) -> None:
        if self.is_complete:
            return
        parser, raw_headers = self._parser, self._raw_headers
        status = parser.get_status_code()
        if status < 200:
            self._skip_interim(status)
            return
        headers = self.headers = raw_headers[:]
        raw_headers.clear()
        self.can_reuse = parser.should_keep_alive()
        if not self._is_surely_1_1:  # asking the parser costs as much as three headers
            self.http_version = parser.get_http_version()
        is_delimited = status == 204 or status == 304
        for name, value in headers:
            if name == b"content-length":
                is_delimited = True
            elif name == b"transfer-encoding":
                self._note_coding(value)
                is_delimited = True
        if len(headers) > MAX_HEADERS:
            self._fault = f"more than {MAX_HEADERS} headers"
        if self.http_version != "1.1":
            self._note_old_version()
        self.is_eof_delimited = not is_delimited
        self.status = status
        self._overhead_bytes = 0
        if self._is_head_only:
            self.is_complete = self._needs_new_parser = True
            self.is_eof_delimited = False

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = self.has_begun = False
            return
        if not self.is_complete:
            self.is_complete = True
            self._body_end = len(self.parts)
        elif self._is_head_only and self.is_chunked:
            self.can_reuse = False  # an empty chunked body where there must be none

    def _skip_interim(self, status: int) -> None:
        self._interim_count += 1
        if status < 100 or status == 101:
            self._fault = f"status {status} was never asked for"
        elif self._interim_count > MAX_INTERIM:
            self._fault = f"more than {MAX_INTERIM} interim replies"
        self._is_interim = True
        self._is_surely_1_1 = False
        self.reason = b""
        self._raw_headers.clear()

    def _note_coding(self, value: bytes) -> None:
        if self.is_chunked or value.strip().lower() != b"chunked":
            self._fault = "a transfer coding other than chunked"
        self.is_chunked = True

    def _note_old_version(self) -> None:
        if self.http_version != "1.0":
            self._fault = f"HTTP version {self.http_version}"
        elif self.is_chunked:  # RFC 9112, 6.1: framing of such a reply cannot be trusted beyond its end
            self.can_reuse = False

    def _check_large_head(self, data: bytes) -> None:
        if data.find(b"\r\n\r\n", 0, MAX_OVERHEAD_BYTES) < 0:
            raise _garbage(f"a head of more than {MAX_OVERHEAD_BYTES} bytes")

    def _has_stray_end(self, data: bytes) -> bool:
        # llhttp skips newlines before a status line without a word, so they are looked for at the end of the reply.
        # In a piece too short to tell they pass: alone they cannot change the next answer.
        if self.parts and not self.is_chunked:
            return not data.endswith(self.parts[-1])
        return len(data) >= 5 and (not data.endswith(b"\r\n\r\n") or data[-5] in b"\r\n")


def _collect_into(raw_headers: list[tuple[bytes, bytes]]) -> Callable[[bytes, bytes], None]:
    append = raw_headers.append

    def on_header(name: bytes, value: bytes) -> None:
        append((name.lower(), value))

    return on_header


def _garbage(what: str) -> TransportError:
    return TransportError("garbage", f"not an acceptable HTTP reply: {what}", is_written=True)
