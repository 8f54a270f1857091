"""The hooks: twelve per call, five at registration. Read this first.

Lives here: what each hook is given, may change and answers, in the order of a call's life, each `def` or `async def`. Elsewhere: what a plugin is given (host.py), how hooks are compiled (chain.py), who calls them (pipeline.py).
Idea: `@phase` carries the rule by which answers combine and what an exception means; the chain, the docs and `hookline plugins` all read it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import pluggy

from hookline.attempt import Attempt, Result, Ticket
from hookline.call import Call
from hookline.deployment import Target
from hookline.errors import ApiError
from hookline.host import AddCommand, AddProvider, AddRoute, AddStore, AddWorker
from hookline.principal import Principal
from hookline.reply import Event, Reply
from hookline.steps import Step

F = TypeVar("F", bound=Callable[..., Any])
Combine = Literal["first", "each", "all", "pipe"]
OnError = Literal["closed", "open"]

_spec = pluggy.HookspecMarker("hookline")
_impl = pluggy.HookimplMarker("hookline")


class Phase(NamedTuple):
    """The rules of one per-call hook. `first`: the first answer that is not None; `all`: tickets are kept; `pipe`: each gets the last one's answer."""

    order: int
    combine: Combine
    on_error: OnError
    is_reversed: bool = False


def phase(order: int, *, combine: Combine, on_error: OnError, reverse: bool = False) -> Callable[[F], F]:
    """Mark a per-call hookspec with its place and rules."""

    def mark(function: F) -> F:
        function.hookline_phase = Phase(order, combine, on_error, reverse)  # type: ignore[attr-defined]
        return _spec(function)

    return mark


def hookimpl(function: F) -> F:
    """Mark a method as the implementation of the hook it is named after. There are no options: order is `[chain]`'s business."""
    return _impl(function)


@phase(1, combine="first", on_error="closed")
def authenticate(call: Call) -> Principal | None:
    """Say who pays, from the headers.

    When: first, before the body is read (`call.payload` is None); skipped for a call that carries its principal.
    May change: nothing.
    Ends the call by: raising `Rejected(Unauthenticated(...))`.
    If it raises: closed, the call fails with 500; nobody gets in by breaking a plugin.
    Example plugin: auth."""


@phase(2, combine="each", on_error="closed")
def prepare(call: Call) -> None:
    """Edit the request: templates, masking, defaults.

    When: the body is parsed; before the model name is looked up.
    May change: the payload through `call.edit_payload()`, `call.tags`, `call.deadline`, `call.on_disconnect`.
    Ends the call by: raising `Rejected(error)`.
    If it raises: closed, the call fails with 500; half an edit is never sent.
    Example plugin: mask."""


@phase(3, combine="all", on_error="closed")
def admit(call: Call) -> Ticket | None:
    """Let the call in, or not: rate limits, parallel slots.

    When: the model is known and allowed; once per call, cache hits included.
    May change: nothing; the request is frozen. Takes by returning a Ticket, which settles when the call ends.
    Ends the call by: raising `Rejected(RateLimited(...))`.
    If it raises: closed, the call fails with 500.
    Example plugin: rate_limit."""


@phase(4, combine="first", on_error="open")
def lookup(call: Call) -> Reply | Ticket | None:
    """Answer without an upstream, or take the lead so that others can wait for this answer.

    When: after `admit`, before any target is chosen.
    May change: nothing. A Reply ends the search; a Ticket is kept and the search goes on.
    Ends the call by: returning a `Reply`, or raising `Rejected(error)`.
    If it raises: open, as if it had answered None (`idempotency` is closed: it raises Rejected itself).
    Example plugin: cache."""


@phase(5, combine="pipe", on_error="closed")
def select(call: Call, targets: list[Target]) -> list[Target]:  # type: ignore[empty-body]
    """Choose the targets to try, in order.

    When: once per call; the first plugin gets the model's deployments as listed.
    May change: the list and the Targets in it (timeouts, `hedge_after_s`, `is_forced`, `reason`).
    Ends the call by: raising `Rejected(BadRequest(...))` when nothing qualifies.
    If it raises: closed, the call fails with 500.
    Example plugin: model_selection."""


