"""OpenAI: every upstream that speaks the OpenAI wire.

Lives here: the options of that wire, what is sent for one attempt, and asking streams for their usage. Elsewhere: the bytes of a body (body.py), headers (headers.py), what becomes of
the reply (answer.py), Azure's addresses (azure.py), other dialects (anthropic.py), what a server without an endpoint is asked instead (bridge.py).
Idea: the same dialect on both sides, so the client's bytes and the upstream's bytes pass as they are; only the model name, `stream_options` and a completion limit may differ.

A stream's usage: where the client did not ask for it, we do (`attempt.has_hidden_usage`). An upstream that refuses the option with 400 or 422 is asked again without it, once,
in the same attempt, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, SecretStr

from hookline.attempt import Attempt
from hookline.call import Call, Endpoint
from hookline.deployment import Deployment
from hookline.providers.answer import to_reply
from hookline.providers.body import limit_changes, splice
from hookline.providers.chat_models import output_limit_field
from hookline.providers.upstream import Upstream
from hookline.providers.upstream_options import UpstreamOptions
from hookline.reply import Reply
from hookline.transport import UpstreamResponse
from hookline.upload import Upload

ALL_ENDPOINTS: frozenset[str] = frozenset(get_args(Endpoint))
MAX_REMEMBERED = 1000
_BODYLESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_WITH_USAGE_OPTION = frozenset({"chat", "completions"})
_KNOWS_NEW_LIMIT = ("openai.com", "openai.azure.com")


class OpenAIOptions(UpstreamOptions):
    """`kind = "openai"`."""

    base_url: str = Field(
        default="https://api.openai.com/v1", description="What stands in place of `/v1`.", validate_default=True
    )
    organization: SecretStr | None = Field(default=None, description="Sent as OpenAI-Organization.")
    project: SecretStr | None = Field(default=None, description="Sent as OpenAI-Project.")
    endpoints: list[Endpoint] | None = Field(
        default=None,
        description="Which the server has; default all. Without `responses` or `completions` these are served by `chat`.",
    )
    stream_usage: bool = Field(default=True, description="Ask streams for their usage where the client did not.")
    chat_limit: Literal["max_completion_tokens", "max_tokens"] | None = Field(
        default=None,
        description="The name of the completion limit that is added to a chat request without one. "
        "Default: max_completion_tokens at OpenAI and Azure and for OpenAI's reasoning models, else max_tokens, which every server knows.",
    )

    @property
    def dialect_headers(self) -> dict[str, str]:
        named = {"openai-organization": self.organization, "openai-project": self.project}
        return {name: value.get_secret_value() for name, value in named.items() if value is not None}

    def limit_name(self, model: str) -> str:
        """What a chat request without a completion limit gets, where one must be set."""
        host = urlsplit(self.base_url).hostname or ""
        if self.chat_limit is not None or not any(
            host == known or host.endswith("." + known) for known in _KNOWS_NEW_LIMIT
        ):
            return self.chat_limit or output_limit_field(model)
        return "max_completion_tokens"


class WritePath(Protocol):
    """Where a call goes: the path and query of the request line."""

    def __call__(self, call: Call, deployment: Deployment, /) -> str: ...


def plain_path(base_path: str) -> WritePath:
    """`base_path` in place of `/v1`; percent-encoding and query go on byte for byte. A model asked for by name is asked for by its upstream name."""

    def write(call: Call, deployment: Deployment) -> str:
        rest = call.path[3:]
        if (
            call.endpoint == "models"
            and deployment.model
            and unquote(rest) not in ("/models", f"/models/{deployment.model}")
        ):
            rest = "/models/" + quote(deployment.model, safe="/:@")
        return f"{base_path}{rest}?{call.query}" if call.query else base_path + rest

    return write


class OpenAIProvider:
    """Implements `Provider`."""

    def __init__(
        self,
        name: str,
        options: OpenAIOptions,
        *,
        write_path: Callable[[str], WritePath] = plain_path,
        key_header: tuple[str, str] = ("authorization", "Bearer {}"),
    ) -> None:
        """Raises StartupError for TLS files that can't be used."""
        self.name = name
        self.endpoints: frozenset[str] = (
            frozenset(options.endpoints) if options.endpoints is not None else ALL_ENDPOINTS
        )
        self._upstream = Upstream(name, options, key_header, options.dialect_headers)
        self._write_path = write_path(self._upstream.path)
        self._asks_usage = options.stream_usage
        self._limit_name = lru_cache(MAX_REMEMBERED)(options.limit_name)
        self._refuses_usage: dict[str, None] = {}

    async def send(self, call: Call, attempt: Attempt) -> Reply:
        """See `Provider.send`."""
        deployment = attempt.target.deployment
        upload = call.upload
        if upload is not None:
            response = await self._send_upload(call, attempt, upload)
        elif call.payload is None:
            response = await self._send_json(call, attempt, call.body or None)
        else:
            changes = self._changes(call, attempt)
            if not call.is_stream or not self._add_usage(call, attempt, changes):
                body = splice(call.body, call.payload, changes) if changes else call.body
                response = await self._send_json(call, attempt, body)
            else:
                return await self._send_asking_usage(call, attempt, changes)
        return await to_reply(self._upstream, call, deployment, response)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._upstream.aclose()

    def _changes(self, call: Call, attempt: Attempt) -> dict[str, Any]:
        payload = call.payload or {}
        model = attempt.target.deployment.model
        changes: dict[str, Any] = {}
        if model and payload.get("model") != model:
            changes["model"] = model
        if attempt.output_cap is not None:
            changes |= limit_changes(payload, call.endpoint, attempt.output_cap, chat_name=self._limit_name(model))
        return changes

    def _add_usage(self, call: Call, attempt: Attempt, changes: dict[str, Any]) -> bool:
        """Ask for the stream's usage, if the client did not and the upstream is not known to refuse it."""
        if (
            not self._asks_usage
            or call.endpoint not in _WITH_USAGE_OPTION
            or attempt.target.deployment.id in self._refuses_usage
        ):
            return False
        options = (call.payload or {}).get("stream_options")
        if options is None:
            options = {}
        elif not isinstance(options, dict) or options.get("include_usage") is True:
            return False
        changes["stream_options"] = {**options, "include_usage": True}
        return True

    async def _send_asking_usage(self, call: Call, attempt: Attempt, changes: dict[str, Any]) -> Reply:
        deployment = attempt.target.deployment
        payload = call.payload or {}
        response = await self._send_json(call, attempt, splice(call.body, payload, changes))
        reply = await to_reply(self._upstream, call, deployment, response)
        if reply.status not in (400, 422) or not _names_usage_option(reply.body):
            attempt.has_hidden_usage = True
            return reply
        del changes["stream_options"]
        body = splice(call.body, payload, changes) if changes else call.body
        reply = await to_reply(self._upstream, call, deployment, await self._send_json(call, attempt, body))
        if reply.status not in (400, 422):  # else the refusal was of something else, and only quoted the option
            if len(self._refuses_usage) >= MAX_REMEMBERED:
                self._refuses_usage.clear()
            self._refuses_usage[deployment.id] = None
        return reply

    async def _send_json(self, call: Call, attempt: Attempt, body: bytes | None) -> UpstreamResponse:
        target = attempt.target
        upstream = self._upstream
        return await upstream.request(
            target,
            method=call.method.encode(),
            path=_encode(self._write_path(call, target.deployment)),
            head=upstream.head(target.deployment, call.headers, has_json=body is not None),
            body=body if body or call.method not in _BODYLESS else None,
        )

    async def _send_upload(self, call: Call, attempt: Attempt, upload: Upload) -> UpstreamResponse:
        """Multipart and binary bodies: whole ones may be sent again, the bytes are the upload's own business."""
        target = attempt.target
        model = target.deployment.model
        new_model = model if model and upload.model is not None and upload.model != model else None
        upstream = self._upstream
        return await upstream.request(
            target,
            method=call.method.encode(),
            path=_encode(self._write_path(call, target.deployment)),
            head=upstream.head(target.deployment, call.headers),
            body=upload.chunks(new_model),
            # With another model name the length is another one, and only the upload knows it: such a body goes out in chunks.
            content_length=upload.content_length if new_model is None else None,
        )


def _names_usage_option(body: object) -> bool:
    return isinstance(body, bytes) and (b"stream_options" in body or b"include_usage" in body)


def _encode(path: str) -> bytes:
    """The bytes the client sent: the server decodes them as UTF-8, and keeps what is none as surrogates."""
    return path.encode("utf-8", "surrogateescape")
