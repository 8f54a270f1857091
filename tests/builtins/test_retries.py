"""Retries: the table, its budget, and what a call meets in a pipeline. Time is the fake clock or made up; nothing waits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline import (
    Deployment,
    Failure,
    Limits,
    Principal,
    RateLimited,
    Reply,
    Skip,
    Target,
    UpstreamError,
    failure_of,
    hookimpl,
)
from hookline.builtins.circuit_breaker import Plugin as Breaker
from hookline.builtins.fallback import Plugin as Fallback
from hookline.builtins.fallback.options import FallbackOptions
from hookline.builtins.fallback.retry_budget import KEEP_S, Bucket, RetryBudget
from hookline.builtins.fallback.retry_table import RETRY_TABLE, Repeat, may_retry, repeat_of, wait_s
from hookline.builtins.model_selection import Plugin as ModelSelection
from hookline.builtins.rate_limit import Plugin as RateLimit
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryLimits
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, make_plugin
from hookline.testing.virtual_time import run_in_virtual_time

FAILURES, REPEATS = get_args(Failure), get_args(Repeat)
TWO = {"m": ["up/1", "up/2"]}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def answered(status: int, body: bytes = b"", **more: Any) -> UpstreamError:
    return UpstreamError("it failed", kind="status", upstream_status=status, upstream_body=body, **more)


@pytest.mark.parametrize(("failure", "repeat", "is_sent"), list(itertools.product(FAILURES, REPEATS, (False, True))))
def test_every_cell_of_the_table_is_decided_and_safe(failure, repeat, is_sent):
    answer = may_retry(failure, is_sent=is_sent, repeat=repeat)

    assert set(RETRY_TABLE) == set(FAILURES)
    if failure in (
        "refused",
        "quota",
        "missing",
        "context_window",
        "content_policy",
        "bad_request",
        "deadline",
        "ours",
    ):
        assert not answer
    elif not is_sent:
        assert answer
    elif failure in ("lost", "timeout"):  # the work may have been done: only what leaves nothing is done twice
        assert answer is (repeat == "repeatable")
    elif failure in ("server_error", "conflict"):
        assert answer is (repeat != "other")


def test_lost_model_calls_are_retried_where_the_operator_pays_for_it():
    assert may_retry("lost", is_sent=True, repeat="model call", retry_lost_calls=True)
    assert not may_retry("lost", is_sent=True, repeat="other", retry_lost_calls=True)


@pytest.mark.parametrize(
    ("payload", "path", "method", "repeat"),
    [
        (ASKED, "/v1/chat/completions", "POST", "model call"),
        ({**ASKED, "store": True}, "/v1/chat/completions", "POST", "other"),
        ({"model": "m", "input": "x"}, "/v1/embeddings", "POST", "model call"),
        ({"model": "m", "input": "x"}, "/v1/responses", "POST", "other"),
        ({"model": "m", "input": "x", "store": False}, "/v1/responses", "POST", "model call"),
        ({"input_file_id": "f"}, "/v1/batches", "POST", "other"),
        (None, "/v1/files/f", "GET", "repeatable"),
        (None, "/v1/files/f", "DELETE", "repeatable"),
    ],
)
def test_what_a_second_time_leaves_behind(make_call, payload, path, method, repeat):
    assert repeat_of(make_call(payload, path=path, method=method)) == repeat


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (answered(429), "rate_limit"),
        (answered(429, b'{"error":{"code":"insufficient_quota"}}'), "quota"),
        (answered(400, b'{"error":{"code":"context_length_exceeded","type":"invalid_request_error"}}'), "context_window"),
        (answered(400, b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9"}}'), "context_window"),
        # vLLM and SGLang, Mistral, xAI and LM Studio, Gemini: no error object, or wrapped otherwise
        (answered(400, b'{"object":"error","message":"This model\'s maximum context length is 9","type":"BadRequestError","code":400}'), "context_window"),
        (answered(400, b'{"object":"error","message":"too large for model with 9 maximum context length","code":3051}'), "context_window"),
        (answered(400, b'{"code":"Client specified an invalid argument","error":"This model\'s maximum prompt length is 9"}'), "context_window"),
        (answered(400, b'[{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens allowed (8)."}}]'), "context_window"),
        (answered(400, b'{"error":{"code":400,"message":"it is too much","type":"exceed_context_size_error"}}'), "context_window"),
        (answered(422, b'{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 9","error_type":"validation"}'), "context_window"),
        (answered(400, b'{"error":{"message":"Content Exists Risk","type":"invalid_request_error"}}'), "content_policy"),
        (answered(400, b'{"error":{"message":"no","code":"data_inspection_failed"}}'), "content_policy"),
        (answered(403, b'{"error":{"code":403,"message":"Your chosen model requires moderation and your input was flagged"}}'), "content_policy"),
        (answered(400, b'{"error":{"message":"Your credit balance is too low to access the API","type":"invalid_request_error"}}'), "quota"),
        (answered(403, b'{"error":{"message":"the context length of this project is none of yours"}}'), "refused"),
        (answered(400, b"[]"), "bad_request"),
        (answered(400, b'{"error":7}'), "bad_request"),
        (answered(400, b'{"error":{"code":"content_filter"}}'), "content_policy"),
        (answered(400, b'{"error":{"message":"Output blocked by content filtering policy"}}'), "content_policy"),
        (answered(400, b"<html>"), "bad_request"),
        (answered(422), "bad_request"),
        (answered(401), "refused"),
        (answered(404), "missing"),
        (answered(500, b'{"error":{"type":"invalid_request_error"}}'), "server_error"),
        (answered(502), "server_error"),
        (answered(503), "overloaded"),
        (answered(529), "overloaded"),
        (UpstreamError("x", kind="connect", is_written=False), "unreachable"),
        (UpstreamError("x", kind="idle_timeout"), "timeout"),
        (UpstreamError("x", kind="stream_error", upstream_status=502, upstream_body=b'{"error":{"type":"overloaded_error"}}'), "overloaded"),
    ],
)  # fmt: skip
def test_what_kind_of_failure_it_is(error, failure):
    assert failure_of(error) == failure


def test_a_longer_backoff_alone_lengthens_the_longest_and_two_that_contradict_are_refused():
    assert FallbackOptions(backoff_s=20.0).max_backoff_s == 20.0
    with pytest.raises(ValueError, match="swap them"):
        FallbackOptions(backoff_s=20.0, max_backoff_s=10.0)


@given(st.integers(0, 9), st.floats(0, 0.999), st.one_of(st.none(), st.floats(0, 100)))
def test_waits_are_never_shorter_than_asked_for_nor_longer_than_allowed(retries, draw, asked_s):
    options = FallbackOptions()

    pause_s = wait_s(answered(429, retry_after_s=asked_s), retries, options, draw)

    if asked_s is None:
        bound_s = min(options.backoff_s * 2**retries, options.max_backoff_s)
        assert bound_s / 2 <= pause_s <= bound_s
    elif asked_s > options.max_wait_s:
        assert pause_s is None
    else:
        assert asked_s <= pause_s <= asked_s * 1.1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["call", "elsewhere", "again", "again", "wait"]),
            st.sampled_from([0.01, 0.3, 2.0, 20.0]),
        ),
        max_size=300,
    ),
    st.sampled_from([0.0, 1.0, 10.0]),
)
def test_no_order_of_events_takes_more_than_the_budget(events, per_s):
    now, bucket, taken = 100.0, Bucket(0.2, per_s, 100.0), {"elsewhere": 0, "again": 0}
    for kind, seconds in events:
        if kind == "call":
            bucket.calls += 1
        elif kind == "wait":
            now += seconds
        else:
            taken[kind] += bucket.take(now, is_retry=kind == "again")

        earned = 0.2 * bucket.calls
        assert sum(taken.values()) <= earned + per_s * max(now - 100.0, KEEP_S) + 1e-6
        assert taken["again"] <= earned + per_s * (now - 100.0 + 1.0) + 1e-6


def test_retries_are_bounded_from_the_first_second_and_going_elsewhere_a_little_later():
    bucket = Bucket(0.2, 10.0, 0.0)
    bucket.calls = 100

    assert sum(bucket.take(0.0, is_retry=True) for _ in range(1_000)) == 10 + 20
    assert sum(bucket.take(2.0, is_retry=True) for _ in range(1_000)) == 20
    assert sum(bucket.take(2.0) for _ in range(1_000)) == 270


def test_unused_tokens_are_kept_for_a_while_and_not_for_ever():
    bucket = Bucket(0.2, 10.0, 0.0)

    assert sum(bucket.take(3_600.0) for _ in range(1_000)) == KEEP_S * 10 + 1


@pytest.mark.parametrize(("is_refused", "taken"), [(False, 120), (True, 2)])
def test_a_reload_gives_no_new_tokens_and_its_options_hold_unless_it_is_refused(make_host, is_refused, taken):
    """What is refused has made its plugins, but starts none."""
    host = make_host()
    host.limits = MemoryLimits(host.clock)
    budget = Fallback(FallbackOptions(retry_budget_per_s=1.0), host)._budget
    while budget.take("up/1", host.clock.monotonic(), is_retry=False):
        pass

    later = Fallback(FallbackOptions(retry_budget_per_s=60.0), host)
    if not is_refused:
        later.start()
    host.clock.advance(KEEP_S + 2)

    assert sum(budget.take("up/1", host.clock.monotonic(), is_retry=False) for _ in range(200)) == taken


def test_one_deployments_outage_takes_no_more_than_its_own_share():
    budget = RetryBudget(0.2, 1 / 3, 0.0)
    budget.add("dead", 0.0).calls += 100
    budget.add("well", 0.0).calls += 1_000
    budget.all.calls += 1_100

    assert sum(budget.take("dead", 0.0, is_retry=False) for _ in range(1_000)) == 30
    assert sum(budget.take("well", 0.0, is_retry=False) for _ in range(1_000)) == 200


def play(
    *scripts: Any, options: dict[str, Any] | None = None, deployments: Any = None, calls: Any = ({},), chain: Any = ()
):
    """Calls in made-up time; answers (what was delivered, which deployments were asked and when)."""

    async def main(clock):
        provider = ScriptedProvider(*scripts)
        started = clock.monotonic()
        at: list[tuple[str, float]] = []
        send = provider.send

        async def noting(call, attempt):
            at.append((attempt.deployment.id, round(clock.monotonic() - started, 2)))
            return await send(call, attempt)

        provider.send = noting
        kit = PipelineKit(
            *chain,
            Fallback,
            providers=[provider],
            deployments=deployments or {"m": ["up/1"]},
            options={"fallback": {"max_retries": 2, **(options or {})}},
            stores=Stores(MemoryLimits(clock), None, None),
            clock=clock,
        )
        return [await kit.call({**ASKED, **about.pop("payload", {})}, **about) for about in map(dict, calls)], at, kit

    return run_in_virtual_time(main)


def test_nothing_is_retried_unless_asked_for():
    (delivered,), at, _ = play(lambda: answer(b"{}", 503), options={"max_retries": 0})

    assert (delivered.status, len(at)) == (503, 1)


def test_a_retry_waits_longer_each_time_and_then_passes_the_error_on():
    (delivered,), at, kit = play(lambda: answer(b"{}", 503))

    (_, first), (_, second), (_, third) = at
    assert (delivered.status, delivered.headers["x-hookline-attempts"]) == (503, "3")
    assert 0.25 <= second - first <= 0.5
    assert 0.5 <= third - second <= 1.0
    assert delivered.headers["x-should-retry"] == "false"
    assert kit.metric("hookline_extra_attempts_total", deployment="up/1", kind="retry") == 2


def test_retry_after_is_waited_for():
    (delivered,), at, _ = play(lambda: answer(b"{}", 429, **{"retry-after": "3"}), answer)

    assert delivered.status == 200
    assert 3.0 <= at[1][1] <= 3.3


def test_milliseconds_are_read_too():
    (delivered,), at, _ = play(lambda: answer(b"{}", 429, **{"retry-after": "3", "retry-after-ms": "200"}), answer)

    assert delivered.status == 200
    assert 0.2 <= at[1][1] <= 0.22


def test_a_wait_that_is_too_long_is_passed_on_at_once():
    (delivered,), at, _ = play(lambda: answer(b"{}", 429, **{"retry-after": "30"}))

    assert (delivered.status, delivered.headers["retry-after"], len(at)) == (429, "30", 1)
    assert "x-should-retry" not in delivered.headers


def test_with_another_deployment_nobody_waits_for_retry_after():
    (delivered,), at, _ = play(lambda: answer(b"{}", 429, **{"retry-after": "3"}), answer, deployments=TWO)

    assert (delivered.status, at) == (200, [("up/1", 0.0), ("up/2", 0.0)])


def test_when_all_said_later_the_earliest_is_waited_for():
    (delivered,), at, _ = play(
        lambda: answer(b"{}", 429, **{"retry-after": "2"}),
        lambda: answer(b"{}", 429, **{"retry-after": "5"}),
        answer,
        deployments=TWO,
    )

    assert delivered.status == 200
    assert [name for name, _ in at] == ["up/1", "up/2", "up/1"]
    assert 2.0 <= at[2][1] <= 2.2


def test_the_client_is_told_the_earliest_of_several_waits():
    (delivered,), _, _ = play(
        lambda: answer(b"{}", 429, **{"retry-after": "20"}),
        lambda: answer(b"{}", 429, **{"retry-after": "50"}),
        deployments=TWO,
    )

    assert (delivered.status, delivered.headers["retry-after"]) == (429, "20")


def test_no_wait_goes_beyond_the_calls_deadline():
    class Hurry:
        @hookimpl
        def prepare(self, call):
            call.deadline = call.started_at + 2.0

    (delivered,), at, _ = play(lambda: answer(b"{}", 429, **{"retry-after": "3"}), chain=(Hurry,))

    assert (delivered.status, len(at)) == (429, 1)


def test_what_the_client_has_tried_by_itself_is_not_tried_again_here():
    _, at, _ = play(lambda: answer(b"{}", 503), calls=[{"headers": {"x-stainless-retry-count": "1"}}])

    assert len(at) == 2


def test_an_upstream_that_says_no_is_obeyed():
    _, at, _ = play(lambda: answer(b"{}", 503, **{"x-should-retry": "false"}))

    assert len(at) == 1


def test_an_upstream_that_says_yes_knows_better_than_the_table():
    stored = {"payload": {"store": True}}

    _, at, _ = play(lambda: answer(b"{}", 500), calls=[stored])
    _, at_if_told, _ = play(lambda: answer(b"{}", 500, **{"x-should-retry": "true"}), calls=[stored])

    assert (len(at), len(at_if_told)) == (1, 3)


def test_an_upstream_that_says_yes_knows_better_than_our_idea_of_a_wrong_request_but_not_than_the_operator():
    def wrong() -> Reply:
        return answer(b"{}", 400, **{"x-should-retry": "true"})

    (saved,), at, _ = play(wrong, answer, deployments=TWO)
    (in_vain,), at_in_vain, _ = play(wrong)
    _, at_if_stayed, _ = play(wrong, options={"stay_statuses": [400]})

    assert (saved.status, [name for name, _ in at]) == (200, ["up/1", "up/1"])
    assert (in_vain.status, in_vain.headers["x-should-retry"], len(at_in_vain)) == (400, "false", 3)
    assert len(at_if_stayed) == 1


def test_a_lost_model_call_is_not_paid_twice():
    def lost() -> Reply:
        raise UpstreamError("gone", kind="reset", is_written=True)

    _, at, _ = play(lost)
    _, at_with_option, _ = play(lost, options={"retry_lost_calls": True})

    assert (len(at), len(at_with_option)) == (1, 3)


def test_an_outage_is_not_amplified_and_clients_are_told_not_to_come_again():
    delivered, at, _ = play(lambda: answer(b"{}", 503), calls=[{}] * 400)

    seconds = at[-1][1]
    assert len(at) <= 1.2 * 400 + 10 * (seconds + 1)
    assert delivered[-1].headers["x-should-retry"] == "false"


def test_who_has_waited_in_vain_is_told_not_to_come_again_though_the_provider_says_when():
    (delivered,), at, _ = play(lambda: answer(b"{}", 429, **{"retry-after": "1"}))

    assert (delivered.headers["retry-after"], delivered.headers["x-should-retry"], len(at)) == ("1", "false", 3)


@pytest.mark.parametrize("headers", [{}, {"retry-after": "1"}])
def test_clients_that_retry_by_themselves_are_stopped_by_the_same_budget(headers: dict[str, str]):
    """Off by default here, so the SDKs come again: each of their retries counts as one of ours would, told when to come or not."""
    first, again = ({"headers": {"x-stainless-retry-count": count}} for count in "01")

    delivered, _, kit = play(
        lambda: answer(b"{}", 503, **headers), options={"max_retries": 0}, calls=[first, again] * 100
    )

    told = [one.headers.get("x-should-retry") for one in delivered]
    assert told.index("false") == 11  # 10 for the first second, and a fifth of six calls
    assert told.count(None) == pytest.approx(10 + 0.2 * 100, abs=1)
    budget = kit.plugin(Fallback)._budget
    assert (budget.all.calls, budget.all.has_token(0.0)) == (100, True), "the others' fallbacks are not paid from it"


def test_the_client_is_told_also_where_the_rest_was_skipped():
    """Both circuits are open: one is forced through, and fails; the other is skipped after it."""
    sdk = {"headers": {"x-stainless-retry-count": "0"}}

    delivered, at, _ = play(
        lambda: answer(b"{}", 500), options={"max_retries": 0}, deployments=TWO, chain=(Breaker,), calls=[sdk] * 120
    )

    assert len(at) < 130
    assert delivered[-1].headers["x-should-retry"] == "false"


def test_without_a_budget_the_fallback_is_skipped_and_the_error_passed_on():
    options = {"retry_budget": 0.0, "retry_budget_per_s": 0.0}

    (delivered,), at, kit = play(lambda: answer(b"{}", 503), answer, deployments=TWO, options=options)

    assert (delivered.status, len(at)) == (503, 1)
    assert kit.metric("hookline_retry_budget_spent_total", deployment="up/2") == 1


LISTS = {"m": ["up/1", "up/2"], "long": ["up/long"], "other": ["up/other"], "kind": ["up/kind"]}
TOO_LONG = b'{"error":{"message":"too long","code":"context_length_exceeded"}}'
OBJECTIONABLE = b'{"error":{"message":"no","code":"content_filter"}}'


@pytest.mark.parametrize(
    ("failing", "options", "asked"),
    [
        (answer(TOO_LONG, 400), {"context_window": ["long"]}, ["up/1", "up/long"]),
        (answer(TOO_LONG, 400), {"models": ["other"]}, ["up/1"]),
        (answer(OBJECTIONABLE, 400), {"content_policy": ["kind"], "models": ["other"]}, ["up/1", "up/kind"]),
        (answer(b"{}", 429), {"rate_limit": ["kind"], "models": ["other"]}, ["up/1", "up/2"]),
        (answer(b"{}", 400), {"models": ["other"]}, ["up/1"]),
    ],
)
def test_each_kind_of_failure_has_a_list_of_its_own(failing, options, asked):
    _, at, _ = play(
        lambda: Reply(failing.status, dict(failing.headers), failing.body), answer, options=options, deployments=LISTS
    )

    assert [name for name, _ in at] == asked


def test_a_limit_that_is_known_before_the_provider_says_it_goes_to_the_list_for_limits():
    """Own limits and those that upstreams have told of skip the targets; a circuit that is open has a target that is forced."""

    def admit_attempt(call, target, attempt):
        if target.model is None:
            raise Skip("its limit is used up", RateLimited("its limit is used up", retry_after_s=9))

    limits = make_plugin("limits", admit_attempt=admit_attempt)
    options = {"rate_limit": ["kind"], "models": ["other"]}

    _, at, _ = play(answer, options=options, deployments=LISTS, chain=(limits,))

    assert [name for name, _ in at] == ["up/kind"]


@pytest.mark.parametrize(
    ("statuses", "asked"),
    [
        ((500, 500, 200), ["up/1", "up/2", "up/other"]),
        ((429, 500, 200), ["up/1", "up/2", "up/kind"]),
        ((500, 429, 200), ["up/1", "up/2", "up/kind"]),
    ],
)
def test_the_list_for_limits_is_for_limits_alone(statuses, asked):
    scripted = [answer(b'{"choices":[]}', status) for status in statuses]
    options = {"rate_limit": ["kind"], "models": ["other"], "max_retries": 0}

    _, at, _ = play(*[lambda reply=reply: reply for reply in scripted], options=options, deployments=LISTS)

    assert [name for name, _ in at] == asked


@pytest.mark.parametrize(
    ("status", "asked"),
    [(429, ["a/m#1", "a/m#2"]), (401, ["a/m#1", "a/m#2"]), (503, ["a/m#1", "b/m"]), (500, ["a/m#1", "b/m"])],
)
def test_another_key_is_tried_at_once_for_what_is_about_the_key_and_last_for_what_is_not(status, asked):
    keyed = Deployment("a/m", "up", "m").by_key(3)
    three = [*keyed, Deployment("b/m", "up", "m"), Deployment("c/m", "up", "m")]
    listed = make_plugin("listed", select=lambda call, targets: [Target(one) for one in three])

    _, at, _ = play(lambda: answer(b"{}", status), answer, chain=(listed,))

    assert [name for name, _ in at] == asked


def test_other_keys_come_before_other_models():
    keyed = Deployment("a/m", "up", "m").by_key(2)
    listed = make_plugin("listed", select=lambda call, targets: [Target(one) for one in keyed])
    options = {"models": ["other"], "max_retries": 0}

    _, at, _ = play(lambda: answer(b"{}", 500), options=options, deployments=LISTS, chain=(listed,))

    assert [name for name, _ in at] == ["a/m#1", "a/m#2", "up/other"]


def test_other_models_come_after_all_deployments_in_their_order():
    options = {"models": ["other", "long"], "rate_limit": ["kind"], "max_retries": 0}

    _, at, _ = play(lambda: answer(b"{}", 429), options=options, deployments=LISTS)

    assert [name for name, _ in at] == ["up/1", "up/2", "up/kind", "up/other", "up/long"]


def test_another_model_is_no_way_around_a_permission():
    ann = Principal(key_id="ann", key_name="ann", models=("m",))

    (delivered,), at, _ = play(
        lambda: answer(b"{}", 503),
        options={"models": ["other"], "max_retries": 0},
        deployments=LISTS,
        calls=[{"principal": ann}],
    )

    assert [name for name, _ in at] == ["up/1", "up/2"]
    assert delivered.status == 503


def test_another_model_that_lacks_what_the_request_needs_is_skipped(monkeypatch):
    weak = Deployment("up/other", "up", "other", capabilities=frozenset({"vision"}))
    monkeypatch.setattr("hookline.plugin_host.PluginHost.find_deployments", lambda self, name, call: [weak])

    _, at, _ = play(
        lambda: answer(b"{}", 503),
        options={"models": ["other"], "max_retries": 0},
        calls=[{"payload": {"tools": [{"type": "function", "function": {"name": "f"}}]}}],
        chain=(ModelSelection,),
    )

    assert [name for name, _ in at] == ["up/1"]


def test_a_request_known_to_be_too_long_goes_to_the_longer_model_at_once():
    class Short:
        @hookimpl
        def select(self, call, targets):
            return [replace(t, deployment=replace(t.deployment, context_tokens=100)) for t in targets]

    long = {"messages": [{"role": "user", "content": "x" * 10_000}]}

    (delivered,), at, _ = play(
        answer,
        options={"context_window": ["long"]},
        deployments=LISTS,
        calls=[{"payload": long}],
        chain=(Short, ModelSelection),
    )

    assert (delivered.status, [name for name, _ in at]) == (200, ["up/long"])


def test_another_model_is_no_way_around_a_limit_on_it():
    limits = Limits(by_model=(("other", Limits(requests_per_minute=1)),))
    ann = Principal(key_id="ann", key_name="ann", limits=limits)
    deployments = {"m": ["up/1"], "other": ["up/other"]}

    delivered, at, _ = play(
        lambda: answer(b"{}", 503),
        options={"models": ["other"], "max_retries": 0},
        deployments=deployments,
        calls=[{"principal": ann}] * 2,
        chain=(RateLimit,),
    )

    assert [name for name, _ in at] == ["up/1", "up/other", "up/1"]
    assert [one.status for one in delivered] == [503, 503]


def test_when_every_circuit_of_a_model_is_open_the_other_model_is_asked_first():
    """Else its outage would be paid from the retry budget, call by call."""
    options = {"models": ["other"], "max_retries": 0}
    scripts = [lambda: answer(b"{}", 401), answer, answer]

    delivered, at, _ = play(
        *scripts, options=options, deployments=LISTS | {"m": ["up/1"]}, calls=[{}] * 2, chain=(Breaker,)
    )

    assert [one.status for one in delivered] == [200, 200]
    assert [name for name, _ in at] == ["up/1", "up/other", "up/other"]


def test_when_that_is_open_too_the_least_bad_is_asked_all_the_same():
    options = {"models": ["other"], "max_retries": 0}

    delivered, at, _ = play(
        lambda: answer(b"{}", 401),
        options=options,
        deployments=LISTS | {"m": ["up/1"]},
        calls=[{}] * 2,
        chain=(Breaker,),
    )

    assert [name for name, _ in at] == ["up/1", "up/other", "up/1"]
    assert delivered[-1].status == 401
