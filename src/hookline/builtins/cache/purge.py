"""Purging: answers that must not be served any more.

Lives here: `DELETE /admin/cache`, `hookline cache purge`. Elsewhere: who may (the admin key), how entries are found (the tags of __init__.py, stores/).
Idea: one thing at a time, named: a key (the reply's `x-hookline-cache-key`), a model, a tenant, or all; what was not understood purges nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from hookline import BadRequest, Host, Parameters, Reply, RouteRequest
from hookline.builtins.cache.key import DIGEST_BYTES

ALL = "cache"
"""The tag of every entry."""
Name = Annotated[str, Field(min_length=1)]


class PurgeParameters(Parameters):
    """What is to be purged: one of these."""

    key: str | None = Field(None, description="What a reply's `x-hookline-cache-key` named; several with commas.")
    model: Name | None = Field(None, description="All answers of a model or alias.")
    tenant: Name | None = Field(None, description='All answers of a tenant (not those of `scope = "shared"`).')
    all: Literal["true"] | None = Field(None, description="Everything.")

    @field_validator("key")
    @classmethod
    def _check_key(cls, text: str | None) -> str | None:
        if text is not None:
            keys_of(text)
        return text

    @property
    def named(self) -> tuple[str, str]:
        """The one thing, by name. Raises BadRequest where it is none or several."""
        given = list(self.model_dump(exclude_none=True).items())
        if len(given) != 1:
            raise BadRequest(
                "purging takes one thing at a time: key, model, tenant, or all",
                code="invalid_parameter",
                param=given[1][0] if given else None,
            )
        return given[0]


def tags_of(tenant: str | None, model: str | None) -> tuple[str, ...]:
    """What an entry is found by; `tenant` None: shared by all."""
    tags = (ALL, f"model:{model}")
    return tags if tenant is None else (*tags, f"tenant:{tenant}")


def keys_of(text: str) -> list[bytes]:
    """The keys that `x-hookline-cache-key` told, separated by commas. Raises ValueError."""
    try:
        keys = [bytes.fromhex(part.strip()) for part in text.split(",")]
    except ValueError:
        keys = []
    if not keys or any(len(key) != DIGEST_BYTES for key in keys):
        raise ValueError(f"must be what a reply's x-hookline-cache-key says: {2 * DIGEST_BYTES} hexadecimal digits")
    return keys


class Purge:
    """What both doors do."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def handle(self, request: RouteRequest) -> Reply:
        """The route. Raises BadRequest, and Unavailable where the shared store can't purge."""
        return Reply.from_json(await self.purge(request.parameters(PurgeParameters)))

    async def purge(self, asked: PurgeParameters) -> dict[str, Any]:
        """What was purged, and how much. Raises as `handle`."""
        name, value = asked.named
        replies = self._host.replies
        if name == "key":
            deleted = await replies.delete(keys_of(value))
        elif name == "all":
            deleted = await replies.delete_tagged(ALL)
        else:
            if name == "model":
                value = self._host.settings.get("aliases", {}).get(value, value)
            deleted = await replies.delete_tagged(f"{name}:{value}")
        self._host.log.info("cache: purged %s=%s: %d entries", name, value, deleted)
        return {"object": "cache.purge", name: True if name == "all" else value, "deleted": deleted}
