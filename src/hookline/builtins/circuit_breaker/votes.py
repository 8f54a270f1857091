"""Votes: what an ended attempt says about its deployment.

Lives here: `vote_of`. Elsewhere: what a failure is (hookline.failure_of), what votes lead to (circuit.py).
Idea: a vote is about the deployment. What the client or the gateway caused says nothing: a wrong request, a client that left, a hedge that lost, the call's own deadline, our
full pool. Else one client's mistakes could open a circuit for all, or keep a dead deployment's closed.
But late is late: an attempt that had waited longer than `slow_call_s` is slow, whoever ended it. Else a deployment that loses every race, or that every client gives up on, would
never be seen by anyone. Where no call is slow, a probe is that got no answer for `patience_s`."""

from __future__ import annotations

from typing import Literal

from hookline import IS_EVIDENCE, Attempt, Call, Failure, UpstreamError, bound_input, failure_of

Vote = Literal["ok", "slow", "failed", "refused", "cooldown"]
"""`refused`: it will not serve us until somebody does something. `cooldown`: it said when to come back."""

VOTE_OF_FAILURE: dict[Failure, Vote | None] = {
    "unreachable": "failed",
    "crowded": None,  # that is about our pool; what it waits for may say more
    "lost": "failed",
    "timeout": "failed",
    "overloaded": "failed",
    "server_error": "failed",
    "missing": "failed",  # it has no such model; objects: see vote_of
    "conflict": None,
    "rate_limit": "cooldown",
    "quota": "refused",
    "refused": "refused",
    "context_window": None,
    "content_policy": None,
    "bad_request": None,
    "deadline": None,
    "ours": "failed",  # it can't be asked as it is configured
}


def vote_of(call: Call, attempt: Attempt, slow_s: float | None) -> Vote | None:
    """None: it says nothing. `slow_s`: longer is slow; None: nothing is."""
    judge = call.slots.get(IS_EVIDENCE)
    if judge is not None and not judge(attempt):
        return None
    error = attempt.error
    if error is None or attempt.is_loser or failure_of(error) == "deadline":
        if slow_s is not None and _took_s(call, attempt) > slow_s:
            return "slow"
        return "ok" if error is None and attempt.is_complete and not attempt.is_loser else None
    if not isinstance(error, UpstreamError):
        return None
    if error.upstream_status == 408:
        return "failed"
    failure = failure_of(error)
    assert failure is not None
    if failure in ("missing", "refused") and error.upstream_status in (403, 404) and _names_objects(call):
        return None  # of that object
    return VOTE_OF_FAILURE[failure]


def _names_objects(call: Call) -> bool:
    """Whether the call is about something the client named, which may not be there, or not be ours."""
    return call.endpoint == "relay" or bound_input(call).open_field is not None


def _took_s(call: Call, attempt: Attempt) -> float:
    """Until the first byte of a stream, or the end: of a whole answer, or of the waiting for either."""
    until = attempt.first_byte_at if call.is_stream and attempt.first_byte_at is not None else attempt.ended_at
    return 0.0 if until is None else until - attempt.started_at
