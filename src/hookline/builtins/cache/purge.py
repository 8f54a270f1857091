"""Purging: answers that must not be served any more.

Lives here: `DELETE /admin/cache`. Elsewhere: who may (the admin key), how entries are found (the tags of __init__.py, stores/).
Idea: one thing at a time, named: a key (the reply's `x-hookline-cache-key`), a model, a tenant, or all; what was not understood purges nothing."""

from __future__ import annotations

from urllib.parse import parse_qsl

from hookline import BadRequest, Host, Reply, RouteRequest
from hookline.builtins.cache.key import DIGEST_BYTES

ALL = "cache"
"""The tag of every entry."""
_HINT = "name one of: key=..., model=..., tenant=..., all=true"


def tags_of(tenant: str | None, model: str | None) -> tuple[str, ...]:
    """What an entry is found by; `tenant` None: shared by all."""
    tags = (ALL, f"model:{model}")
    return tags if tenant is None else (*tags, f"tenant:{tenant}")


class Purge:
    """The route."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def handle(self, request: RouteRequest) -> Reply:
        """Raises BadRequest, and Unavailable where the shared store can't purge."""
        name, value = read_query(request.query)
        replies = self._host.replies
        if name == "key":
            deleted = await replies.delete(read_keys(value))
        elif name == "all":
            deleted = await replies.delete_tagged(ALL)
        else:
            if name == "model":
                value = self._host.settings.get("aliases", {}).get(value, value)
            deleted = await replies.delete_tagged(f"{name}:{value}")
        self._host.log.info("cache: purged %s=%s: %d entries", name, value, deleted)
        return Reply.from_json({"object": "cache.purge", name: True if name == "all" else value, "deleted": deleted})


def read_query(query: str) -> tuple[str, str]:
    """What is to be purged. Raises BadRequest."""
    given = parse_qsl(query, keep_blank_values=True)
    if len(given) != 1:
        raise BadRequest(f"purging takes one thing at a time: {_HINT}", code="invalid_purge")
    name, value = given[0]
    if name not in ("key", "model", "tenant", "all"):
        raise BadRequest(f'"{name[:100]}" can\'t be purged: {_HINT}', param=name[:100], code="invalid_purge")
    if not value or (name == "all" and value != "true"):
        raise BadRequest(f"{name}= says nothing: {_HINT}", param=name, code="invalid_purge")
    return name, value


def read_keys(text: str) -> list[bytes]:
    """The keys that `x-hookline-cache-key` told, separated by commas. Raises BadRequest."""
    try:
        keys = [bytes.fromhex(part.strip()) for part in text.split(",")]
    except ValueError:
        keys = []
    if not keys or any(len(key) != DIGEST_BYTES for key in keys):
        raise BadRequest(
            f"key must be what a reply's x-hookline-cache-key says: {2 * DIGEST_BYTES} hexadecimal digits",
            param="key",
            code="invalid_purge",
        )
    return keys