@phase(6, combine="all", on_error="open")
def admit_attempt(call: Call, target: Target, attempt: Attempt) -> Ticket | None:
    """Let this attempt go to this target, or skip the target: open circuit, budget does not fit this price, the deployment's own limit.

    When: before each attempt, hedges and retries included.
    May change: `attempt.lower_output_cap(n)`. Takes by returning a Ticket, which settles when the attempt ends.
    Ends the call by: raising `Skip(reason, error)` drops the target; `Rejected(error)` ends the call.
    If it raises: open, the attempt goes ahead (a plugin that guards money sets `on_error = "closed"` on its class).
    Example plugin: budget."""


@phase(7, combine="each", on_error="open", reverse=True)
def attempt_ended(call: Call, attempt: Attempt) -> None:
    """Observe the end of an attempt: breaker votes, latency scores.

    When: after each attempt, before its tickets settle; a hedge that lost has `attempt.is_loser`.
    May change: nothing.
    Ends the call by: it can't.
    If it raises: open, logged and counted.
    Example plugin: circuit_breaker."""


@phase(8, combine="first", on_error="open")
def after_failure(call: Call, attempt: Attempt) -> Step | None:
    """Decide what comes after a failed attempt: `Retry`, `Fallback`, `Continue`, `GiveUp`.

    When: `attempt.error` is set; before the first byte has left, or after it (then only `Continue` goes on).
    May change: nothing.
    Ends the call by: returning `GiveUp()`; if every plugin answers None, that is the same.
    If it raises: open, as if it had answered None.
    Example plugin: fallback."""


@phase(9, combine="first", on_error="open")
def rescue(call: Call, error: ApiError) -> Reply | None:
    """Answer although every target failed: a stale cache entry, a static answer.

    When: upstream errors and 503; not after `Rejected` or budget skips.
    May change: nothing.
    Ends the call by: returning a `Reply` with `source="rescue"`.
    If it raises: open, as if it had answered None.
    Example plugin: cache."""


@phase(10, combine="pipe", on_error="closed", reverse=True)
def edit_reply(call: Call, reply: Reply) -> Reply:  # type: ignore[empty-body]
    """Edit the reply, or attach a tap that sees a stream's bytes.

    When: the status is known, before anything has left. A plugin's own reply passes only the plugins listed before it.
    May change: status, headers, a bytes body; `reply.tap(...)` on a streamed one.
    Ends the call by: raising `Rejected(error)`: the error is sent instead.
    If it raises: closed, the call fails with 500; an unedited reply never leaves.
    Example plugin: mask."""


@phase(11, combine="pipe", on_error="closed", reverse=True)
def edit_event(call: Call, event: Event) -> Event | Sequence[Event] | None:
    """Edit one event of a stream. None drops it, a sequence replaces it.

    When: for each event of a `text/event-stream` body; without an implementation no event is parsed. Sync only.
    May change: the event, through `event.replace_json(...)`.
    Ends the call by: raising: the stream ends with an error event.
    If it raises: closed.
    Example plugin: mask."""


@phase(12, combine="each", on_error="open", reverse=True)
def call_ended(call: Call, result: Result) -> None:
    """Observe the end of a call: logs, metrics.

    When: once per call, last of all, with the final usage and cost, also when the client hung up.
    May change: nothing.
    Ends the call by: it can't.
    If it raises: open, logged and counted.
    Example plugin: logging."""


@_spec
def register_providers(add: AddProvider) -> None:
    """Add provider kinds: `add("mywire", factory, options=Model)`; `[providers.x] kind = "mywire"` then uses it."""


@_spec
def register_routes(add: AddRoute) -> None:
    """Add HTTP routes outside `/v1`: `add("GET", "/metrics", handler, access="loopback")`."""


@_spec
def register_commands(add: AddCommand) -> None:
    """Add sub-commands of `hookline`: `add("keys", function)`; the function's signature becomes the options (typer)."""


@_spec
def register_stores(add: AddStore) -> None:
    """Add store back ends by URL scheme: `add("redis", factory, store="limits")`."""


@_spec
def register_workers(add: AddWorker) -> None:
    """Add long-running coroutines of this process: supervised, restarted on failure, cancelled at stop."""
