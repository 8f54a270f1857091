"""Continuation: a stream that another deployment goes on with, so that the client sees one.

Lives here: what is changed in the events of who goes on; the usage of both in the last one. Elsewhere: whether to go on, and with which messages (builtins/fallback/continuation.py),
who asks the next deployment (attempts.py), what the client has got so far (relay.py).
Idea: the client was told an id, a model and a role, and must not be told others: SDKs join what deltas say, the role too. Only continued streams are parsed event by event.

The last event says so: `"hookline": {"continued": ["first/deployment", "second/deployment"]}` stands beside its `choices` with the finish_reason."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson

from hookline.call import Call
from hookline.money import Usage
from hookline.openai_wire import USAGE_OBJECT, member_of, usage_of
from hookline.peek import PeekedBody, close_body
from hookline.transport.sse import SseSplitter, parse_event, serialize_event

MARK = "hookline"


class JoinedBody:
    """The stream of a deployment that goes on, its events as those of the stream it continues."""

    def __init__(self, body: Any, call: Call, members: Mapping[str, Any]) -> None:
        self._body = body
        self._call = call
        self._members = members
        self._events = self._join()

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._events

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        await close_body(self._body)

    async def _join(self) -> AsyncGenerator[bytes, None]:
        splitter = SseSplitter()
        async for chunk in _chunks(self._body):
            if out := b"".join([self._retell(block) for block in splitter.feed(chunk)]):
                yield out
        if splitter.tail:
            yield self._retell(splitter.tail)

    def _retell(self, block: bytes) -> bytes:
        parsed = parse_event(block)
        try:
            data = orjson.loads(parsed.data)
        except orjson.JSONDecodeError:
            return block
        choices = member_of(data, "choices")
        if not isinstance(choices, list):
            return block
        data.update(self._members)
        for choice in choices:
            delta = member_of(choice, "delta")
            if isinstance(delta, dict):
                delta.pop("role", None)
            if member_of(choice, "finish_reason") is not None:
                data[MARK] = {
                    "continued": [attempt.deployment.id for attempt in self._call.attempts if attempt.is_relayed]
                }
        return serialize_event(orjson.dumps(data), event=parsed.event, id=parsed.id)


async def _chunks(body: Any) -> AsyncGenerator[bytes, None]:
    if isinstance(body, PeekedBody):
        for chunk in body.head:
            yield chunk
        if body.pending is not None:
            pending, body.pending = body.pending, None
            yield await pending or b""
        body = body.rest
    async for chunk in body:
        yield chunk


def tell_whole_usage(events: bytes, last: Usage, whole: Usage) -> bytes:
    """`events` with the counts of all deployments in the usage object that says those of the last one; unchanged if there is none."""
    for found in reversed([*USAGE_OBJECT.finditer(events)]):
        told: Any = orjson.loads(found[1])
        said = usage_of(told)
        if said is None or said[:2] != last[:2]:
            continue
        counts = (("prompt_tokens", whole.input_tokens), ("completion_tokens", whole.output_tokens))
        told |= {**dict(counts), "total_tokens": whole.input_tokens + whole.output_tokens}
        return events[: found.start(1)] + orjson.dumps(told) + events[found.end(1) :]
    return events
