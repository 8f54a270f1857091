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
    "string_above_max_length": "context_window",
    "content_filter": "content_policy",
    "content_policy_violation": "content_policy",
    "moderation_blocked": "content_policy",
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
)
SAID_OF_CONTENT = (
    "content filtering policy",
    "content management policy",
    "content policy",
    "responsibleaipolicyviolation",
)
SAID_OF_MONEY = "credit balance is too low"
"""Anthropic answers it with the status of a wrong request, 400."""
SAID_OF_FLAGGED_INPUT = "input was flagged"
"""OpenRouter answers it with the status of a wrong key, 403."""
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
    """Some say by their message only that it was the length, the content, or the money."""
    if failure not in ("bad_request", "refused"):
        return failure
    message = str(told.get("message")).lower()
    if failure == "refused":
        return "content_policy" if SAID_OF_FLAGGED_INPUT in message else failure
    if SAID_OF_MONEY in message:
        return "quota"
    if any(words in message for words in SAID_OF_LENGTH):
        return "context_window"
    return "content_policy" if any(words in message for words in SAID_OF_CONTENT) else failure


def _told(body: bytes | None) -> dict[str, Any]:
    """The error object in a body, {} if it holds none."""
    if not body or len(body) > READ_BYTES_MAX:
        return {}
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = told.get("error") if isinstance(told, dict) else None
    return error if isinstance(error, dict) else {}
