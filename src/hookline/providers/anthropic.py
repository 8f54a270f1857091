"""Anthropic: chat completions on Anthropic's Messages API.

Lives here: addresses, headers and the way of one call. Elsewhere: every translation (anthropic_request.py, anthropic_reply.py, anthropic_stream.py and what they use), legacy completions and responses (bridge.py).
Idea: the same pool, keys and timeouts as for the OpenAI wire (upstream.py); only bodies differ, and they are rewritten whole in both directions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import orjson
from multidict import CIMultiDict
from pydantic import Field, field_validator

from hookline.attempt import Attempt
from hookline.call import Call
from hookline.deployment import Deployment
from hookline.errors import BadRequest, UpstreamError
from hookline.providers.answer import MAX_ERROR_BYTES, MAX_JSON_BYTES, plain_events, read_by_its_start, read_plain
from hookline.providers.anthropic_reply import as_list, as_text, error_from_anthropic, from_anthropic
from hookline.providers.anthropic_request import to_anthropic
from hookline.providers.anthropic_stream import AnthropicStream
from hookline.providers.anthropic_thinking import room_for_thinking
from hookline.providers.event_reader import TranslatedBody, read_events
from hookline.providers.untranslatable import JsonObject, Untranslatable
from hookline.providers.upstream import Upstream
from hookline.providers.upstream_options import UpstreamOptions
from hookline.reply import Reply
from hookline.transport import UpstreamResponse


class AnthropicOptions(UpstreamOptions):
    """`kind = "anthropic"`."""

    base_url: str = Field(default="https://api.anthropic.com/v1", description="Without a path, /v1 is added.")
    version: str = Field(default="2023-06-01", pattern=r"^[0-9-]+$", description="Sent as anthropic-version.")
    beta: list[str] = Field(default=[], description="Sent as anthropic-beta.")
    default_max_tokens: int = Field(
        default=4096,
        ge=1,
        description="The limit where neither the request nor the deployment has one: the API insists on one. "
        "With `reasoning_effort` up to 32000, so that an answer fits behind the thinking.",
    )

    @field_validator("base_url")
    @classmethod
    def _add_path(cls, value: str) -> str:
        return value if urlsplit(value).path.strip("/") else value.rstrip("/") + "/v1"

    @property
    def dialect_headers(self) -> dict[str, str]:
        return {"anthropic-version": self.version, **({"anthropic-beta": ",".join(self.beta)} if self.beta else {})}


class Clock(Protocol):
    """Unix seconds, for `created`, which Anthropic's replies do not have."""

    def time(self) -> float: ...


