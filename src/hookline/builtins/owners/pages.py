"""Lists of a collection, cut down to the caller's own.

Lives here: filtering a page, asking for further ones until it is as full as was asked. Elsewhere: whose an id is (stores), which routes list (routes.py).
Idea: a page without others' objects would end what a client takes for the list, so the pages behind it are asked for, up to a bound; each is an ordinary call
of the same caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from hookline import MADE_AT, Call, Host, Rejected, Reply, Slot, UpstreamError

PAGE_SIZE: Final = 100
"""Of a further page: the most that every collection allows."""
INNER: Slot[bool] = Slot("owners_inner")
"""A further page on its way: its call was checked, its reply is filtered by who asked for it."""

Keep = Callable[[Sequence[str]], Awaitable[Collection[str]]]
"""Of these ids the caller's own."""


async def cut_to_own(call: Call, reply: Reply, *, host: Host, keep: Keep, pages_max: int) -> list[Any]:
    """Make `reply` the caller's page; answers what it shows. Raises Rejected for a list that can't be read."""
    page = reply.json()
    data = _data_of(page)
    if data is None:
        raise Rejected(
            UpstreamError("the provider's list can't be read, and so not cut to what is yours", kind="garbage")
        )
    own = await _own(data, keep)
    has_more = page.get("has_more") is True
    wanted = _limit_of(call.query) or max(len(data), 1)
    cursor = _id_of(data[-1]) if data else ""
    asks_forward = "before=" not in call.query
    asked = 0
    while has_more and len(own) <= wanted and cursor and asks_forward and asked < pages_max:
        asked += 1
        more = await _ask(call, host, cursor, asked)
        data = _data_of(more)
        if more is None or not data:
            has_more = more is None or more.get("has_more") is True
            break
        own += await _own(data, keep)
        has_more, cursor = more.get("has_more") is True, _id_of(data[-1])
    shown = own[:wanted]
    # Objects under another name than `data` are as much everybody's.
    told: dict[str, Any] = {name: value for name, value in page.items() if not isinstance(value, dict | list)}
    told["data"] = shown
    if "has_more" in page:
        told["has_more"] = has_more or len(own) > wanted
    if "first_id" in page:
        told["first_id"] = _id_of(shown[0]) if shown else None
    if "last_id" in page:
        told["last_id"] = _id_of(shown[-1]) if shown else None
    for name in page.keys() & {"total", "total_count", "count"}:
        told[name] = len(shown)
    reply.replace_json(told)
    return shown


async def cut_models(reply: Reply, keep: Keep, is_made: Callable[[str], bool]) -> None:
    """Take models that other tenants made out of `/v1/models`."""
    page = reply.json()
    data = _data_of(page)
    if data is None or not any(is_made(_id_of(model)) for model in data):
        return
    own = set(await keep([_id_of(model) for model in data]))
    reply.replace_json({**page, "data": [m for m in data if not is_made(_id_of(m)) or _id_of(m) in own]})


async def _ask(call: Call, host: Host, after: str, number: int) -> Mapping[str, Any] | None:
    """The page behind `after`; None if there is no answer now."""
    asked = [pair for pair in parse_qsl(call.query, keep_blank_values=True) if pair[0] not in ("after", "limit")]
    inner = Call(
        id=f"{call.id}-page-{number}",
        method="GET",
        path=call.path,
        query=urlencode([*asked, ("after", after), ("limit", str(PAGE_SIZE))]),
        endpoint=call.endpoint,
        headers=call.headers,
        started_at=host.clock.monotonic(),
        started_time=host.clock.time(),
        principal=call.principal,
    )
    inner[INNER] = True
    if (place := call.find(MADE_AT)) is not None:
        inner[MADE_AT] = place
    reply = await call.wait(host.run(inner))
    told = reply.json() if reply.status == 200 else None
    return told if isinstance(told, dict) else None


async def _own(data: list[Any], keep: Keep) -> list[Any]:
    own = set(await keep([_id_of(item) for item in data]))
    return [item for item in data if _id_of(item) in own]


def _data_of(page: Any) -> list[Any] | None:
    data = page.get("data") if isinstance(page, dict) else None
    return data if isinstance(data, list) else None


def _id_of(item: Any) -> str:
    id = item.get("id") if isinstance(item, dict) else None
    return id if isinstance(id, str) else ""


def _limit_of(query: str) -> int:
    limit = dict(parse_qsl(query)).get("limit", "")
    return int(limit) if limit.isascii() and limit.isdecimal() and len(limit) < 6 else 0
