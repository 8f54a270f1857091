"""Explain: why a call goes where it goes, or would not go at all.

Lives here: `POST /admin/explain`, whether clients may explain their own calls. Elsewhere: `hookline explain` (commands.py), the explanation itself (the core's dry run, and each plugin's
findings and notes), the header `x-hookline-explain` (the door reads it).
Idea: a thin door: the call is made as `/v1` would make it, as the given key, and run dry: nothing is taken, no provider is called."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import orjson
from multidict import CIMultiDict
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hookline import (
    AddCommand,
    AddRoute,
    BadRequest,
    Call,
    Host,
    NotFound,
    Parameters,
    Reply,
    RouteRequest,
    endpoint_of,
    explain,
    hookimpl,
    resolve_target,
)

NEVER_TAKEN = frozenset({"authorization", "api-key", "x-api-key", "idempotency-key", "content-length"})
"""Headers that say who asks or which bytes come: the explained call is another's."""


class ExplainOptions(BaseModel):
    """`[plugins.explain]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    clients: bool = Field(
        True,
        description="Let every key explain its own calls by `x-hookline-explain: true`; they count against no limit.",
    )


class ExplainedCall(Parameters):
    """`POST /admin/explain`: a call, and the key that would make it."""

    key: str | None = Field(None, min_length=1, description="Name or id of a key; none: an anonymous caller.")
    method: Annotated[str, Field(pattern="^[A-Za-z]{1,20}$"), AfterValidator(str.upper)] = "POST"
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = Field(default={}, description="Of the call; those that say who calls are left out.")
    request: dict[str, Any] = Field(description="The body of the call.")


class Plugin:
    """Explains."""

    Options = ExplainOptions
    has_model_options = False
    supports_dry_run = True

    def __init__(self, options: ExplainOptions, host: Host) -> None:
        self.explains_to_clients = options.clients
        self._host = host

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        add("POST", "/admin/explain", self._explain, access="admin")

    @hookimpl
    def register_commands(self, add: AddCommand) -> None:
        from hookline.builtins.explain.commands import make_command  # typer is for the command line only

        server = self._host.settings.get("server", {})
        host = str(server.get("host", "127.0.0.1"))
        reached = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else host
        add("explain", make_command(f"http://{reached}:{server.get('port', 8080)}"))

    async def _explain(self, request: RouteRequest) -> Reply:
        request.parameters(Parameters)
        asked = request.json_object(ExplainedCall)
        call = self._make_call(
            asked, spaces=len(request.body) - len(orjson.dumps(asked.model_dump(exclude_unset=True)))
        )
        if asked.key is not None:
            principal = await self._host.find_principal(asked.key)
            if principal is None:
                raise NotFound(
                    f'there is no key "{asked.key[:100]}"; give its name or its id', code="key_not_found", param="key"
                )
            call.principal = principal
        reply = await self._host.run(call)
        return Reply.from_json(explain(call, reply, is_own=False))

    def _make_call(self, asked: ExplainedCall, *, spaces: int) -> Call:
        """Bounds count bytes, so it is as long as it was written."""
        target = resolve_target(asked.path)
        if not target.path.startswith("/v1/"):
            raise BadRequest('"path": must begin with /v1/', code="invalid_parameter", param="path")
        endpoint, path = endpoint_of(asked.method, target.path)
        headers = CIMultiDict((k, v) for k, v in asked.headers.items() if k.lower() not in NEVER_TAKEN)
        call = Call(
            id=f"explain-{uuid.uuid4().hex[:16]}",
            method=asked.method,
            path=path,
            query=target.query,
            endpoint=endpoint,
            headers=headers,
            started_at=self._host.clock.monotonic(),
            started_time=self._host.clock.time(),
            surface="admin",
        )
        call.is_dry_run = call.is_explained = True
        call.set_json(orjson.dumps(asked.request) + b" " * max(spaces, 0), asked.request)
        return call
