"""Handing the listening socket from one server to its successor, so that no connection is refused while the program is replaced.

Lives here: both ends of the talk on the Unix socket `[server] handover_socket`. Elsewhere: new workers of the same server (supervisor.py), draining (app.py).
Idea: the successor gets the socket, not the port: whoever accepts, the kernel's queue of connections is one. The former server goes on until the
successor says that it is ready; a successor that dies before has changed nothing.

| successor                         | former server                                              |
|-----------------------------------|------------------------------------------------------------|
| connects                          | sends the socket, and whether it shares its state          |
| both share: starts, serves, READY | drains and ends                                            |
| else: READY, waits for its end    | drains and ends; connections wait in the queue             |
| dies before READY                 | serves on                                                  |

Only the same user and root may take over: the socket's file is 0600, and the kernel is asked who connects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from hookline.config import Settings
from hookline.errors import StartupError
from hookline.launch import READY

log = logging.getLogger("hookline.handover")

ANSWER_WITHIN_S = 10.0
READY_WITHIN_S = 120.0
"""How long a successor may take to start."""
MESSAGE_BYTES_MAX = 1024
PEER = struct.Struct("3i")
"""Linux's `struct ucred`: pid, uid, gid."""


def socket_path(settings: Settings) -> Path | None:
    """Where `[server] handover_socket` is, relative to proxy.toml."""
    name = settings.server.handover_socket
    return None if name is None else settings.source.directory / name


def shares_state(settings: Settings) -> bool:
    """Whether two servers may run side by side without counting apart."""
    return settings.state.shared != "memory"


class Predecessor:
    """The server that we take over from. `listener` is its socket."""

    def __init__(self, connection: socket.socket, listener: socket.socket, *, overlaps: bool) -> None:
        self.listener = listener
        self.overlaps = overlaps
        self._connection = connection

    def wait_for_end(self) -> None:
        """Where two may not run side by side: have it drain, and wait until it has ended. Blocks."""
        log.info("taking over: the former server drains; connections wait until it has ended")
        with contextlib.suppress(OSError):
            self._connection.sendall(READY)
            self._connection.settimeout(None)
            while self._connection.recv(MESSAGE_BYTES_MAX):
                pass
        self._connection.close()

    def retire(self) -> None:
        """We serve: it may drain and end."""
        with contextlib.suppress(OSError):
            self._connection.sendall(READY)
        self._connection.close()


def take_over(settings: Settings, host: str, port: int) -> Predecessor | None:
    """Ask the server at `[server] handover_socket` for its listening socket. None if none runs there.

    Raises StartupError: no such option, not answered, or it listens on another port than `port` (0: any)."""
    path = socket_path(settings)
    if path is None:
        raise StartupError(
            [settings.source.problem(("server",), "`--takeover` needs `handover_socket`: the Unix socket to ask at")]
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_WITHIN_S)
    try:
        connection.connect(str(path))
        message, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES_MAX, 1)
        told = json.loads(message) if fds else {}
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        log.warning("there is no server to take over from at %s; starting as the first", path)
        return None
    except TimeoutError as error:
        connection.close()
        why = f"the server there did not answer within {ANSWER_WITHIN_S:g} s; is another successor starting?"
        raise StartupError([f"can't take over at {path}: {why}"]) from error
    except (OSError, ValueError) as error:
        connection.close()
        raise StartupError([f"can't take over at {path}: {error}"]) from error
    if not fds:
        connection.close()
        why = "the server there gave no socket; its log says why (only its own user and root may take over)"
        raise StartupError([f"can't take over at {path}: {why}"])
    listener = socket.socket(fileno=fds[0])
    listener.setblocking(False)
    address = listener.getsockname()
    if port not in (0, address[1]):
        connection.close()
        listener.close()
        raise StartupError(
            [f"can't take over: the server at {path} listens on port {address[1]}, not on {port}; restart to change it"]
        )
    return Predecessor(connection, listener, overlaps=bool(told.get("shares_state")) and shares_state(settings))


class HandoverDesk:
    """Our end for a successor: listens at the path until `close`."""

    def __init__(self, path: Path, listener: socket.socket, *, shares: bool, on_taken: Callable[[], None]) -> None:
        """In: the listening socket to give away; `on_taken` is called once, when the successor is ready.

        Raises StartupError if the path can't be used."""
        self._path = path
        self._listener = listener
        self._shares = shares
        self._on_taken = on_taken
        self._desk, self._inode = _bind(path)
        self._heirs: list[socket.socket] = []
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def close(self) -> None:
        """Take no more successors. The one that took over learns of our end by the end of this process."""
        self._task.cancel()
        self._desk.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # else it is the successor's already
                self._path.unlink()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._desk)
            try:
                is_taken = await self._hand_over(connection)
            except (OSError, TimeoutError) as error:
                log.warning("a successor did not take over (%s); serving on", error or "it took too long")
                is_taken = False
            except BaseException:
                connection.close()
                raise
            if is_taken:
                self._heirs.append(connection)
                log.info("a successor has taken over")
                self._on_taken()
                return
            connection.close()

    async def _hand_over(self, connection: socket.socket) -> bool:
        connection.setblocking(False)
        if not _may_take_over(connection):
            log.warning("another user asked to take over; refused")
            return False
        told = json.dumps({"shares_state": self._shares}).encode()
        socket.send_fds(connection, [told], [self._listener.fileno()])
        async with asyncio.timeout(READY_WITHIN_S):
            is_ready = await asyncio.get_running_loop().sock_recv(connection, len(READY)) == READY
        if not is_ready:
            log.warning("a successor ended before it was ready; serving on")
        return is_ready


def _may_take_over(connection: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the file's mode has to do
    _, uid, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return uid in (0, os.geteuid())


def _bind(path: Path) -> tuple[socket.socket, int]:
    """A listening Unix socket at `path` (in place of a former one), and its inode."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise StartupError([f"handover_socket: {path} is there already and is no socket"])
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    desk = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        desk.bind(str(beside))
        beside.chmod(0o600)
        desk.listen(1)
        desk.setblocking(False)
        inode = beside.stat().st_ino
        beside.rename(path)
    except OSError as error:
        desk.close()
        raise StartupError([f"handover_socket: can't listen at {path}: {error.strerror or error}"]) from error
    return desk, inode
