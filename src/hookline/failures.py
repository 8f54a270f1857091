"""Failures: what kind of trouble an upstream is in, in the words that policies are written in.

Lives here: `Failure`, the two tables from kinds and statuses to it, the codes by which providers tell the exact case. Elsewhere: how an upstream can fail on the wire (errors.py),
what is done about it (builtins/fallback, builtins/circuit_breaker).
Idea: retries, fallback lists and breaker votes must agree on what "rate limited" or "overloaded" is, so it is decided once. A code inside the error body says more than its status."""

from __future__ import annotations

from typing import Any, Literal

import orjson

from hookline.errors import ApiError, UpstreamError

Failure = Literal[
    "unreachable",  # no connection: nothing was sent
    "crowded",  # all connections that we allow ourselves to it are busy: nothing was sent, and it has not been asked
    "lost",  # the connection or its bytes broke
    "timeout",  # the upstream took too long
    "rate_limit",  # too many requests or tokens for now
    "quota",  # the account has no money left
    "overloaded",  # it refused because it is busy
    "server_error",  # it failed
    "conflict",  # 408 and 409: it gave this request up, another time it may work
    "refused",  # it does not know or want us: credentials, permission
    "missing",  # no such model or object
    "context_window",  # the request is too long for this model
    "content_policy",  # the request was found objectionable
    "bad_request",  # the request is wrong
    "deadline",  # the call's own time is over
    "ours",  # configuration, or something no upstream was asked about
]

FAILURE_OF_KIND: dict[str, Failure] = {
    "connect": "unreachable",
    "connect_timeout": "unreachable",
    "tls": "unreachable",
    "pool_timeout": "crowded",
    "reset": "lost",
    "garbage": "lost",
    "write_timeout": "timeout",
    "first_byte_timeout": "timeout",
    "idle_timeout": "timeout",
    "total_timeout": "timeout",
    "throughput_timeout": "timeout",
    "deadline": "deadline",
    "configuration": "ours",
    "stream_error": "server_error",
    "status": "server_error",
}
"""For failures without an upstream status."""
FAILURE_OF_STATUS: dict[int, Failure] = {
    401: "refused",
    402: "quota",
    403: "refused",
    404: "missing",
    408: "conflict",
    409: "conflict",
    429: "rate_limit",
    503: "overloaded",
    529: "overloaded",  # Anthropic
}
"""Every other 4xx is a bad request, every other 5xx a server error."""
FAILURE_OF_CODE: dict[str, Failure] = {
    "insufficient_quota": "quota",
    "billing_error": "quota",
    "context_length_exceeded": "context_window",
    "exceed_context_size_error": "context_window",  # llama.cpp
    "string_above_max_length": "context_window",
    "content_filter": "content_policy",
    "content_policy_violation": "content_policy",
    "moderation_blocked": "content_policy",
    "data_inspection_failed": "content_policy",  # Alibaba
    "rate_limit_exceeded": "rate_limit",
    "rate_limit_error": "rate_limit",
    "overloaded_error": "overloaded",
    "authentication_error": "refused",
    "invalid_api_key": "refused",
    "permission_error": "refused",
    "not_found_error": "missing",
    "model_not_found": "missing",
    "invalid_request_error": "bad_request",
    "request_too_large": "context_window",
    "timeout_error": "timeout",
    "api_error": "server_error",
    "server_error": "server_error",
}
"""`code`, then `type` of the error object. A general one does not overrule what the status says (see `failure_of`)."""
GENERAL = frozenset({"invalid_request_error", "api_error", "server_error"})
SAID_OF_LENGTH = (
    "maximum context length",
    "context window",
    "prompt is too long",
    "input is too long",
    "context length",
    "maximum prompt length",  # xAI
    "context size",  # llama.cpp
    "exceeds the maximum number of tokens",  # Gemini
    "`inputs` tokens +",  # text-generation-inference, Together
)
SAID_OF_CONTENT = (
    "content filtering policy",
    "content management policy",
    "content policy",
    "responsibleaipolicyviolation",
    "content exists risk",  # DeepSeek
    "input was flagged",  # OpenRouter
    "prompt was flagged",  # OpenAI's reasoning models
    "content violates usage guidelines",  # xAI
)
SAID_OF_MONEY = ("credit balance is too low",)
"""Anthropic, with a 400."""
SAID: dict[Failure, tuple[str, ...]] = {
    "context_window": SAID_OF_LENGTH,
    "content_policy": SAID_OF_CONTENT,
    "quota": SAID_OF_MONEY,
}
READ_BYTES_MAX = 65_536


def failure_of(error: ApiError | None) -> Failure | None:
    """What kind of failure this is; None: none."""
    if error is None:
        return None
    if not isinstance(error, UpstreamError):
        return "ours" if error.reply_status >= 500 else "bad_request"
    status = error.upstream_status
    if status is None:
        return FAILURE_OF_KIND[error.kind]
    told = _told(error.upstream_body)
    for member in ("code", "type"):
        said = FAILURE_OF_CODE.get(str(told.get(member)))
        if said is not None and (str(told.get(member)) not in GENERAL or error.kind == "stream_error"):
            return _exact(said, told)
    by_status = FAILURE_OF_STATUS.get(status, "bad_request" if status < 500 else "server_error")
    return _exact(by_status, told)


def _exact(failure: Failure, told: dict[str, Any]) -> Failure:
    """Some say by their message only that it was the length, the content or the money; a 403 may be about the content, too, and not about us."""
    if failure not in ("bad_request", "refused"):
        return failure
    message = str(told.get("message")).lower()
    for said, words in SAID.items():
        if (failure == "bad_request" or said == "content_policy") and any(phrase in message for phrase in words):
            return said
    return failure


def _told(body: bytes | None) -> dict[str, Any]:
    """The error object in a body, {} if it holds none. Some wrap it in a list (Gemini), or tell only a sentence (xAI, LM Studio), or without a wrapping (vLLM, Mistral)."""
    if not body or len(body) > READ_BYTES_MAX:
        return {}
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(told, list) and told:
        told = told[0]
    if not isinstance(told, dict):
        return {}
    error = told.get("error")
    if isinstance(error, str):
        return {**told, "message": error}
    return error if isinstance(error, dict) else told
