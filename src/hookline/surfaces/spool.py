"""The spool: bodies too large to be one object, kept until the call ends.

Lives here: memory up to 1 MiB, then an unlinked temporary file; the bound on all of it together. Elsewhere: what is spooled and what
streams through (upload.py).
Idea: the file has no name from the start, so whatever ends the process, nothing is left behind. Disk I/O runs in a thread; a lock per
spool keeps a close (the client may go at any time) from pulling the file away under it."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from typing import IO, Final

from hookline.errors import Unavailable

log = logging.getLogger("hookline.surfaces")

MEMORY_BYTES: Final = 1 << 20
PIECE_BYTES: Final = 262_144


class SpoolRoom:
    """What all spools of this process may hold together, and the JSON bodies that took more than one read."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Raises Unavailable if there is no room."""
        if self.used_bytes + size_bytes > self.max_bytes:
            raise Unavailable(
                f"request bodies in progress fill the {self.max_bytes} bytes this gateway keeps for them; try again",
                code="spool_full",
                retry_after_s=2.0,
            )
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes


class Spool:
    """Bytes written once and read any number of times, also at the same time. Close it on every way out."""

    def __init__(self, room: SpoolRoom) -> None:
        self._room = room
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._file_bytes = 0
        self.size_bytes = 0
        self.is_closed = False

    async def write(self, data: bytes) -> None:
        """Append. Raises Unavailable if the spool room is full or the disk refuses."""
        self._room.take(len(data))
        self.size_bytes += len(data)
        self._memory += data
        if len(self._memory) > MEMORY_BYTES:
            batch, self._memory = self._memory, bytearray()
            try:
                await asyncio.to_thread(self._append, batch)
            except OSError as error:
                log.warning("an upload can't be kept: %s", error)  # it names folders of this machine
                raise Unavailable(
                    "the upload can't be kept; see the gateway's log", code="spool_full", retry_after_s=2.0
                ) from error
            self._file_bytes += len(batch)

    async def pieces(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to `end`."""
        position, end = start, self.size_bytes if end is None else end
        while position < end:
            if position < self._file_bytes:
                stop = min(end, self._file_bytes, position + PIECE_BYTES)
                piece = await asyncio.to_thread(self._read, position, stop)
            else:
                offset = position - self._file_bytes
                piece = bytes(self._memory[offset : min(end - self._file_bytes, offset + PIECE_BYTES)])
            if not piece:
                return
            position += len(piece)
            yield piece

    def close(self) -> None:
        """Forget everything and give the room back. May be called twice."""
        if self.is_closed:
            return
        self.is_closed = True
        self._room.give_back(self.size_bytes)
        self._memory = bytearray()
        with self._lock:
            if self._file is not None:
                self._file.close()

    def _append(self, batch: bytearray) -> None:
        with self._lock:
            if self.is_closed:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="hookline-", buffering=0)  # noqa: SIM115
            view = memoryview(batch)
            while view:
                view = view[self._file.write(view) :]

    def _read(self, position: int, stop: int) -> bytes:
        with self._lock:
            if self.is_closed or self._file is None:
                return b""
            return os.pread(self._file.fileno(), stop - position, position)