class AnthropicProvider:
    """Implements `Provider`."""

    def __init__(self, name: str, options: AnthropicOptions, clock: Clock) -> None:
        """Raises StartupError for TLS files that can't be used."""
        self.name = name
        self.endpoints: frozenset[str] = frozenset({"chat", "models"})
        self._upstream = Upstream(name, options, ("x-api-key", "{}"), options.dialect_headers)
        self._default_max_tokens = options.default_max_tokens
        self._clock = clock

    async def send(self, call: Call, attempt: Attempt) -> Reply:
        """See `Provider.send`."""
        if call.endpoint == "models":
            return await self._models(call, attempt)
        deployment = attempt.target.deployment
        payload = call.payload or {}
        room = room_for_thinking(payload.get("reasoning_effort"))
        try:
            request = to_anthropic(
                payload,
                model=deployment.model,
                default_max_tokens=deployment.max_output_tokens or max(self._default_max_tokens, room),
                output_cap=attempt.output_cap,
            )
        except Untranslatable as error:
            raise BadRequest(str(error), param=error.param) from error
        response = await self._request(call, attempt, b"POST", "/messages", orjson.dumps(request))
        headers = self._upstream.reply_headers.read(response.headers)
        created = int(self._clock.time())
        if response.status >= 400:
            return await self._error(deployment, response)
        kind = headers.get("content-type", "").lower()
        body: Any = b""
        if kind.startswith("text/event-stream"):
            body = plain_events(response, headers, deployment)
        elif call.is_stream and not kind.startswith("application/json"):
            body = (await read_by_its_start(response, headers, deployment)).body
        if not isinstance(body, bytes):
            attempt.has_hidden_usage = not call.chat.wants_usage
            chunks = _chunks(body, headers, deployment, created)
            return Reply(response.status, headers, TranslatedBody(chunks, body))
        message = _parsed(body) if body else await self._read(deployment, response, headers)
        reply = Reply(response.status, headers)
        reply.headers["content-type"] = "application/json"
        if not isinstance(message, dict) or not isinstance(message.get("content"), list):
            raise _no_message(deployment, message, headers)
        reply.replace_json(from_anthropic(message, model=deployment.model, created=created))
        return reply

    async def aclose(self) -> None:
        """Close all connections."""
        await self._upstream.aclose()

    async def _models(self, call: Call, attempt: Attempt) -> Reply:
        """`GET /v1/models` and one model, in OpenAI's form."""
        deployment = attempt.target.deployment
        is_list = call.path.rstrip("/") == "/v1/models"
        model = deployment.model or call.path.removeprefix("/v1/models/")
        path = "/models?limit=1000" if is_list else f"/models/{quote(model, safe=':@')}"
        response = await self._request(call, attempt, b"GET", path, None)
        if response.status >= 400:
            return await self._error(deployment, response)
        headers = self._upstream.reply_headers.read(response.headers)
        found = await self._read(deployment, response, headers)
        models = [_model(one) for one in (as_list(found.get("data")) if is_list else [found]) if isinstance(one, dict)]
        reply = Reply(response.status, headers)
        reply.replace_json({"object": "list", "data": models} if is_list else models[0])
        return reply

    async def _request(
        self, call: Call, attempt: Attempt, method: bytes, path: str, body: bytes | None
    ) -> UpstreamResponse:
        target = attempt.target
        upstream = self._upstream
        return await upstream.request(
            target,
            method=method,
            path=(upstream.path + path).encode(),
            head=upstream.head(target.deployment, call.headers, has_json=body is not None),
            body=body,
        )

    async def _read(self, deployment: Deployment, response: UpstreamResponse, headers: CIMultiDict[str]) -> JsonObject:
        value = _parsed(await read_plain(response, headers, deployment, MAX_JSON_BYTES))
        if not isinstance(value, dict):
            raise UpstreamError(
                f"{deployment.id} answered {response.status} with what is no JSON object", kind="garbage"
            )
        return value

    async def _error(self, deployment: Deployment, response: UpstreamResponse) -> Reply:
        headers = self._upstream.reply_headers.read(response.headers)
        headers["content-type"] = "application/json"
        said = await read_plain(response, headers, deployment, MAX_ERROR_BYTES)
        body = self._upstream.hide_secrets(headers, said, deployment)
        status, error = error_from_anthropic(response.status, _parsed(body))
        reply = Reply(status, headers)
        reply.replace_json(error)
        return reply


def _no_message(deployment: Deployment, told: Any, headers: CIMultiDict[str]) -> UpstreamError:
    """For what came with status 200 and is an error, or something else."""
    if isinstance(told, dict) and told.get("type") == "error":
        status, error = error_from_anthropic(200, told)
        return _began_with_error(deployment, status, headers, error)
    return UpstreamError(f"{deployment.id} answered with what is no message", kind="garbage")


async def _chunks(
    body: AsyncIterator[bytes], headers: CIMultiDict[str], deployment: Deployment, created: int
) -> AsyncGenerator[bytes, None]:
    """Anthropic's events as chat completion chunks; what one event becomes leaves as one piece.

    Raises UpstreamError for a stream that begins with an error: it still gets the status it would have had without a stream."""
    stream = AnthropicStream(model=deployment.model, created=created)
    has_begun = False
    async with aclosing(read_events(body, deployment.id, are_objects=True)) as events:
        async for event in events:
            if event.comment:
                yield event.comment
            elif event.data is not None and (written := stream.feed(event.name, event.data)):
                if stream.error_status is not None and not has_begun:
                    raise _began_with_error(deployment, stream.error_status, headers, written[0])
                has_begun = True
                yield _serialize(written)
    if written := stream.end():
        yield _serialize(written)


def _began_with_error(
    deployment: Deployment, status: int, headers: CIMultiDict[str], error: JsonObject | bytes
) -> UpstreamError:
    headers = CIMultiDict(headers)
    headers["content-type"] = "application/json"
    return UpstreamError(
        f"{deployment.id} answered with an error",
        kind="stream_error",
        upstream_status=status,
        upstream_body=orjson.dumps(error),
        upstream_headers=headers,
    )


def _serialize(written: list[JsonObject | bytes]) -> bytes:
    return b"".join(one if isinstance(one, bytes) else b"data: %b\n\n" % orjson.dumps(one) for one in written)


def _model(found: JsonObject) -> JsonObject:
    try:
        created = int(datetime.fromisoformat(as_text(found.get("created_at"))).timestamp())
    except ValueError:
        created = 0
    return {"id": as_text(found.get("id")), "object": "model", "created": created, "owned_by": "anthropic"}


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
