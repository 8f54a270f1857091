"""`/admin/keys`: virtual keys over HTTP, for whoever has the admin key.

Lives here: methods, paths, bodies, pages. Elsewhere: the admin key itself (the core checks it before anything here runs), what is done (key_desk.py), the fields
(key_fields.py).
Idea: OpenAI's manners: its error object, lists with `after`, `has_more`. A reply that shows a secret is not to be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

import orjson

from hookline import AddRoute, BadRequest, Host, NotFound, Reply, RouteRequest
from hookline.builtins.auth.key_desk import KeyDesk
from hookline.builtins.auth.key_fields import KeyUpdate, Listing, NewKey, Rotation, check, show
from hookline.builtins.auth.options import Table

PATH = "/admin/keys"
NO_STORE = {"cache-control": "no-store"}
"""Of replies that hold a secret."""


class AdminKeys:
    """The routes. `on_change` runs after each write, so that this process knows at once."""

    def __init__(self, desk: KeyDesk, host: Host, on_change: Callable[[], Awaitable[None]]) -> None:
        self._desk = desk
        self._host = host
        self._on_change = on_change

    def register(self, add: AddRoute) -> None:
        add("GET", PATH, self._list)
        add("POST", PATH, self._create)
        add("GET", f"{PATH}/*", self._get)
        add("PATCH", f"{PATH}/*", self._update)
        add("DELETE", f"{PATH}/*", self._revoke)
        add("POST", f"{PATH}/*", self._rotate)

    async def _create(self, request: RouteRequest) -> Reply:
        key, secret = await self._desk.create(_fields(NewKey, request))
        await self._changed("made", key.id, key.name)
        return Reply.from_json(show(key, self._now(), secret), headers=NO_STORE)

    async def _list(self, request: RouteRequest) -> Reply:
        query = parse_qsl(request.query, keep_blank_values=True)
        if len(dict(query)) < len(query):
            raise BadRequest("a query parameter is given twice; keep one")
        listing: Listing = check(Listing, dict(query))
        keys = await self._desk.page(
            after=listing.after,
            limit=listing.limit + 1,
            name=listing.name,
            tenant=listing.tenant,
            user=listing.user,
            is_revoked=None if listing.revoked is None else listing.revoked == "true",
        )
        shown = [show(key, self._now()) for key in keys[: listing.limit]]
        ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
        return Reply.from_json({"object": "list", "data": shown, **ends, "has_more": len(keys) > listing.limit})

    async def _get(self, request: RouteRequest) -> Reply:
        return Reply.from_json(show(await self._desk.get(_id(request)), self._now()))

    async def _update(self, request: RouteRequest) -> Reply:
        key = await self._desk.update(_id(request), _fields(KeyUpdate, request))
        await self._changed("updated", key.id, key.name)
        return Reply.from_json(show(key, self._now()))

    async def _revoke(self, request: RouteRequest) -> Reply:
        key = await self._desk.revoke(_id(request))
        await self._changed("revoked", key.id, key.name)
        return Reply.from_json(show(key, self._now()))

    async def _rotate(self, request: RouteRequest) -> Reply:
        id = _id(request, "/rotate")
        rotation: Rotation = _fields(Rotation, request, may_be_empty=True)
        key, secret = await self._desk.rotate(id, rotation.overlap_s)
        await self._changed("rotated", key.id, key.name)
        return Reply.from_json(show(key, self._now(), secret), headers=NO_STORE)

    async def _changed(self, what: str, id: str, name: str) -> None:
        self._host.log.info('key %s "%s" was %s by the admin API', id, name, what)
        await self._on_change()

    def _now(self) -> float:
        return self._host.clock.time()


def _id(request: RouteRequest, suffix: str = "") -> str:
    id = unquote(request.path.removeprefix(f"{PATH}/"))
    if not id.endswith(suffix) or "/" in (id := id.removesuffix(suffix)) or not id.isprintable() or not id:
        raise NotFound(f"there is nothing at this path; {PATH}/ID and {PATH}/ID/rotate are", code="unknown_url")
    return id


def _fields(model: type[Table], request: RouteRequest, *, may_be_empty: bool = False) -> Any:
    if may_be_empty and not request.body.strip():
        return model()
    try:
        values = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        raise BadRequest("the body must be a JSON object", code="invalid_json") from None
    if not isinstance(values, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return check(model, values)
