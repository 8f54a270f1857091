"""Attempts, their results, tickets, and the provider that is asked.

Lives here: one try at one target, how it ended, what was taken for it. Elsewhere: the request (call.py), who runs the loop (pipeline.py).
Idea: what differs per attempt lives here and is applied by the provider, so that the request can stay frozen."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from hookline.deployment import Deployment, Target
from hookline.errors import ApiError, InternalError, Unavailable, UpstreamError
from hookline.money import Usage
from hookline.reply import Reply, Source

if TYPE_CHECKING:
    from hookline.call import Call

Outcome = Literal[
    "ok", "rejected", "upstream_error", "upstream_lost", "client_gone", "timeout", "internal_error", "shutdown"
]  # fmt: skip


def outcome_of(error: ApiError) -> Outcome:
    """How a call ends whose answer is this error."""
    if isinstance(error, InternalError):
        return "internal_error"
    if isinstance(error, UpstreamError) and error.kind == "deadline":
        return "timeout"
    return "upstream_error" if isinstance(error, UpstreamError | Unavailable) else "rejected"


class Ticket(Protocol):
    """Whatever was taken and must be given back: a slot, reserved money, a probe, the lead of a flight."""

    def settle(self, result: Result, /) -> Awaitable[None] | None:
        """Give it back. Called exactly once, on every exit. A `settle` that raises is logged and left to expiry."""


class Attempt:
    """One try at one target. Times are the clock's monotonic seconds; None = did not happen."""

    __slots__ = (
        "charged_nanousd", "ended_at", "error", "first_byte_at", "has_hidden_usage", "is_charge_estimated", "is_complete", "is_failed_by_filter",
        "is_hedge", "is_loser", "is_relayed", "number", "output_cap", "reply", "started_at", "status", "target", "tickets", "usage",
    )  # fmt: skip

    def __init__(self, target: Target, number: int, started_at: float) -> None:
        self.target = target
        self.number = number
        self.started_at = started_at
        self.first_byte_at: float | None = None
        self.ended_at: float | None = None
        self.status: int | None = None
        self.error: ApiError | None = None
        self.usage: Usage | None = None
        self.output_cap: int | None = None
        self.is_complete = False
        self.is_hedge = False
        self.is_loser = False
        """It lost a race: cancelled by us, so all it says about the deployment is how long it had waited."""
        self.is_failed_by_filter = False
        """An answer that the provider's content filter stopped before anything was said counts as a failure, not as an answer."""
        self.is_relayed = False
        """Its stream is, or was, on its way to the client; two of one call: the second went on where the first died."""
        self.has_hidden_usage = False
        """The provider asked for a usage event that the client did not ask for."""
        self.reply: Reply | None = None
        """What the upstream answered, whatever its status; None: it did not answer."""
        self.charged_nanousd: int | None = None
        """What a ticket that keeps books has charged for it; None: nobody did, or nobody knows a price."""
        self.is_charge_estimated = False
        self.tickets: list[Ticket] = []

    @property
    def deployment(self) -> Deployment:
        return self.target.deployment

    def lower_output_cap(self, tokens: int) -> None:
        """Cap the output of this attempt at `tokens`; the minimum of all callers wins."""
        self.output_cap = tokens if self.output_cap is None else min(self.output_cap, tokens)


class Result(NamedTuple):
    """How an attempt or a call ended: what tickets settle by and `call_ended` sees. `cost_nanousd` is None where no price is known."""

    outcome: Outcome
    source: Source = "upstream"
    attempt: Attempt | None = None
    status: int | None = None
    usage: Usage | None = None
    cost_nanousd: int | None = 0
    is_estimated: bool = False
    error: ApiError | None = None
    ended_at: float = 0.0
    first_byte_at: float | None = None


class Provider(Protocol):
    """A wire dialect towards upstreams: everything a provider must be."""

    name: str
    endpoints: frozenset[str]
    """The `Endpoint`s it can serve; a missing one makes its deployments skipped targets."""

    async def send(self, call: Call, attempt: Attempt, /) -> Reply:
        """Ask the upstream; return when its head is there (JSON replies whole, event streams and binary ones as iterators).

        Any status is a Reply. Raises UpstreamError when there is no answer, BadRequest for what can't be translated. Sends
        `attempt.deployment.model`, `attempt.output_cap` and what its dialect needs beside the client's own bytes. Cancelled: closes its connection."""

    async def aclose(self) -> None: ...
