"""Degradation: when every provider has failed, something less rather than nothing.

Lives here: asking a smaller model, a static answer, the 503 after both. Elsewhere: an old answer (cache's own `rescue`; list `cache` before this plugin), other deployments and
other models while a call is still tried (fallback), the bytes of a static answer (static_answer.py).
Idea: each step says in `x-hookline-rescue` what it is (stale, model, static), so nobody takes less for the whole. The smaller model is asked by an ordinary call of the same
principal through the whole chain: it needs permission for that model, pays for it, and has a line of its own in log and ledger, with the id of the first call and "-rescue".

Only failures that lie with the provider are rescued: an upstream's 400 is about the request, and what a limit or a budget refused stays refused."""

from __future__ import annotations

from typing import Any

import orjson
from multidict import CIMultiDict
from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    EXPOSED_HEADERS,
    OWN_CALL,
    ApiError,
    Call,
    Host,
    Reply,
    StartupError,
    Unavailable,
    UpstreamError,
    derive_call,
    hookimpl,
)
from hookline.builtins.degradation.static_answer import may_answer, static_reply
from hookline.builtins.model_names import unknown_models

HEADER = "x-hookline-rescue"
TEXT_ENDPOINTS = frozenset({"chat", "completions", "responses"})
RESCUED_STATUSES = frozenset({401, 403, 404, 408, 429})
"""Beside 5xx: what an upstream says of itself or of our key, as `cache` has it."""
RESCUE = "rescue"
"""What such a call is for (`OWN_CALL`). It is not rescued itself."""
NOT_SENT_ON = ("idempotency-key", "x-hookline-timeout-s", "x-hookline-explain", "content-length")
"""Of the first call's headers: the rescue is another call, and the first one's key leads to the first one's reply."""


class DegradationOptions(BaseModel):
    """`[plugins.degradation]`: what to answer when no provider does."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = Field(None, min_length=1, description="A smaller or local model that is asked instead.")
    static: str | None = Field(
        None, min_length=1, description="A sentence for chats, completions and responses that ask for plain text."
    )
    retry_after_s: float = Field(
        5.0, gt=0, le=3_600, description="What the 503 tells clients to wait, where no provider said a time."
    )


def models_in(options: DegradationOptions) -> list[tuple[str, str]]:
    """The model that is named, with the option that names it."""
    return [] if options.model is None else [("model", options.model)]


class Plugin:
    """Answers in the place of providers that have failed."""

    Options = DegradationOptions
    supports_dry_run = True

    def __init__(self, options: DegradationOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self._host = host
        if problems := list(unknown_models(options, host, models_in)):
            raise StartupError(problems)
        self._total_s = float(host.settings.get("server", {}).get("total_timeout_s", 600.0))
        self._rescues = host.metrics.counter(
            "hookline_rescues_total", "Calls whose providers had all failed, by what was answered.", ("answer",)
        )

    @hookimpl
    async def rescue(self, call: Call, error: ApiError) -> Reply | None:
        status = error.reply_status
        if (
            call.model is None
            or not (status >= 500 or status in RESCUED_STATUSES)
            or call.slots.get(OWN_CALL) == RESCUE
        ):
            return None
        options: DegradationOptions = self._options_by_model.get(call.model or "", self._options)
        reply = await self._ask_model(call, options.model) if options.model is not None else None
        if reply is None and options.static is not None and may_answer(call):
            reply = static_reply(call, options.static, now=self._host.clock.time())
            reply.headers[HEADER] = "static"
        if reply is not None:
            call.slots.get(EXPOSED_HEADERS, {}).pop("x-should-retry", None)  # what was said of the failure
            self._rescues(reply.headers[HEADER]).inc()
            return reply
        self._rescues("none").inc()
        if status < 500 or (isinstance(error, Unavailable) and error.retry_after_s is not None):
            return None  # it says itself when to come back, or what is wrong with our key
        return self._refuse(call, error, options)

    async def _ask_model(self, call: Call, model: str) -> Reply | None:
        """The smaller model's reply; None if it failed, too, or may not be asked."""
        payload = call.payload
        if payload is None or call.endpoint not in TEXT_ENDPOINTS or model == call.model:
            return None
        if payload.get("conversation") or payload.get("previous_response_id"):
            return None  # what it refers to is with the provider that has failed
        inner = self._make_call(call, {**payload, "model": model})
        reply = await call.wait(self._host.begin(inner))
        if reply.status >= 400:
            call.note("degradation", "failed", f"{model}: {reply.status}")
            return None
        tried = len(call.attempts) + len(inner.attempts)
        reply.headers[HEADER], reply.headers["x-hookline-attempts"] = "model", str(tried)
        reply.source = "rescue"
        return reply

    def _make_call(self, call: Call, payload: dict[str, Any]) -> Call:
        headers = CIMultiDict(call.headers)
        for name in NOT_SENT_ON:
            headers.popall(name, None)
        inner = derive_call(call, RESCUE, self._host.clock, surface=call.surface, headers=headers)
        inner.set_json(orjson.dumps(payload), payload)
        inner.deadline = call.deadline if call.deadline is not None else call.started_at + self._total_s
        inner.tags, inner.remote, inner.is_explained = list(call.tags), call.remote, False
        return inner

    def _refuse(self, call: Call, error: ApiError, options: DegradationOptions) -> Reply:
        """An honest 503. What the upstreams said word for word is in the log."""
        why = "did not answer" if isinstance(error, UpstreamError) and error.upstream_status is None else "failed"
        wait_s = options.retry_after_s if error.retry_after_s is None else error.retry_after_s
        told = f'every provider of "{(call.model or "")[:100]}" {why}, and nothing stands in for them; try again in {wait_s:g} s'
        reply = Reply.from_error(Unavailable(told, code="no_provider_available", retry_after_s=wait_s))
        if call.attempts:
            reply.headers["x-hookline-deployment"] = call.attempts[-1].deployment.id
        reply.source = "rescue"
        return reply
