"""What can go wrong between us and an upstream.

Lives here: `TransportError` and the table of its kinds. Elsewhere: which kinds may be retried or fall back (the chain decides).
Idea: one class, because callers do the same thing with all of them and look at two facts: what kind, and whether any byte
of the request may have reached the upstream (`is_written`); before that a second try can do no harm."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "connect",  # no TCP connection: refused, unreachable, name not found, pool closed
    "tls",  # the handshake or a TLS record failed
    "reset",  # the connection ended before the reply did
    "garbage",  # what came is not an acceptable HTTP/1.x reply
    "connect_timeout",  # resolving, connecting and the TLS handshake took longer than connect_s
    "first_byte_timeout",  # request written, no byte of a reply within first_byte_s
    "idle_timeout",  # the reply began and then stalled for idle_s
    "total_timeout",  # the whole exchange took longer than total_s
    "throughput_timeout",  # the reply came with less than min_bytes_per_s
    "pool_timeout",  # no connection became free within pool_s, or too many wait already
    "write_timeout",  # the upstream did not take the request within write_s
]


class TransportError(Exception):
    """An exchange with an upstream failed.

    `kind` is one of `Kind`; `is_written` says whether any byte of the request may have reached the socket.
    The message names the upstream and never holds header values or bodies."""

    def __init__(self, kind: Kind, message: str, *, is_written: bool = False) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.is_written = is_written


class BodyTooLarge(TransportError):
    """A reply's body is larger than the caller allowed (`read(max_bytes)`, `decoded(..., max_bytes)`)."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__("garbage", f"reply body is larger than {limit_bytes} bytes", is_written=True)
        self.limit_bytes = limit_bytes
