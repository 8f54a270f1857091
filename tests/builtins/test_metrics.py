"""Call metrics: what is counted, under which labels, and that labels have an end."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from hookline import CACHE_STATUS, BadRequest, Deployment, Price, RouteRequest, UpstreamError, Usage
from hookline.builtins.metrics import (
    DURATION_BUCKETS_S,
    OTHER_MODELS_MAX,
    PRICED_MODELS_MAX,
    MetricsOptions,
    ModelLabels,
    Plugin,
    attempt_outcome,
)


@pytest.fixture
def host(make_host):
    return make_host(models=["gpt-4o"])


@pytest.fixture
def plugin(host):
    return Plugin(MetricsOptions(), host)


def test_a_call_counts_in_each_of_the_four_families(plugin, host, make_call, make_attempt, make_result):
    call = make_call({"model": "gpt-4o"})
    attempt = make_attempt("openai/gpt-4o", usage=Usage(20, 60), latency_s=0.25)

    plugin.call_ended(call, make_result(attempt, cost_nanousd=650_000))

    counted = host.metrics.values
    assert counted["ai_requests_total", "gpt-4o", "openai", "success"] == 1
    assert counted["ai_tokens_total", "gpt-4o", "openai", "prompt"] == 20
    assert counted["ai_tokens_total", "gpt-4o", "openai", "completion"] == 60
    assert counted["ai_cost_dollars_total", "gpt-4o", "openai"] == 0.00065
    assert host.metrics.observed["ai_request_duration_seconds", "gpt-4o", "openai"] == [0.25]


def test_duration_has_the_published_buckets():
    assert DURATION_BUCKETS_S == (0.1, 0.5, 1, 2, 5, 10, 30)


def test_a_failed_call_is_an_error(plugin, host, make_call, make_attempt, make_result):
    attempt = make_attempt("openai/gpt-4o", error=UpstreamError("gone", kind="reset"))

    plugin.call_ended(make_call({"model": "gpt-4o"}), make_result(attempt))

    assert host.metrics.values["ai_requests_total", "gpt-4o", "openai", "error"] == 1


def test_what_stood_in_is_no_success_of_the_provider_that_failed(plugin, host, make_call, make_attempt, make_result):
    attempt = make_attempt("openai/gpt-4o", error=UpstreamError("gone", kind="reset"))

    plugin.call_ended(make_call({"model": "gpt-4o"}), make_result(attempt, outcome="ok", source="rescue"))

    assert ("ai_requests_total", "gpt-4o", "openai", "success") not in host.metrics.values
    assert host.metrics.values["ai_requests_total", "gpt-4o", "none", "success"] == 1


def test_a_call_without_model_or_attempt_is_counted_as_none(plugin, host, make_call, make_result):
    plugin.call_ended(make_call(method="GET", path="/v1/files"), make_result(outcome="rejected", status=401))

    assert host.metrics.values["ai_requests_total", "none", "none", "error"] == 1


def test_time_to_first_byte_is_observed_where_there_was_one(plugin, host, make_call, make_attempt, make_result):
    call, attempt = make_call({"model": "gpt-4o"}), make_attempt("openai/gpt-4o")

    plugin.call_ended(call, make_result(attempt, first_byte_at=call.started_at + 0.5))
    plugin.call_ended(call, make_result(attempt))

    assert host.metrics.observed["hookline_ttft_seconds", "gpt-4o", "openai", "openai/gpt-4o"] == [0.5]


def test_the_caches_part_is_counted(plugin, host, make_call, make_result):
    call = make_call({"model": "gpt-4o"})
    call[CACHE_STATUS] = "hit"

    plugin.call_ended(call, make_result(source="cache"))
    plugin.call_ended(call, make_result(source="cache"))

    assert host.metrics.values["hookline_cache_total", "gpt-4o", "hit"] == 2


def test_every_attempt_counts_by_how_it_ended(plugin, host, make_call, make_attempt, make_result):
    call = make_call({"model": "gpt-4o"})
    failed = make_attempt("a/m", error=UpstreamError("busy", kind="status", upstream_status=429))
    call.attempts += [failed, make_attempt("b/m")]

    plugin.call_ended(call, make_result(call.attempts[-1]))

    assert host.metrics.values["hookline_attempts_total", "a/m", "a", "429"] == 1
    assert host.metrics.values["hookline_attempts_total", "b/m", "b", "ok"] == 1


def test_a_canary_at_the_same_provider_counts_apart(plugin, host, make_call, make_attempt, make_result):
    call = make_call({"model": "gpt-4o"})
    for id in ("up/stable", "up/canary", "up/canary"):
        call.attempts = [make_attempt(id)]
        plugin.call_ended(call, make_result(call.attempts[0], first_byte_at=call.started_at + 0.5))

    assert host.metrics.values["hookline_attempts_total", "up/stable", "up", "ok"] == 1
    assert host.metrics.values["hookline_attempts_total", "up/canary", "up", "ok"] == 2
    assert len(host.metrics.observed["hookline_ttft_seconds", "gpt-4o", "up", "up/canary"]) == 2
    assert host.metrics.values["ai_requests_total", "gpt-4o", "up", "success"] == 3


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (UpstreamError("x", kind="connect"), "connect"),
        (UpstreamError("x", kind="status", upstream_status=503), "503"),
        (BadRequest("no"), "invalid_request_error"),
    ],
)
def test_outcomes_of_attempts(make_attempt, error, outcome):
    assert attempt_outcome(make_attempt(error=error)) == outcome


def test_a_hedge_that_lost_and_a_cut_answer_have_words_of_their_own(make_attempt):
    lost, cut = make_attempt(), make_attempt()
    lost.is_loser, cut.is_complete = True, False

    assert (attempt_outcome(lost), attempt_outcome(cut)) == ("lost_hedge", "cut")


def test_unknown_names_become_other_after_the_first_two_hundred():
    labels = ModelLabels(["gpt-4o"])

    got = {labels.label(f"made-up-{n}", is_priced=False) for n in range(1000)}

    assert got == {f"made-up-{n}" for n in range(OTHER_MODELS_MAX)} | {"other"}
    assert labels.label("gpt-4o", is_priced=False) == "gpt-4o"
    assert labels.label("made-up-3", is_priced=False) == "made-up-3"


def test_unknown_names_do_not_crowd_out_priced_ones_and_priced_ones_have_an_end_too():
    labels = ModelLabels({"models": []})
    for n in range(1000):
        labels.label(f"made-up-{n}", is_priced=False)

    got = {labels.label(f"gpt-4o-{n}", is_priced=True) for n in range(PRICED_MODELS_MAX + 10)}

    assert len(got) == PRICED_MODELS_MAX + 1


def test_a_flood_of_names_leaves_a_bounded_number_of_series(plugin, host, make_call, make_attempt, make_result):
    priced = Deployment("openai/x", "openai", "x", Price(1, 1))

    for n in range(3000):
        plugin.call_ended(make_call({"model": f"junk-{n}"}), make_result(make_attempt(priced if n % 2 else "openai/y")))

    models = {key[1] for key in host.metrics.values if key[0] == "ai_requests_total"}
    assert len(models) == OTHER_MODELS_MAX + PRICED_MODELS_MAX + 1
    assert len(plugin._children) <= OTHER_MODELS_MAX + PRICED_MODELS_MAX


@pytest.mark.parametrize(("is_open", "access"), [(False, "loopback"), (True, "open")])
async def test_the_page_is_for_loopback_and_admins_unless_opened(host, is_open, access):
    routes = []
    plugin = Plugin(MetricsOptions(open=is_open), host)
    plugin.register_routes(lambda method, path, handler, *, access: routes.append((method, path, handler, access)))

    [(method, path, handler, got)] = routes
    host.metrics.counter("a_total", "A.")().inc()
    reply = await handler(RouteRequest("GET", "/metrics", "", CIMultiDict(), b"", is_admin=False, is_loopback=True))

    assert (method, path, got) == ("GET", "/metrics", access)
    assert (reply.status, reply.headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert b"a_total 1" in reply.body
