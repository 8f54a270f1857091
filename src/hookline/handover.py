"""Handing the listening socket from one server to its successor, so that no connection is refused while the program is replaced.

Lives here: both ends of the talk on the Unix socket `[server] handover_socket`. Elsewhere: new workers of the same server (supervisor.py), draining (app.py).
Idea: the successor gets the socket, not the port: whoever accepts, the kernel's queue of connections is one. The former server goes on until the
successor says that it is ready; a successor that dies before has changed nothing. Where the two may not run side by side, the former one has to end before the
successor can start: so it stays, without serving, until the successor says that it serves, and serves again if that dies instead.

| successor                         | former server                                                |
|-----------------------------------|--------------------------------------------------------------|
| connects                          | sends the socket, and whether another may run beside it      |
| both may: starts, serves, READY   | drains and ends                                              |
| else: DRAIN, waits for ENDED      | drains, ENDED, waits; connections wait in the queue          |
| then: starts, serves, READY       | ends                                                         |
| dies before READY                 | serves on, or again; does not once it has been told to stop  |

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
from hookline.launch import READY, find_address

log = logging.getLogger("hookline.handover")

ANSWER_WITHIN_S = 10.0
READY_WITHIN_S = 120.0
"""How long a successor may take to start."""
DRAIN, ENDED = b"drain\n", b"ended\n"
MESSAGE_BYTES_MAX = 1024
PEER = struct.Struct("3i")
"""Linux's `struct ucred`: pid, uid, gid."""


def socket_path(settings: Settings) -> Path | None:
    """Where `[server] handover_socket` is, relative to proxy.toml."""
    name = settings.server.handover_socket
    return None if name is None else settings.source.directory / name


def may_overlap(settings: Settings, *, keeps_state: bool) -> bool:
    """Whether two servers may run side by side without counting apart. `keeps_state`: a plugin in the chain needs shared state."""
    return settings.state.shared != "memory" or not keeps_state


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
            self._connection.sendall(DRAIN)
            self._connection.settimeout(None)
            self._connection.recv(len(ENDED))  # or nothing: it was killed

    def retire(self) -> None:
        """We serve: it may end, and drain before if it has not."""
        with contextlib.suppress(OSError):
            self._connection.sendall(READY)
        self._connection.close()


def take_over(settings: Settings, host: str, port: int, *, overlaps: bool) -> Predecessor | None:
    """Ask the server at `[server] handover_socket` for its listening socket. None if none runs there. `overlaps`: we may run beside another server.

    Raises StartupError: no such option, not answered, or it listens on another address than `host`, or another port than `port` (0: any)."""
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
    try:
        _check_address(listener, host, port, path)
    except BaseException:
        connection.close()
        listener.close()
        raise
    return Predecessor(connection, listener, overlaps=bool(told.get("may_overlap")) and overlaps)


def _check_address(listener: socket.socket, host: str, port: int, path: Path) -> None:
    """Who may be served without a key hangs on the host: what is said of it must be true of the socket."""
    at, its_port = listener.getsockname()[:2]
    wanted = find_address(host, port)[1][0]
    if port not in (0, its_port):
        what = f"port {its_port}, not on {port}"
    elif at != wanted:
        what = f"{at}, not on {wanted}"
    else:
        return
    raise StartupError([f"can't take over: the server at {path} listens on {what}; restart to change it"])


class HandoverDesk:
    """Our end for a successor: listens at the path until `close`."""

    def __init__(
        self, path: Path, listener: socket.socket, *, may_overlap: Callable[[], bool], on_taken: Callable[[], None]
    ) -> None:
        """In: the listening socket to give away, which is closed by `disown` only; whether another server may run beside us; `on_taken` is called once, when the successor is ready.

        Raises StartupError if the path can't be used."""
        self._path = path
        self._listener = listener
        self._may_overlap = may_overlap
        self._on_taken = on_taken
        self._desk, self._inode = _bind(path)
        self._heir: socket.socket | None = None
        """The successor, where it has not said yet that it serves."""
        self._is_disowned = False
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def close(self) -> None:
        """Take no more successors."""
        self._task.cancel()
        self._desk.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # else it is the successor's already
                self._path.unlink()

    def disown(self) -> None:
        """We have been told to stop: nobody gets the socket, and whatever becomes of a successor that has it, we don't serve again."""
        self._listener.close()  # it would go on queueing connections that nobody accepts
        self._is_disowned = True

    def is_orphaned(self) -> bool:
        """Our state is closed: let the successor start. True if it ended before it served, so that nobody does. Blocks."""
        heir = self._heir
        if heir is None:
            return False
        try:
            with heir:
                heir.settimeout(READY_WITHIN_S)
                heir.sendall(ENDED)
                if self._is_disowned or heir.recv(len(READY)) == READY:
                    return False
        except TimeoutError:
            log.error("the successor has not said within %g s that it serves; ending all the same", READY_WITHIN_S)
            return False
        except OSError:  # it ended so early that it did not read what we wrote
            if self._is_disowned:
                return False
        log.error("the successor ended before it served; serving again")
        return True

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._desk)
            try:
                told = await self._hand_over(connection)
            except (OSError, TimeoutError) as error:
                log.warning("a successor did not take over (%s); serving on", error or "it took too long")
                told = b""
            except BaseException:
                connection.close()
                raise
            if told == DRAIN:
                self._heir = connection
            else:
                connection.close()
            if told:
                log.info("a successor has taken over")
                self._on_taken()
                return

    async def _hand_over(self, connection: socket.socket) -> bytes:
        """READY, DRAIN, or nothing if it did not take over."""
        connection.setblocking(False)
        if not _may_take_over(connection):
            log.warning("another user asked to take over; refused")
            return b""
        told = json.dumps({"may_overlap": self._may_overlap()}).encode()
        socket.send_fds(connection, [told], [self._listener.fileno()])
        async with asyncio.timeout(READY_WITHIN_S):
            answer = await asyncio.get_running_loop().sock_recv(connection, len(READY))
        if answer in (READY, DRAIN):
            return answer
        log.warning("a successor ended before it was ready; serving on")
        return b""


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
