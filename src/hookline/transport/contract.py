"""What every transport offers: one request in, one reply out, whatever carries the bytes.

Lives here: the `Transport` and `UpstreamResponse` protocols, and `Timeouts`. Elsewhere: HTTP/1.1 over a pool (pool.py); HTTP/2
or an upstream proxy would be another implementation of the same two protocols.
Idea: the caller hands over header lines it has serialised (and cached) itself; the transport adds only what framing needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each stage of one request may take, in seconds."""

    connect_s: float = 5.0  # name resolution, TCP and TLS together
    first_byte_s: float = 120.0  # request written -> first byte of the reply
    idle_s: float = 60.0  # between two arrivals of bytes of a reply
    write_s: float = 30.0  # without progress while the upstream does not read the request
    pool_s: float = 5.0  # waiting for a free connection
    total_s: float | None = None  # request begun -> last byte of the reply
    min_bytes_per_s: float = 0.0  # of a reply's body, averaged over ...
    throughput_window_s: float = 10.0  # ... so long


class UpstreamResponse(Protocol):
    """A reply whose head has arrived. Read it to its end or close it; an unread one holds its connection."""

    status: int
    reason: bytes
    http_version: str
    headers: list[tuple[bytes, bytes]]  # names in lower case, in order of arrival, duplicates kept
    is_eof_delimited: bool  # neither length nor chunks: the end of the connection is the end of the body

    @property
    def is_complete(self) -> bool:
        """Whether the last byte of the body has arrived (it may still be buffered)."""

    async def read(self, max_bytes: int | None = None) -> bytes:
        """The rest of the body. Raises `BodyTooLarge` above `max_bytes`, `TransportError` if the body was cut."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The rest of the body as it comes. Raises `TransportError` where the body was cut, after all that had arrived."""

    def buffered(self) -> bytes | None:
        """What has arrived and was not taken yet, without taking it; None if nothing has."""

    async def arrived(self, within_s: float) -> bool:
        """Wait until the body grows or ends, at most `within_s`. True if it did; takes nothing."""

    def close(self) -> None:
        """Abandon the reply. Its connection is closed unless the body is complete. May be called at any time."""

    async def aclose(self) -> None:
        """The same as `close()`, for `async with contextlib.aclosing(response)`."""


class Transport(Protocol):
    """Sends requests to one origin."""

    async def request(
        self,
        *,
        method: bytes,
        target: bytes,
        head: bytes,
        body: bytes | AsyncIterator[bytes] | None,
        timeouts: Timeouts,
        content_length: int | None = None,
    ) -> UpstreamResponse:
        """Send one request and return its reply as soon as the reply's head is there.

        `head` comes from `serialize_headers` and holds neither host nor framing. An iterator body goes out in chunks,
        or plain with `content_length`. Raises `TransportError`; cancelling closes the connection."""

    async def aclose(self) -> None:
        """Close every connection; waiting requests fail."""
