"""Fallback: which failures go on to the next target, as a table."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from hookline import UPSTREAM_KINDS, BadRequest, Unavailable, UpstreamError, failure_of
from hookline.builtins.fallback import FallbackOptions, may_go_on


def answered(status: int) -> UpstreamError:
    return UpstreamError(f"the upstream answered {status}", kind="status", upstream_status=status)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 409, 429, 500, 502, 503, 504, 529])
def test_statuses_that_another_target_may_not_share_go_on(status: int) -> None:
    assert may_go_on(answered(status), FallbackOptions())


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_statuses_that_blame_the_request_stay(status: int) -> None:
    assert not may_go_on(answered(status), FallbackOptions())


@pytest.mark.parametrize(
    "kind", ["connect", "tls", "reset", "garbage", "connect_timeout", "first_byte_timeout", "idle_timeout"]
)
def test_failures_without_an_answer_go_on(kind: str) -> None:
    assert may_go_on(UpstreamError("no answer", kind=kind), FallbackOptions())


def test_nothing_is_tried_after_the_calls_deadline() -> None:
    assert not may_go_on(UpstreamError("too late", kind="deadline"), FallbackOptions())


def test_only_the_deadline_stays_among_the_kinds() -> None:
    staying = {kind for kind in UPSTREAM_KINDS if not may_go_on(UpstreamError("x", kind=kind), FallbackOptions())}

    assert {"deadline"} == staying


@pytest.mark.parametrize("kind", UPSTREAM_KINDS)
def test_every_way_to_fail_has_a_name_for_policies(kind: str) -> None:
    """Symptom: a stream that was too slow (`throughput_timeout`) was no failure to fallback and breaker, which broke at it."""
    assert failure_of(UpstreamError("x", kind=kind)) is not None


@pytest.mark.parametrize(
    ("status", "message", "failure"),
    [
        (403, 'm requires moderation on OpenAI. Your input was flagged for "harassment".', "content_policy"),
        (403, "your key may not use m", "refused"),
        (401, "no such key", "refused"),
        (400, "Your credit balance is too low to access the Anthropic API.", "quota"),
        (400, "a message is missing", "bad_request"),
    ],
)
def test_a_message_says_more_than_a_status_that_is_used_for_something_else(
    status: int, message: str, failure: str
) -> None:
    """OpenRouter answers 403 to flagged texts: one client's opened the circuit for all, with an alert that the key is refused. Anthropic answers 400 when the money is used up."""
    body = json.dumps({"error": {"code": status, "message": message}}).encode()

    error = UpstreamError("no", kind="status", upstream_status=status, upstream_body=body)

    assert failure_of(error) == failure
    assert may_go_on(error, FallbackOptions()) is (failure != "bad_request")


def test_a_request_that_cannot_be_translated_stays() -> None:
    assert not may_go_on(BadRequest('"logprobs" has no counterpart here'), FallbackOptions())


def test_a_failure_of_our_own_goes_on() -> None:
    assert may_go_on(Unavailable("no connection free"), FallbackOptions())


def test_options_overrule_the_table_in_both_directions() -> None:
    options = FallbackOptions(go_on_statuses=frozenset({400}), stay_statuses=frozenset({404}))

    assert may_go_on(answered(400), options)
    assert not may_go_on(answered(404), options)
    assert may_go_on(answered(500), options)


def test_a_status_in_both_lists_is_refused() -> None:
    with pytest.raises(ValidationError, match="404"):
        FallbackOptions(go_on_statuses=frozenset({404}), stay_statuses=frozenset({404}))


def test_a_status_that_is_no_error_is_refused() -> None:
    with pytest.raises(ValidationError):
        FallbackOptions(stay_statuses=frozenset({200}))
