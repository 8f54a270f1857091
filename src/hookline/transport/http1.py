"""The request side of HTTP/1.1: bytes of a head, framing of a body.

Lives here: `serialize_headers`, the request prefix, chunk framing. Elsewhere: reading replies (reply_reader.py), sockets
(connection.py).
Idea: whatever is serialised is checked here, once, so that nothing a client sent can end a line or start a second request."""

from __future__ import annotations

import re
from collections.abc import Iterable

LAST_CHUNK = b"0\r\n\r\n"

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, 5.5: no control characters; 0x80-0xff kept as they are
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")  # no space, no control character
# The pool writes these itself; a second one would be two answers to "where does this request end".
_OWN = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"))


def serialize_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines, each ended by CRLF, without the blank line.

    Raises ValueError for a name that is no token, a value with CR, LF, NUL or another control character, and for
    host, connection, upgrade, expect and framing headers, which the transport owns. The message never quotes the value."""
    lines: list[bytes] = []
    for name, value in headers:
        if _TOKEN.fullmatch(name) is None:
            raise ValueError(f"header name {name[:40]!r} has characters that HTTP does not allow")
        if name.lower() in _OWN:
            raise ValueError(f"header {name.decode()} is written by the transport; leave it out")
        if _VALUE.fullmatch(value) is None:
            raise ValueError(f"the value of header {name.decode()} has a control character; remove it")
        lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


def request_prefix(method: bytes, target: bytes, host: bytes) -> bytes:
    """Request line and host header. Raises ValueError for a method or target that would break the line."""
    if _TOKEN.fullmatch(method) is None or method == b"CONNECT":
        raise ValueError(f"method {method[:20]!r} cannot be sent upstream")
    if _TARGET.fullmatch(target) is None:
        raise ValueError("the request target is empty or has a space or control character; percent-encode it")
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, target, host)


def frame_chunk(piece: bytes) -> bytes:
    """One chunk of a chunked body. `piece` must not be empty: an empty chunk is the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
