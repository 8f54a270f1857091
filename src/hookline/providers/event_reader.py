"""Event reader: a streamed body as parsed events, for the translations that need each one.

Lives here: bytes to events with a bound on one event, and closing what was read. Elsewhere: framing (transport/sse.py), what events mean (anthropic_stream.py, responses_stream.py, completions_as_chat.py).
Idea: a relay never parses; only a translation comes here. Comments are told apart, because they keep a connection alive and go on as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

import orjson

from hookline.errors import UpstreamError
from hookline.transport import SseSplitter, parse_event

MAX_EVENT_BYTES = 16 << 20
DONE = b"[DONE]"


class ReadEvent(NamedTuple):
    """One event: its name, its data parsed (None: `[DONE]`, none, or text of a named event), and whether it is `[DONE]`. `comment` has the raw bytes of one that is only a comment."""

    name: str | None
    data: dict[str, Any] | None
    is_done: bool = False
    comment: bytes = b""


class TranslatedBody:
    """Events made of other bodies. Closing it closes these too, also when nobody has begun to read."""

    def __init__(self, events: AsyncGenerator[bytes, None], *bodies: object) -> None:
        self._events = events
        self._bodies = bodies

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        for body in self._bodies:
            await close(body)


async def read_events(
    body: AsyncIterator[bytes], deployment_id: str, *, are_objects: bool = False
) -> AsyncGenerator[ReadEvent, None]:
    """The events of a body, the last one also if its blank line is missing. Raises UpstreamError for one that is too large or no JSON object; closes the body.

    `are_objects`: those that have a name too; else one may be a vendor's ping."""
    splitter = SseSplitter()
    unfinished_bytes = 0
    try:
        async for chunk in body:
            blocks = splitter.feed(chunk)
            unfinished_bytes = unfinished_bytes + len(chunk) if not blocks else len(splitter.tail)
            for block in blocks:
                event = _read(block, are_objects=are_objects)
                if event is None:
                    raise UpstreamError(f"{deployment_id} sent an event that is no JSON object", kind="garbage")
                yield event
            if unfinished_bytes > MAX_EVENT_BYTES:
                message = (
                    f"{deployment_id} sent an event of more than {MAX_EVENT_BYTES} bytes, which can't be translated"
                )
                raise UpstreamError(message, kind="garbage")
        if (tail := splitter.tail) and (event := _read(tail, are_objects=are_objects)) is not None:
            yield event
    finally:
        await close(body)


async def close(body: object) -> None:
    """Abandon a body, if it is one that can be closed."""
    closing = getattr(body, "aclose", None)
    if closing is not None:
        await closing()


def _read(block: bytes, *, are_objects: bool) -> ReadEvent | None:
    """None: it can't be read."""
    event = parse_event(block)
    if event.is_comment_only:
        return ReadEvent(None, None, comment=block)
    if event.data.strip() == DONE:
        return ReadEvent(event.event, None, is_done=True)
    try:
        data = orjson.loads(event.data)
    except orjson.JSONDecodeError:
        data = None
    if isinstance(data, dict):
        return ReadEvent(event.event, data)
    must_be_object = bool(event.data.strip()) and (are_objects or event.event in (None, "error"))
    return None if must_be_object else ReadEvent(event.event, None)
