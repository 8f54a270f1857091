"""`/admin/keys`: virtual keys over HTTP, for whoever has the admin key.

Lives here: methods and paths. Elsewhere: the admin key itself (the core checks it before anything here runs), what is done (key_desk.py), the fields (key_fields.py).
Idea: a door of the desk, and nothing more. A reply that shows a secret is not to be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from hookline import AddRoute, Host, NotFound, Parameters, Reply, RouteRequest, StoredKey, list_object
from hookline.builtins.auth.key_desk import KeyDesk
from hookline.builtins.auth.key_fields import KeyFilters, KeyUpdate, NewKey, Rotation, show

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
        request.parameters(Parameters)
        key, secret = await self._desk.create(request.json_object(NewKey))
        await self._changed("made", key.id, key.name)
        return Reply.from_json(await self._shown(key, secret), headers=NO_STORE)

    async def _list(self, request: RouteRequest) -> Reply:
        asked = request.parameters(KeyFilters)
        keys = await self._desk.page(
            after=asked.after or "",
            limit=asked.limit + 1,
            name=asked.name,
            tenant=asked.tenant,
            user=asked.user,
            is_revoked=asked.revoked,
        )
        return Reply.from_json(list_object([show(key, self._now()) for key in keys], asked.limit))

    async def _get(self, request: RouteRequest) -> Reply:
        return Reply.from_json(show(await self._desk.get(_id(request)), self._now()))

    async def _update(self, request: RouteRequest) -> Reply:
        asked = request.json_object(KeyUpdate)
        key = await self._desk.update(_id(request), asked)
        await self._changed("updated", key.id, key.name)
        is_named = "name" in asked.model_fields_set
        return Reply.from_json(await self._shown(key) if is_named else show(key, self._now()))

    async def _revoke(self, request: RouteRequest) -> Reply:
        key = await self._desk.revoke(_id(request))
        await self._changed("revoked", key.id, key.name)
        return Reply.from_json(show(key, self._now()))

    async def _rotate(self, request: RouteRequest) -> Reply:
        id = _id(request, "/rotate")
        rotation = request.json_object(Rotation, may_be_empty=True)
        key, secret = await self._desk.rotate(id, rotation.overlap_s)
        await self._changed("rotated", key.id, key.name)
        return Reply.from_json(show(key, self._now(), secret), headers=NO_STORE)

    async def _shown(self, key: StoredKey, secret: str | None = None) -> dict[str, Any]:
        """A key that was named just now."""
        warnings = await self._desk.warnings(key)
        return show(key, self._now(), secret) | ({"warnings": warnings} if warnings else {})

    async def _changed(self, what: str, id: str, name: str) -> None:
        self._host.log.info('key %s "%s" was %s by the admin API', id, name, what)
        await self._on_change()

    def _now(self) -> float:
        return self._host.clock.time()


def _id(request: RouteRequest, suffix: str = "") -> str:
    request.parameters(Parameters)
    id = unquote(request.path.removeprefix(f"{PATH}/"))
    if not id.endswith(suffix) or "/" in (id := id.removesuffix(suffix)) or not id.isprintable() or not id:
        raise NotFound(f"there is nothing at this path; {PATH}/ID and {PATH}/ID/rotate are", code="unknown_url")
    return id
