"""A file of the ledger's journal.

Lives here: `Segment`, writing a line to it, reading whole lines, removing it, locks. Elsewhere: which files there are and whose (ledger_journal.py), what a line
is (journal_lines.py).
Idea: a line is in the file whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

CHUNK_BYTES = 1024 * 1024


class Segment:
    """One file. `size` and `open_intents` are changed by the appending thread only, `done` by the reading one."""

    __slots__ = ("done", "fd", "is_active", "is_damaged", "open_intents", "path", "size", "synced")

    def __init__(self, path: Path, fd: int, *, size: int, is_active: bool) -> None:
        self.path, self.fd, self.size, self.is_active = path, fd, size, is_active
        self.done = self.synced = self.open_intents = 0
        self.is_damaged = False


def write_line(segment: Segment, line: bytes) -> None:
    """One line, whole or not at all; `size` is the caller's to change. Raises OSError."""
    written = os.write(segment.fd, line)
    if written != len(line):
        os.ftruncate(segment.fd, segment.size)
        raise OSError(f"only {written} of {len(line)} bytes could be written")


def read_whole_lines(segment: Segment, size: int) -> bytes:
    """Lines from `done` on, about CHUNK_BYTES of them; empty if there is no whole line."""
    wanted = CHUNK_BYTES
    while True:
        chunk = os.pread(segment.fd, min(wanted, size - segment.done), segment.done)
        end = chunk.rfind(b"\n") + 1
        if end or len(chunk) < wanted:
            return chunk[:end]
        wanted *= 2


def discard(segment: Segment) -> None:
    with contextlib.suppress(OSError):
        if segment.is_damaged:
            segment.path.rename(segment.path.with_suffix(".damaged"))
        else:
            segment.path.unlink(missing_ok=True)


def lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
