"""Errors of attempts: what an upstream's failure is, and what the client is told when no target is left.

Lives here: an error status, an error inside a stream, an exception of a provider, as UpstreamError; the one answer that many skips make. Elsewhere: the loop (attempts.py),
the kinds (errors.py), what they mean for policies (failures.py).
Idea: functions of data; the loop and the relay both ask them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from hookline.attempt import Attempt
from hookline.call import Call
from hookline.content_filter import FILTERED, is_filtered
from hookline.deployment import Target
from hookline.errors import (
    UPSTREAM_KINDS,
    ApiError,
    BadRequest,
    InsufficientQuota,
    RateLimited,
    Skip,
    Unavailable,
    UpstreamError,
)
from hookline.openai_wire import error_of
from hookline.reply import Reply
from hookline.told_limits import wait_for_more

ANYTHING = frozenset({"relay", "models"})
"""Whose answers may be anything; those of the others are JSON, or the stream that was asked for."""

ANSWER_IN: dict[str, dict[str, type]] = {
    "chat": {"choices": list},
    "completions": {"choices": list},
    "embeddings": {"data": list},
    "moderations": {"results": list},
    "responses": {"status": str, "output": list},  # one in the background has no output yet
}
"""Endpoint -> members with their types: an object that has none of them is no answer; SDKs fall over it."""

log = logging.getLogger("hookline.attempts")


def no_target_error(skips: Sequence[tuple[Target, Skip]]) -> ApiError:
    """What the client is told when no target is left and none was tried."""
    reasons = "; ".join(f"{target.deployment.id}: {skip.reason}" for target, skip in skips) or "no target was chosen"
    errors = [skip.error for _, skip in skips if skip.error is not None]
    waits = [e.retry_after_s for e in errors if e.retry_after_s is not None]
    if errors and len(errors) == len(skips):
        if all(400 <= e.status < 500 and e.status != 429 for e in errors):
            return errors[0]
        quota = [e for e in errors if isinstance(e, InsufficientQuota)]
        if quota and all(400 <= e.status < 500 and (e.status != 429 or e in quota) for e in errors):
            if len(errors) == 1:
                return errors[0]
            return InsufficientQuota(
                f"no deployment fits what is left: {reasons}", retry_after_s=min(waits, default=None)
            )
        if all(isinstance(e, RateLimited) for e in errors):
            may_retry = any(e.may_retry for e in errors)
            after_s = min(waits, default=1.0 if may_retry else None)
            told = f"no deployment may be called now: {reasons}"
            return RateLimited(told, retry_after_s=after_s, may_retry=may_retry)
    return Unavailable(f"no deployment can take this call: {reasons}", retry_after_s=min(waits, default=1.0))


def as_upstream_error(error: Exception, deployment: str) -> UpstreamError:
    """Any failure of an upstream's body as an UpstreamError. A transport's own error is known by its `kind`."""
    if isinstance(error, UpstreamError):
        return error
    kind = getattr(error, "kind", None)
    if kind in UPSTREAM_KINDS:
        return UpstreamError(f"{deployment}: {error}", kind=kind, is_written=getattr(error, "is_written", True))
    log.error("%s: the provider failed: %s: %s", deployment, type(error).__name__, error, exc_info=error)
    return UpstreamError(f"{deployment}: the answer could not be read; see the log of the gateway", kind="garbage")


def unsupported(call: Call, target: Target) -> BadRequest:
    return BadRequest(
        f"{target.deployment.id} has no endpoint for {call.method} {call.path}; ask a model at a provider that has it",
        code="unsupported_endpoint",
    )


def status_error(deployment: str, reply: Reply) -> UpstreamError:
    return UpstreamError(
        f"{deployment} answered {reply.status}",
        kind="status",
        upstream_status=reply.status,
        upstream_body=reply.body if isinstance(reply.body, bytes) else b"",
        upstream_headers=reply.headers,
        retry_after_s=retry_after_of(reply),
    )


def retry_after_of(reply: Reply) -> float | None:
    """Seconds, as `retry-after-ms` (OpenAI, Azure) or `retry-after` says them; of a 429 without either, until what is used up comes back."""
    exact_ms = seconds_of(reply.headers.get("retry-after-ms", ""))
    if exact_ms is not None:
        return exact_ms / 1000
    said_s = seconds_of(reply.headers.get("retry-after", ""))
    return wait_for_more(reply.headers, time.time()) if said_s is None and reply.status == 429 else said_s


def seconds_of(retry_after: str) -> float | None:
    """What a `retry-after` says: seconds, or the time until an HTTP date (RFC 9110, 10.2.3)."""
    if len(retry_after) < 20 and retry_after.isascii() and retry_after.replace(".", "", 1).isdigit():
        return float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
        return max((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def stream_error(deployment: str, told: dict[str, Any]) -> UpstreamError:
    if told is FILTERED:
        return filter_error(deployment)
    code = str(told.get("code"))
    status = int(code) if code.isdecimal() and 400 <= int(code) < 600 else 502
    return UpstreamError(
        f"{deployment} answered with an error",
        kind="stream_error",
        upstream_status=status,
        upstream_body=orjson.dumps({"error": told}),
        upstream_headers={"content-type": "application/json"},
    )


def filter_error(deployment: str) -> UpstreamError:
    """As if the provider had refused the request, which others do with a 400."""
    return UpstreamError(
        f"{deployment} stopped its answer by its content filter",
        kind="status",
        upstream_status=400,
        upstream_body=orjson.dumps({"error": FILTERED}),
        upstream_headers={"content-type": "application/json"},
    )


def check_answer(call: Call, attempt: Attempt, reply: Reply, told: Any) -> None:
    """A whole answer to a POST; `told` is its JSON, None if it is none, or compressed. Raises UpstreamError for one that is no answer, whatever its status says."""
    if call.endpoint in ANYTHING or "content-encoding" in reply.headers:
        return
    deployment = attempt.deployment.id
    if told is None:
        raise UpstreamError(f"{deployment} answered {reply.status} with what is no JSON", kind="garbage")
    if error := error_of(told):
        raise stream_error(deployment, error)
    if not isinstance(told, dict):
        raise UpstreamError(f"{deployment} answered {reply.status} with JSON that is no object", kind="garbage")
    members = ANSWER_IN[call.endpoint]
    if reply.status < 300 and not any(isinstance(told.get(name), kind) for name, kind in members.items()):
        what = f"JSON that has no {' and no '.join(members)}"
        raise UpstreamError(f"{deployment} answered {reply.status} with {what}", kind="garbage")
    if attempt.is_failed_by_filter and is_filtered(told):
        raise filter_error(deployment)
