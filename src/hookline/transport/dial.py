"""From a host name to a connected, encrypted socket.

Lives here: resolving, trying several addresses, the TLS handshake, and the connect timeout over all of it.
Elsewhere: certificates (tls.py), what is spoken afterwards (connection.py).
Idea: addresses are tried in order, families taking turns; the next one starts when the last failed or is `STAGGER_S` old,
and the first that connects wins (RFC 8305). uvloop's create_connection has no such thing, so it is written out here."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

from hookline.transport.errors import TransportError

STAGGER_S = 0.25
MAX_ADDRESSES = 8

Address = tuple[int, tuple[str, int] | tuple[str, int, int, int]]  # family and sockaddr
Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]
P = TypeVar("P", bound=asyncio.BaseProtocol)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect. `name` is for messages."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    server_hostname: str | None  # set if and only if tls is

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Ask the system's resolver, for names; numbers need no thread. Raises OSError."""
    if "%" not in host:
        for family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):
                socket.inet_pton(family, host)
                return [(family, (host, port))]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # an empty label, or one of more than 63 characters
        raise OSError(f"{host!r} is not a host name") from error
    return [(family, address) for family, _, _, _, address in found if isinstance(address[0], str)]


async def dial(origin: Origin, resolver: Resolver, connect_s: float, make_protocol: Callable[[], P]) -> P:
    """Connect and return the protocol. Raises TransportError: connect, tls or connect_timeout."""
    stage = "connect"
    try:
        async with asyncio.timeout(connect_s) as limit:
            addresses = in_turns(await resolver(origin.host, origin.port))
            sock = await connect_first(addresses)
            stage = "tls" if origin.tls is not None else "connect"
            # From here on the transport owns the socket and closes it, also if the handshake fails or we are cancelled.
            _, protocol = await asyncio.get_running_loop().create_connection(
                make_protocol, sock=sock, ssl=origin.tls, server_hostname=origin.server_hostname
            )
            return protocol
    except OSError as error:  # TimeoutError and ssl.SSLError are OSErrors too
        if limit.expired():
            raise TransportError("connect_timeout", f"no connection to {origin.name} within {connect_s:g} s") from error
        if stage == "tls":
            raise TransportError("tls", f"TLS handshake with {origin.name} failed: {_reason(error)}") from error
        raise TransportError("connect", f"cannot connect to {origin.name}: {_reason(error)}") from error


def in_turns(addresses: Sequence[Address]) -> list[Address]:
    """The first `MAX_ADDRESSES`, families alternating, beginning with the resolver's first choice."""
    if not addresses:
        raise OSError("the name has no address")
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = chain.from_iterable(zip_longest(first, other))
    return [address for address in pairs if address is not None][:MAX_ADDRESSES]


async def connect_first(addresses: Sequence[Address]) -> socket.socket:
    """A socket connected to the first address that answers. Raises the first address's OSError if none does."""
    if len(addresses) == 1:
        return await connect_one(addresses[0])
    pending: set[asyncio.Task[socket.socket]] = set()
    errors: list[OSError] = []
    try:
        for number, address in enumerate(addresses, start=1):
            pending.add(asyncio.create_task(connect_one(address)))
            patience_s = STAGGER_S if number < len(addresses) else None
            while pending:
                done, pending = await asyncio.wait(pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                winner = _pick(done, errors)
                if winner is not None:
                    return winner
                if number < len(addresses):
                    break
    finally:
        for task in pending:
            task.cancel()
            task.add_done_callback(_close_late_winner)
    raise errors[0]


async def connect_one(address: Address) -> socket.socket:
    """Connect to one address. Raises OSError."""
    family, sockaddr = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _pick(done: set[asyncio.Task[socket.socket]], errors: list[OSError]) -> socket.socket | None:
    winner: socket.socket | None = None
    for task in done:
        error = task.exception()
        if isinstance(error, OSError):
            errors.append(error)
        elif error is not None:
            raise error
        elif winner is None:
            winner = task.result()
        else:
            task.result().close()
    return winner


def _close_late_winner(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    return error.strerror or str(error) or type(error).__name__
