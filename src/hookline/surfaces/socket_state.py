"""What only the kernel knows about a client's socket.

Lives here: has it hung up behind unread bytes, how much has it not acknowledged, a reset instead of an orderly end. Elsewhere: when that is
asked (http_server.py).
Idea: an event loop sees a socket through what it reads and writes; a slow client and a client that is gone look the same to it. Where a
platform can't answer, the answer is the one that cuts nobody."""

from __future__ import annotations

import array
import asyncio
import select
import socket
import struct
from contextlib import suppress

try:
    import fcntl
    import termios
except ImportError:  # not on Windows
    fcntl = termios = None  # type: ignore[assignment]


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Whether the client has reset the connection, or closed it behind bytes nobody has read."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0 or not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def count_unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes written and not acknowledged, ours and the kernel's: a slow reader empties megabytes of the kernel's before ours move."""
    in_kernel = array.array("i", [0])
    sock = transport.get_extra_info("socket")
    if sock is not None and fcntl is not None:
        with suppress(OSError):
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + in_kernel[0]


def reset(transport: asyncio.Transport) -> None:
    """Cut the connection so that the client notices, and the kernel forgets what the client would not read."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):  # the client was faster
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
