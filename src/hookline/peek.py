"""The beginning of a stream, read before its status leaves.

Lives here: how far to read, what counts as an error there, and a body whose head was read. Elsewhere: what an event means (openai_wire.py), who relays (relay.py).
Idea: an error in the first event still counts as before the first byte, so it may fall back; for that a stream is held back by at most one event,
64 KiB or 50 ms after its first byte, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from hookline.openai_wire import error_in
from hookline.settling import end_tasks
from hookline.transport.errors import TransportError
from hookline.transport.sse import SseSplitter, parse_event

PEEK_BYTES = 64 * 1024
PEEK_S = 0.05
BLOCKS_MAX = 8
"""So many events of what was read are looked at; more than one came only because they arrived together."""


@dataclass(slots=True, eq=False)
class PeekedBody:
    """A stream whose beginning was read: the chunks so far, a read in flight if there is one, and the rest.

    `seen_bytes`: what came before the error that `peek` has found. It was made, so it may be billed."""

    rest: AsyncIterator[bytes]
    head: list[bytes]
    pending: asyncio.Task[bytes | None] | None = None
    seen_bytes: int = 0

    async def aclose(self) -> None:
        if self.pending is not None:
            await end_tasks({self.pending})
        await close_body(self.rest)


async def peek(body: PeekedBody, *, is_json: bool = False) -> dict[str, Any] | None:
    """Read on up to the first event; `body.head` holds the first chunk. Returns the error object found, or None.

    `is_json`: its events hold JSON, or `[DONE]` at the end. Raises what the upstream raises, TransportError(reset) if it ended before there was an event,
    and TransportError(garbage) if the first one can't be read."""
    head = body.head
    if not _has_event(head[0]):
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PEEK_S
        while sum(map(len, head)) < PEEK_BYTES and not _has_event(b"".join(head)):
            body.pending = asyncio.ensure_future(_next(body.rest))
            await asyncio.wait({body.pending}, timeout=max(give_up_at - loop.time(), 0.0))
            if not body.pending.done():
                break
            chunk, body.pending = body.pending.result(), None
            if chunk is None:
                _check_unfinished(b"".join(head))
                break
            head.append(chunk)
    if b"error" in head[0] or len(head) > 1:
        for block in _blocks(b"".join(head))[:BLOCKS_MAX]:
            if told := error_in(block):
                return told
            body.seen_bytes += len(parse_event(block).data)
    if is_json:
        _check_json(b"".join(head) if len(head) > 1 else head[0])
    return None


async def close_body(body: Any) -> None:
    """Abandon a body that nobody will read on."""
    closing = getattr(body, "aclose", None)
    if closing is not None:
        await closing()


async def _next(body: AsyncIterator[bytes]) -> bytes | None:
    return await anext(body, None)


def _has_event(head: bytes) -> bool:
    """Whether a whole event other than a comment has arrived."""
    if head.startswith(b"data:") and b"\r" not in head:
        return b"\n\n" in head
    return any(not parse_event(block).is_comment_only for block in SseSplitter().feed(head))


def _blocks(head: bytes) -> list[bytes]:
    """The events in `head`, the last of them perhaps unfinished."""
    splitter = SseSplitter()
    return [*splitter.feed(head), splitter.tail]


def _check_unfinished(head: bytes) -> None:
    """A stream that ended within its first event may still have said all it had to say: then only the blank line is missing."""
    data = parse_event(_blocks(head)[-1]).data
    if not data or (data.startswith(b"{") and not _is_json(data)):
        raise TransportError("reset", "the upstream ended its stream before the first event", is_written=True)


def _check_json(head: bytes) -> None:
    """Of a whole first event; one that has not come whole is believed, as every later one is."""
    if head.startswith(b"data: {") and _is_json(head[6 : head.find(b"\n\n")]):  # nearly every stream
        return
    for block in SseSplitter().feed(head):
        event = parse_event(block)
        if (data := event.data) and event.event is None:  # what has a name may be a vendor's ping
            if not _is_json(data) and data.strip() != b"[DONE]":
                raise TransportError("garbage", "the first event of its stream is no JSON", is_written=True)
            return


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True
