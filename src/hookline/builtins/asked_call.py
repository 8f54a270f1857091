"""Asked calls: an operator describes a call and asks what would become of it.

Lives here: the description, the call made of it. Elsewhere: the answers (explain, budget/admin.py), dry runs (pipeline.py).
Idea: the call is what the door of `/v1` would make of it, for the given key, to the byte: bytes are bounds. It is run dry: nothing is taken, no provider is called."""

from __future__ import annotations

import json
import uuid
from typing import Annotated, Any

from multidict import CIMultiDict
from pydantic import AfterValidator, Field

from hookline import (
    KEY_REFUSAL,
    Call,
    Host,
    NotFound,
    Parameters,
    Principal,
    Reply,
    RouteRequest,
    endpoint_of,
    resolve_target,
)

NEVER_TAKEN = frozenset({"authorization", "api-key", "x-api-key", "idempotency-key", "content-length"})
"""Headers that say who asks or which bytes come: the call is another's."""


class AskedCall(Parameters):
    """A call, and the key that would make it."""

    key: str | None = Field(None, min_length=1, description="Name or id of a key; none: an anonymous caller.")
    method: Annotated[str, Field(pattern="^[A-Za-z]{1,20}$"), AfterValidator(str.upper)] = "POST"
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = Field(default={}, description="Of the call; those that say who calls are left out.")
    request: dict[str, Any] = Field(description="The body of the call.")


def make_call(asked: AskedCall, request: RouteRequest, host: Host) -> Call:
    """The call that `request` describes, to be run dry; whose it is is not said yet. Raises ApiError as the door would."""
    target = resolve_target(asked.path)
    if not target.path.startswith("/v1/"):
        raise NotFound("there is nothing at this path; the OpenAI API is below /v1/", code="unknown_url")
    endpoint, path = endpoint_of(asked.method, target.path)
    call = Call(
        id=f"asked-{uuid.uuid4().hex[:16]}",
        method=asked.method,
        path=path,
        query=target.query,
        endpoint=endpoint,
        headers=CIMultiDict((k, v) for k, v in asked.headers.items() if k.lower() not in NEVER_TAKEN),
        started_at=host.clock.monotonic(),
        started_time=host.clock.time(),
        surface="admin",
    )
    call.is_dry_run = True
    if asked.request or asked.method not in ("GET", "HEAD"):
        call.set_json(_find_request(request.body), asked.request)
    return call


async def run_asked(asked: AskedCall, call: Call, host: Host) -> Reply:
    """What its key would be answered. Raises NotFound if there is no such key."""
    if asked.key is not None:
        call.principal = await get_principal(asked.key, host)
        find_refusal = host.offers.get(KEY_REFUSAL)
        if find_refusal is not None and (error := await find_refusal(asked.key)) is not None:
            return Reply.from_error(error)
    return await host.run(call)


async def get_principal(key: str, host: Host) -> Principal:
    """Whose key of this name or id it is. Raises NotFound."""
    principal = await host.find_principal(key)
    if principal is None:
        raise NotFound(f'there is no key "{key[:100]}"; give its name or its id', code="key_not_found", param="key")
    return principal


def _find_request(body: bytes) -> bytes:
    """The member "request" as it is written. `body` has been parsed."""
    text, read, found = body.decode(), json.JSONDecoder().raw_decode, "{}"
    at = _skip_space(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = read(text, at)
        begin = _skip_space(text, text.index(":", at) + 1)
        _, at = read(text, begin)
        if name == "request":
            found = text[begin:at]
        at = _skip_space(text, at)
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    return found.encode()


def _skip_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
