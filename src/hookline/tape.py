"""A tape: a body that is written once and read by many, each from its beginning.

Lives here: the chunks, the readers, the bound. Elsewhere: whose body it is (flights.py, delivery.py).
Idea: chunks are a chain, and a reader holds the link it stands at. So what nobody has still to read is freed by itself, and writing never waits for a reader.
Most tapes are never read on the way: until somebody does, chunks are a list.

The bound. The beginning is kept for readers to come while the whole is at most `max_bytes`; beyond that nobody joins any more, and a reader that is more than
`max_bytes`, but at least BEHIND_BYTES, behind is cut. So that is what a tape holds at most, and what it got last. Who writes may ask how far the first of its readers is
(`nearest_bytes`), to write no faster than one of them reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hookline.errors import ClientGone

BEHIND_BYTES = 4 << 20
JOINED_BYTES = 64 * 1024
"""What has piled up is handed over in pieces of about this size."""


class Cut(Exception):
    """The body ended before its end, and whoever wrote it can't say more."""


class _Link:
    __slots__ = ("at", "chunk", "following")

    def __init__(self, chunk: bytes, at: int) -> None:
        self.chunk = chunk
        self.at = at
        """How many bytes there are up to the end of this chunk."""
        self.following: _Link | None = None


class Tape:
    """Written by one, read by many. `is_complete` is None until it has ended."""

    __slots__ = (
        "_error",
        "_first",
        "_last",
        "_readers",
        "_unlinked",
        "is_complete",
        "is_whole",
        "max_bytes",
        "size_bytes",
    )

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.is_complete: bool | None = None
        self.is_whole = True
        """The beginning is still there: one may join."""
        self.size_bytes = 0
        self._unlinked: list[bytes] | None = []
        """All chunks, while nobody has read; None: they are links."""
        self._last = _Link(b"", 0)
        self._first: _Link | None = self._last
        self._readers: list[TapeReader] = []
        self._error: BaseException | None = None

    @property
    def nearest_bytes(self) -> float:
        """How far the reader that is furthest is behind; inf if there is none."""
        return min((self._last.at - reader.at for reader in self._readers), default=float("inf"))

    def feed(self, chunk: bytes) -> None:
        """Write. Empty chunks are nothing; what comes after the end is dropped."""
        if not chunk or self.is_complete is not None:
            return
        size_bytes = self.size_bytes = self.size_bytes + len(chunk)
        unlinked = self._unlinked
        if unlinked is not None:
            unlinked.append(chunk)
            if size_bytes > self.max_bytes:
                self.is_whole = False
                unlinked.clear()
            return
        link = self._link(chunk, size_bytes)
        if size_bytes > self.max_bytes:
            self.is_whole, self._first = False, None
            behind_bytes = max(self.max_bytes, BEHIND_BYTES)
            for reader in [r for r in self._readers if link.at - r.at > behind_bytes]:
                reader.cut(ClientGone("the client reads too slowly for a reply that others share"))
        for reader in self._readers:
            reader.wake()

    def end(self, is_complete: bool, error: BaseException | None = None) -> None:
        """No more comes, once. Readers get `error`, or Cut, where it is not complete."""
        if self.is_complete is None:
            self.is_complete, self._error = is_complete, None if is_complete else error or Cut()
            for reader in self._readers:
                reader.wake()

    def read(self, left: Callable[[], None] | None = None) -> TapeReader:
        """A reader from the beginning; `left` is called once, when it is closed. Raises ValueError if the beginning is gone."""
        if not self.is_whole or self._first is None:
            raise ValueError("the beginning of this tape is gone")
        unlinked, self._unlinked = self._unlinked or (), None
        for chunk in unlinked:
            self._link(chunk, self._last.at + len(chunk))
        reader = TapeReader(self, self._first, left)
        self._readers.append(reader)
        return reader

    def whole(self) -> bytes | None:
        """Everything written so far, or None if its beginning is gone."""
        if not self.is_whole or self._first is None:
            return None
        if self._unlinked is not None:
            return b"".join(self._unlinked)
        chunks, link = [], self._first.following
        while link is not None:
            chunks.append(link.chunk)
            link = link.following
        return b"".join(chunks)

    def _link(self, chunk: bytes, at: int) -> _Link:
        link = self._last.following = _Link(chunk, at)
        self._last = link
        return link


class TapeReader:
    """One reader: an async iterator of bytes. Close it on every way out."""

    __slots__ = ("_cut", "_left", "_link", "_tape", "_waiter")

    def __init__(self, tape: Tape, link: _Link, left: Callable[[], None] | None) -> None:
        self._tape = tape
        self._link = link
        self._left = left
        self._cut: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def at(self) -> int:
        """How many bytes it has read."""
        return self._link.at

    def __aiter__(self) -> TapeReader:
        return self

    async def __anext__(self) -> bytes:
        while True:
            if self._cut is not None:
                raise self._cut
            if self._link.following is not None:
                return self._take()
            tape = self._tape
            if tape.is_complete is not None:
                if tape._error is not None:
                    raise tape._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def cut(self, error: BaseException) -> None:
        """End this reader with `error`; what it has not read yet is dropped."""
        if self._cut is None:
            self._cut = error
            self._link = self._tape._last
            if self in self._tape._readers:
                self._tape._readers.remove(self)
            self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Leave. May be called twice."""
        self.cut(Cut())
        if self._left is not None:
            left, self._left = self._left, None
            left()

    async def aclose(self) -> None:
        self.close()

    def _take(self) -> bytes:
        """What is there, joined up to JOINED_BYTES."""
        link = self._link.following
        assert link is not None
        self._link = link
        if link.following is None:
            return link.chunk
        chunks, size_bytes = [link.chunk], len(link.chunk)
        while link.following is not None and size_bytes < JOINED_BYTES:
            link = link.following
            chunks.append(link.chunk)
            size_bytes += len(link.chunk)
        self._link = link
        return b"".join(chunks)
