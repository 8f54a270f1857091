"""Cost on the wire: what a client is told that its call cost.

Lives here: the header of JSON replies, `cost_usd` inside a stream's usage. Elsewhere: what the cost is (results.py, builtins/budget), what is held until it is known
(relay.py), which call it was (pipeline.py).
Idea: bytes in, bytes out: one member is spliced into the usage object of the held last event, everything else stays byte for byte. A stream that comes from no
upstream (a cache hit, a replay, a follower) tells its own cost, whatever its bytes told the first one who got them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

import orjson

from hookline.call import Call
from hookline.chat_view import EVENTS_OF_JSON
from hookline.flight import SHARE
from hookline.money import Usage, format_usd
from hookline.openai_wire import USAGE_OBJECT, member_of, usage_of
from hookline.peek import close_body
from hookline.reply import Reply
from hookline.transport.sse import SseSplitter, parse_event

HEADER: Final = "x-hookline-cost-usd"
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_COST: Final = re.compile(rb'"cost_usd"\s*:')

FindCost = Callable[[], int | None]


def tell_cost(reply: Reply, call: Call, cost_nanousd: int | None) -> None:
    """Put the call's cost on a reply that is about to leave: a header on JSON, a member in the usage of a stream that no upstream sends now."""
    share = call.slots.get(SHARE)
    if cost_nanousd is None and share is None:
        return
    if reply.source == "rescue" and reply.headers.get("x-hookline-rescue") == "model":
        return  # the call that answered in place of this one has told what it cost
    body = reply.body
    if isinstance(body, bytes):
        kind = reply.headers.get("content-type", "")
        if kind == "application/json" or kind.startswith("application/json;"):
            if cost_nanousd is not None:
                reply.headers[HEADER] = format_usd(cost_nanousd)
            return
    if reply.source == "upstream" or not tells_usage(call) or not reply.is_event_stream:
        return

    def find_cost() -> int | None:  # a follower's is known when its leader's has come to its end
        return cost_nanousd if share is None else share.cost_nanousd

    if isinstance(body, bytes):
        splitter = SseSplitter()
        reply.body = b"".join(_retell(block, find_cost) for block in splitter.feed(body)) + splitter.tail
    else:
        reply.body = _retold(body, find_cost)


def tells_usage(call: Call) -> bool:
    """Whether the client gets to see the usage of a stream: it asked for it, or its endpoint always tells."""
    return call.endpoint in EVENTS_OF_JSON and (call.endpoint == "responses" or call.chat.wants_usage)


def add_cost(events: bytes, usage: Usage, cost_nanousd: int) -> bytes:
    """`events` with the cost inside the last usage object that says `usage`; unchanged if there is none."""
    for found in reversed([*USAGE_OBJECT.finditer(events)]):
        told = _parsed(found[1])
        said = usage_of(told)
        if said is not None and said[:2] == usage[:2]:
            return events[: found.start(1)] + _with_cost(found[1], told, cost_nanousd) + events[found.end(1) :]
    return events


async def _retold(body: AsyncIterator[bytes], find_cost: FindCost) -> AsyncGenerator[bytes, None]:
    splitter = SseSplitter()
    try:
        async for chunk in body:
            if out := b"".join([_retell(block, find_cost) for block in splitter.feed(chunk)]):
                yield out
        if splitter.tail:
            yield splitter.tail
    finally:
        await close_body(body)


def _retell(block: bytes, find_cost: FindCost) -> bytes:
    """One event of a kept stream: its usage tells this call's cost, if it is the one that ends the stream or told a cost before."""
    if not block.count(b'"usage"'):
        return block
    data: Any = _parsed(parse_event(block).data)
    kind, choices = member_of(data, "type"), member_of(data, "choices")
    told = member_of(data.get("response"), "usage") if kind in _ENDS else member_of(data, "usage")
    usage = usage_of(told)
    if usage is None:
        return block
    is_end = kind in _ENDS or not choices or any(member_of(choice, "finish_reason") for choice in choices)
    cost_nanousd = find_cost() if is_end or "cost_usd" in told else None
    return block if cost_nanousd is None else add_cost(block, usage, cost_nanousd)


def _with_cost(usage: bytes, told: Any, cost_nanousd: int) -> bytes:
    number = format_usd(cost_nanousd).encode()
    if _COST.search(usage) is not None:
        return orjson.dumps({**told, "cost_usd": orjson.Fragment(number)})
    return usage[:-1].rstrip() + b',"cost_usd":' + number + b"}"


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
