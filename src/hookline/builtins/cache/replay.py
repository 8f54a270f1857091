"""How fast a kept stream is told.

Lives here: at once, or with the pauses of the first time. Elsewhere: its bytes (entry.py).
Idea: the pauses are bounded together, so a hit is never slower than `replay_max_s`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

CHUNK_BYTES = 64 * 1024


async def at_once(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), CHUNK_BYTES):
        yield body[start : start + CHUNK_BYTES]


async def at_first_pace(body: bytes, marks: Sequence[Sequence[int]], max_s: float) -> AsyncIterator[bytes]:
    """`marks`: milliseconds after the first byte, and how many bytes had come by then."""
    total_s = marks[-1][0] / 1000
    slower = min(1.0, max_s / total_s) if total_s > 0 else 1.0
    sent, told_ms = 0, 0
    for at_ms, end in marks:
        if at_ms > told_ms:
            await asyncio.sleep((at_ms - told_ms) / 1000 * slower)
            told_ms = at_ms
        if end > sent and (chunk := body[sent:end]):
            yield chunk
            sent = end
    if rest := body[sent:]:
        yield rest


def marks_of(events: Sequence[bytes], took_ms: int) -> list[tuple[int, int]]:
    """Events that are made of a plain reply, spread evenly over the time that it took."""
    marks, size = [], 0
    for number, event in enumerate(events):
        size += len(event)
        marks.append((took_ms * number // max(len(events) - 1, 1), size))
    return marks
