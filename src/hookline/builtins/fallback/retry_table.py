"""The retry table: after which failure the same deployment may be asked again.

Lives here: `RETRY_TABLE`, what a request leaves behind, the wait before a retry. Elsewhere: what a failure is (hookline.failure_of), how many retries there may be (retry_budget.py),
going to other deployments (the package's __init__).
Idea: three facts decide: what failed, whether the request had been sent, and what sending it twice leaves behind. Where the answer is "maybe twice the work", the answer
is no, for a second answer is paid, and a second batch job runs.

What was sent
- nothing: no byte of the request reached the upstream.
- request: it may have been read, and worked on.
- Bytes of the reply that have left to the client end all retries: then a stream can only be continued (continuation.py).

What it leaves behind
- repeatable: GET, HEAD, OPTIONS, PUT, DELETE (RFC 9110, 9.2.2): nothing, or the same again.
- model call: a POST that asks a model and stores nothing: a bill, where the provider answers. An error answer is not billed.
- other: any other POST or PATCH, and model calls with `store` or `background`: an object, a job."""

from __future__ import annotations

from typing import Literal, NamedTuple

from hookline import Call, Failure, UpstreamError
from hookline.builtins.fallback.options import FallbackOptions

Repeat = Literal["repeatable", "model call", "other"]

MODEL_CALLS = frozenset({"chat", "completions", "embeddings", "moderations", "responses"})
REPEATABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
LATER_AT_MOST = 0.1
"""A retry-after is exceeded by up to this share of it, so that all who were told the same don't come at once."""


class Row(NamedTuple):
    """Whether the same deployment may be asked again. `lost`: only with `retry_lost_calls`."""

    nothing_sent: bool
    repeatable: bool
    model_call: bool | Literal["lost"]
    other: bool


NEVER = Row(False, False, False, False)
RETRY_TABLE: dict[Failure, Row] = {
    "unreachable": Row(True, True, True, True),
    "crowded": Row(True, True, True, True),
    "lost": Row(True, True, "lost", False),
    "timeout": Row(True, True, "lost", False),
    "rate_limit": Row(True, True, True, True),
    "overloaded": Row(True, True, True, True),
    "server_error": Row(True, True, True, False),
    "conflict": Row(True, True, True, False),
    "quota": NEVER,
    "refused": NEVER,
    "missing": NEVER,
    "context_window": NEVER,
    "content_policy": NEVER,
    "bad_request": NEVER,
    "deadline": NEVER,
    "ours": NEVER,
}


def repeat_of(call: Call) -> Repeat:
    """What sending this call twice leaves behind."""
    if call.method in REPEATABLE_METHODS:
        return "repeatable"
    if call.endpoint not in MODEL_CALLS:
        return "other"
    payload = call.payload or {}
    is_stored = payload.get("store", call.endpoint == "responses") is not False or payload.get("background") is True
    return "other" if is_stored and (call.endpoint == "responses" or "store" in payload) else "model call"


def may_retry(failure: Failure, *, is_sent: bool, repeat: Repeat, retry_lost_calls: bool = False) -> bool:
    """The table's answer."""
    row = RETRY_TABLE[failure]
    if not is_sent:
        return row.nothing_sent
    answer = {"repeatable": row.repeatable, "model call": row.model_call, "other": row.other}[repeat]
    return retry_lost_calls if answer == "lost" else bool(answer)


def wait_s(error: UpstreamError, retries: int, options: FallbackOptions, draw: float) -> float | None:
    """Seconds until the next try after `retries` so far; None: too long. `draw`: 0 <= draw < 1."""
    asked_s = error.retry_after_s
    if asked_s is None:
        return min(options.backoff_s * 2.0**retries, options.max_backoff_s) * (0.5 + draw / 2)
    later_s = asked_s * (1 + LATER_AT_MOST * draw)
    return None if asked_s > options.max_wait_s else later_s


def table_as_markdown() -> str:
    """For the reference."""
    words = {True: "yes", False: "no", "lost": "with `retry_lost_calls`"}
    rows = [f"| `{failure}` | {' | '.join(words[answer] for answer in row)} |" for failure, row in RETRY_TABLE.items()]
    head = "| failure | nothing sent | sent: repeatable | sent: model call | sent: other |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"
