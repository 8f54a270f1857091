"""Mirror: a share of the calls is asked a second time, at a shadow deployment, and what it answers is dropped.

Lives here: which calls are mirrored, what the mirrored call is. Elsewhere: what it costs and how it went (budget, logging, metrics: it is a call like any other).
Idea: it begins when the client's call has ended, as a principal of its own: nobody waits for it, pays for it, or learns of it.

The rules
- Mirrored are answers that an upstream gave to JSON calls of clients: no cache hits, replays, failures, dry runs, and nothing that this gateway asked by itself (so no mirror of a mirror).
- Left out is what would act or be kept a second time, or would ask for what only the first provider has: hosted tools, `background`, `previous_response_id` and the like.
- It asks that nothing be kept: `store` is false, and this gateway's own cache is passed by.
- It carries none of the client's headers but for DIALECT_HEADERS."""

from __future__ import annotations

import random
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

import orjson
from multidict import CIMultiDict
from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    IN_BACKGROUND,
    OBJECTS_OF,
    OWN_CALL,
    ApiError,
    Call,
    Host,
    Principal,
    Result,
    StartupError,
    derive_call,
    hookimpl,
)
from hookline.builtins.lasting import hosted_tool_of, tie_of
from hookline.builtins.model_names import unknown_models

NAME = "mirror"
TAG = "mirror"
ENDPOINTS = frozenset({"chat", "completions", "embeddings", "responses", "moderations"})
DIALECT_HEADERS = ("content-type", "accept", "openai-beta", "anthropic-beta", "anthropic-version")
LEAST_PRIORITY = "low"


class MirrorOptions(BaseModel):
    """`[plugins.mirror]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    to: str | None = Field(
        None,
        min_length=1,
        description='The model that is asked too: "provider/model", or one of `[models]`. Without it nothing is mirrored.',
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(0.05, description="Of the calls that may be mirrored.")
    exclude_tenants: list[str] = Field([], description="Globs: calls of these tenants are never mirrored.")
    exclude_tags: list[str] = Field(
        [], description="Nor are those with one of these tags, of their key or token or given by a plugin."
    )
    max_body_bytes: int = Field(1024 * 1024, gt=0, le=1 << 30, description="Longer requests are not mirrored.")
    max_in_flight: int = Field(
        16,
        gt=0,
        le=10_000,
        json_schema_extra={"per_model": False},
        description="Of one process; what would go beyond is left out and counted; not per model.",
    )
    timeout_s: Annotated[float, Field(gt=0, le=3_600)] = Field(60.0, description="How long a mirrored call may take.")
    tenant: str = Field(
        NAME,
        min_length=1,
        json_schema_extra={"per_model": False},
        description="Who pays: `[tenants.X]` may give it a budget and limits; not per model.",
    )


class Plugin:
    """Begins a mirrored call at the end of each that is chosen."""

    Options = MirrorOptions

    def __init__(self, options: MirrorOptions, host: Host) -> None:
        self._options = options
        self._options_by_model: Mapping[str, MirrorOptions] = host.options_by_model
        if problems := list(unknown_models(options, host, models_in)):
            raise StartupError(problems)
        self._host = host
        self._principal = Principal(key_id=NAME, key_name=NAME, tenant=options.tenant, tags=(TAG,))
        self._draw = random.Random().random
        self._in_flight = 0
        mirrored = host.metrics.counter(
            "hookline_mirrored_calls_total",
            "Calls chosen for the mirror: ok, failed; left_out: not to be repeated or too long; dropped: too many at a time.",
            ("outcome",),
        )
        self._ok, self._failed, self._left_out, self._dropped = map(mirrored, ("ok", "failed", "left_out", "dropped"))

    @hookimpl
    def call_ended(self, call: Call, result: Result) -> None:
        options = self._options_by_model.get(call.model or "", self._options)
        if options.to is None or self._draw() >= options.share or not is_answer(call, result):
            return
        if not may_be_mirrored(call, options):
            return
        if not is_repeatable(call) or len(call.body) > options.max_body_bytes:
            self._left_out.inc()
        elif self._in_flight >= self._options.max_in_flight:
            self._dropped.inc()
        else:
            self._in_flight += 1
            self._host.spawn("mirror", self._ask(self._make_call(call, options)))

    async def _ask(self, call: Call) -> None:
        """Ask, and forget the answer. What went wrong stands in the call's own log line."""
        is_ok = False
        try:
            reply = await self._host.begin(call)
            if not isinstance(reply.body, bytes):
                async for _ in reply.body:
                    pass  # a chunk at a time: nothing is held
            is_ok = reply.status < 400 and all(attempt.error is None for attempt in call.attempts[-1:])
        except ApiError as error:
            self._host.log.debug("mirrored call %s: %s", call.id, error)
        finally:
            self._in_flight -= 1
            (self._ok if is_ok else self._failed).inc()

    def _make_call(self, call: Call, options: MirrorOptions) -> Call:
        dialect = {name: call.headers[name] for name in DIALECT_HEADERS if name in call.headers}
        headers = CIMultiDict({**dialect, "cache-control": "no-store", "x-hookline-priority": LEAST_PRIORITY})
        mirrored = derive_call(
            call, "mirror", self._host.clock, surface=NAME, headers=headers, principal=self._principal
        )
        payload = mirrored_payload(call, options.to or "")
        mirrored.set_json(orjson.dumps(payload), payload)
        mirrored.deadline = mirrored.started_at + options.timeout_s
        mirrored.tags = [TAG]
        mirrored[IN_BACKGROUND] = True
        mirrored[OBJECTS_OF] = call.principal.tenant
        return mirrored


def is_answer(call: Call, result: Result) -> bool:
    """Whether an upstream has answered a client's call."""
    return (
        result.outcome == "ok"
        and result.source == "upstream"
        and call.endpoint in ENDPOINTS
        and OWN_CALL not in call.slots
        and call.payload is not None
        and not call.is_dry_run
    )


def may_be_mirrored(call: Call, options: MirrorOptions) -> bool:
    """Whether whoever made the call is not excluded, and it would not go where it has been."""
    principal, excluded = call.principal, options.exclude_tags
    if any(fnmatchcase(principal.tenant, glob) for glob in options.exclude_tenants):
        return False
    if excluded and any(tag in excluded for tag in (*principal.tags, *call.tags)):
        return False
    attempt = call.attempts[-1] if call.attempts else None
    return options.to not in (call.model, attempt and attempt.deployment.id)


def is_repeatable(call: Call) -> bool:
    """Whether asking it twice has no effect but its cost, and another provider can understand it."""
    payload = call.payload or {}
    if call.endpoint == "responses" and isinstance(payload.get("prompt"), dict):
        return False  # a template that is kept at the provider
    return tie_of(payload) is None and hosted_tool_of(payload) is None


def mirrored_payload(call: Call, to: str) -> dict[str, Any]:
    """The same request for another model. A response is kept by its provider unless it is told not to."""
    payload = {**(call.payload or {}), "model": to}
    if call.endpoint == "responses" or "store" in payload:
        payload["store"] = False
    return payload


def models_in(options: MirrorOptions) -> list[tuple[str, str]]:
    """The model that is named, with the option that names it."""
    return [] if options.to is None else [("to", options.to)]
