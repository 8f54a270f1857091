"""The beginning of a stream, read before its status leaves.

Lives here: how far to read, what counts as an error there, and a body whose head was read. Elsewhere: what an event means (openai_wire.py, content_filter.py), who relays (relay.py).
Idea: an error in the first event still counts as before the first byte, so it may fall back; for that a stream is held back until its first event is whole, 64 KiB have come,
or, while there is no event but at most comments, 50 ms have passed since its first byte. Where a filter's verdict is waited for, until something is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from hookline.call import Endpoint
from hookline.chat_view import EVENTS_OF_JSON
from hookline.content_filter import FILTERED, verdict_of
from hookline.openai_wire import error_in, parsed, said_in
from hookline.settling import end_tasks
from hookline.transport.errors import TransportError
from hookline.transport.sse import BOM, SseSplitter, parse_event

PEEK_BYTES = 64 * 1024
PEEK_S = 0.05
BLOCKS_MAX = 8
"""So many events of what was read are looked at; more than one came only because they arrived together."""


@dataclass(slots=True, eq=False)
class PeekedBody:
    """A stream whose beginning was read: the chunks so far, a read in flight if there is one, and the rest.

    `said_bytes`: what was said before the error that `peek` has found: it was made, so it may be billed. None: no event came before it."""

    rest: AsyncIterator[bytes]
    head: list[bytes]
    pending: asyncio.Task[bytes | None] | None = None
    said_bytes: int | None = None

    async def aclose(self) -> None:
        if self.pending is not None:
            await end_tasks({self.pending})
        await close_body(self.rest)


async def peek(body: PeekedBody, endpoint: Endpoint, *, sees_filter: bool = False) -> dict[str, Any] | None:
    """Read on up to the first event; `body.head` holds the first chunk. Returns the error object found, or None.

    `sees_filter`: read on until something is said, or a filter says that nothing will be. Raises what the upstream raises, TransportError(reset) if it ended
    before there was an event, and TransportError(garbage) if the first one can't be read, or is `[DONE]`."""
    head, is_json = body.head, endpoint in EVENTS_OF_JSON
    sees_filter = sees_filter and is_json
    if not _has_event(head[0]) or sees_filter:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PEEK_S
        while sum(map(len, head)) < PEEK_BYTES:
            whole = b"".join(head)
            if _has_event(whole) and not (sees_filter and _verdict(whole) is None):
                break
            waits = is_json and _has_begun(whole)
            body.pending = asyncio.ensure_future(_next(body.rest))
            await asyncio.wait({body.pending}, timeout=None if waits else max(give_up_at - loop.time(), 0.0))
            if not body.pending.done():
                break
            chunk, body.pending = body.pending.result(), None
            if chunk is None:
                _check_unfinished(b"".join(head))
                break
            head.append(chunk)
    whole = b"".join(head) if len(head) > 1 else head[0]
    if b"error" in head[0] or len(head) > 1:
        for block in _blocks(whole)[:BLOCKS_MAX]:
            if told := error_in(block):
                return told
            if data := parse_event(block).data:
                body.said_bytes = (body.said_bytes or 0) + (said_in(parsed(block)) if is_json else len(data))
    if is_json:
        _check_first(whole, every_event=endpoint == "responses")
    return FILTERED if sees_filter and _verdict(whole) == "filtered" else None


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


def _has_begun(head: bytes) -> bool:
    """Whether an event has come, or half of one: bytes that won't leave before the rest of it. What is no event stream raises TransportError(garbage)."""
    start = head.removeprefix(BOM).lstrip(b"\r\n")[:1]
    if start and start != b":" and not start.isalpha() and not BOM.startswith(head):
        raise TransportError("garbage", "what it calls an event stream is none", is_written=True)
    tail = _blocks(head)[-1].removeprefix(BOM)
    return _has_event(head) or (bool(tail) and not tail.startswith(b":"))


def _verdict(head: bytes) -> str | None:
    """What the first event with a verdict says."""
    blocks = SseSplitter().feed(head)
    events = [block for block in blocks if not parse_event(block).is_comment_only]
    return next((verdict for block in events if (verdict := verdict_of(parsed(block))) is not None), None)


def _blocks(head: bytes) -> list[bytes]:
    """The events in `head`, the last of them perhaps unfinished."""
    splitter = SseSplitter()
    return [*splitter.feed(head), splitter.tail]


def _check_unfinished(head: bytes) -> None:
    """A stream that ended within its first event may still have said all it had to say: then only the blank line is missing."""
    data = parse_event(_blocks(head)[-1]).data
    if not _has_event(head) and (not data or (data.startswith(b"{") and not _is_object(data))):
        raise TransportError("reset", "the upstream ended its stream before the first event", is_written=True)


def _check_first(head: bytes, *, every_event: bool) -> None:
    """Of the first event; one that has not come whole is a giant, and is believed. `every_event`: also one that has a name, which in chat may be a vendor's ping."""
    if head.startswith(b"data: {") and _is_object(head[6 : head.find(b"\n\n")]):  # nearly every stream
        return
    for block in _blocks(head) if len(head) < PEEK_BYTES else SseSplitter().feed(head):
        event = parse_event(block)
        if (data := event.data.strip()) and (event.event is None or every_event):
            if data == b"[DONE]":
                raise TransportError("garbage", "its stream ended before it said anything", is_written=True)
            if not _is_object(data):
                raise TransportError("garbage", "the first event of its stream is no JSON object", is_written=True)
            return


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(orjson.loads(data), dict)
    except orjson.JSONDecodeError:
        return False
