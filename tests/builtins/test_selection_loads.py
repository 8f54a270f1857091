"""What attempts teach: in flight, peak-EWMA, limits the upstream told of."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline import BadRequest, Reply, Result, UpstreamError
from hookline.builtins.model_selection.loads import FAILURE_S, LOADS_MAX, TOLD_MAX_S, Load, Loads
from hookline.told_limits import UNSAID_RESET_S, LimitKind, Told, read_told, seconds_until

NOW = 1_795_000_000.0
seconds = st.floats(0.001, 100)


@pytest.fixture
def load(clock) -> Load:
    return Load(clock, 10.0)


@given(st.lists(st.tuples(seconds, st.floats(0, 100)), min_size=1, max_size=20))
def test_the_average_is_never_below_the_last_latency_nor_above_the_highest(observations):
    load, now = Load(None, 10.0), 0.0
    for latency, later in observations:
        now += later
        load.observe(latency, True, now)

        assert load.latency_s(True, now) >= latency * (1 - math.exp(-later / 10.0)) - 1e-9
        assert load.latency_s(True, now) <= max(one for one, _ in observations) + 1e-9


def test_a_peak_counts_at_once_and_is_forgotten_over_the_decay(load):
    load.observe(0.1, True, 0.0)
    load.observe(5.0, True, 1.0)

    assert load.latency_s(True, 1.0) == 5.0
    load.observe(0.1, True, 2.0)
    assert 4.0 < load.latency_s(True, 2.0) < 5.0
    assert load.latency_s(True, 42.0) < 0.1


def test_one_latency_again_and_again_is_the_average(load):
    for second in range(100):
        load.observe(0.7, False, float(second))

    assert load.latency_s(False, 99.0) == pytest.approx(0.7)


def test_streams_and_plain_replies_have_averages_of_their_own(load):
    load.observe(0.2, True, 0.0)
    load.observe(9.0, False, 0.0)

    assert (load.latency_s(True, 0.0), load.latency_s(False, 0.0)) == (0.2, 9.0)


def end(load: Load, attempt, outcome: str = "ok", *, body: bytes | None = b"{}", headers=None) -> None:
    attempt.reply = Reply(attempt.status or 200, headers or {}, body if body is not None else aiter_nothing())
    load.begin()
    load.settle(Result(outcome, attempt=attempt))


async def aiter_nothing():
    yield b""


def test_an_attempt_is_in_flight_until_it_settles(load, make_attempt):
    load.begin()
    load.begin()
    assert load.in_flight == 2

    load.settle(Result("ok", attempt=make_attempt(latency_s=0.5)))

    assert load.in_flight == 1
    load.settle(Result("rejected", attempt=None))
    assert load.in_flight == 0


def test_a_stream_is_measured_to_its_first_byte_and_a_plain_reply_to_its_end(load, make_attempt, clock):
    attempt = make_attempt(latency_s=30.0)
    attempt.first_byte_at = clock.monotonic() + 0.3

    end(load, attempt, body=None)
    end(load, make_attempt(latency_s=4.0))

    assert load.latency_s(False, clock.monotonic() + 4.0) == pytest.approx(4.0)
    assert load.latency_s(True, clock.monotonic() + 30.0) == pytest.approx(0.3)


@pytest.mark.parametrize("status", [500, 503, 401, 429])
def test_a_failure_that_comes_fast_is_slow(load, make_attempt, clock, status):
    end(load, make_attempt(latency_s=0.01, error=UpstreamError("x", kind="status", upstream_status=status)))

    assert load.latency_s(True, clock.monotonic()) == pytest.approx(FAILURE_S)
    assert load.latency_s(False, clock.monotonic()) == pytest.approx(FAILURE_S)


@pytest.mark.parametrize(
    "error", [UpstreamError("x", kind="status", upstream_status=400), BadRequest("the provider can't say this")]
)
def test_a_wrong_request_says_nothing_about_the_deployment(load, make_attempt, clock, error):
    end(load, make_attempt(latency_s=0.01, error=error))

    assert load.latency_s(False, clock.monotonic()) == 0.0


def test_who_left_says_that_it_took_at_least_so_long(load, make_attempt, clock):
    end(load, make_attempt(latency_s=1.0))
    end(load, make_attempt(latency_s=0.1), "client_gone")
    assert load.latency_s(False, clock.monotonic() + 1.0) == pytest.approx(1.0)

    end(load, make_attempt(latency_s=7.0), "client_gone")

    assert load.latency_s(False, clock.monotonic() + 7.0) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723.0),
        ("1d", 86_400.0),
        ("0s", 0.0),
        ("12", 12.0),
        ("0.5", 0.5),
        (f"{NOW + 30:.0f}", 30.0),
        (f"{(NOW + 30) * 1000:.0f}", 30.0),
        ("2026-11-18T15:06:50Z", 10.0),
        ("2020-01-01T00:00:00Z", 0.0),
        ("", UNSAID_RESET_S),
        ("soon", UNSAID_RESET_S),
        ("-5", UNSAID_RESET_S),
        ("nan", UNSAID_RESET_S),
        ("inf", UNSAID_RESET_S),
        ("9" * 60, UNSAID_RESET_S),
    ],
)
def test_how_resets_are_written(text, wait_s):
    assert seconds_until(text, 1_795_014_400.0 if "T" in text else NOW) == pytest.approx(wait_s, abs=1e-3)


@given(st.text(max_size=50))
def test_any_reset_is_a_finite_time(text):
    assert 0 <= seconds_until(text, NOW) < 1e16


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"content-type": "application/json"}, []),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"},
            [Told("requests", 0, 20.0)],
        ),
        (
            {"X-RateLimit-Remaining-Tokens": "17", "X-RateLimit-Reset-Tokens": "1m"},
            [Told("tokens", 17, 60.0)],
        ),
        (
            {"anthropic-ratelimit-input-tokens-remaining": "5", "anthropic-ratelimit-input-tokens-reset": "3s"},
            [Told("input_tokens", 5, 3.0)],
        ),
        (
            {"anthropic-ratelimit-output-tokens-remaining": "5", "anthropic-ratelimit-output-tokens-reset": "3s"},
            [Told("output_tokens", 5, 3.0)],
        ),
        ({"ratelimit-remaining": "1", "ratelimit-reset": "9"}, [Told("requests", 1, 9.0)]),
        ({"x-ratelimit-remaining-requests": "-1"}, []),
        ({"x-ratelimit-remaining-requests": "many"}, []),
    ],
)
def test_what_headers_tell(headers, told):
    assert list(read_told(Reply(200, headers).headers, NOW)) == told


def test_a_used_up_limit_holds_until_its_reset(load, clock):
    load.learn([Told("requests", 0, 20.0)], clock.monotonic())

    assert load.wait_s() == 20.0
    clock.advance(20.0)
    assert load.wait_s() == 0.0


def test_what_is_told_for_a_day_is_asked_again_after_a_minute(load, clock):
    load.learn([Told("requests", 0, 86_400.0)], clock.monotonic())

    assert load.wait_s() == TOLD_MAX_S


def test_attempts_since_then_count_against_what_was_told(load, clock):
    load.learn([Told("requests", 2, 20.0)], clock.monotonic())

    load.begin()
    assert load.wait_s() == 0.0
    load.begin()
    assert load.wait_s() == 20.0


def test_tokens_are_used_up_for_those_who_need_more(load, clock):
    load.learn([Told("tokens", 500, 20.0)], clock.monotonic())

    assert (load.wait_s(500), load.wait_s(501), load.wait_s(400, 101)) == (0.0, 20.0, 20.0)


@pytest.mark.parametrize("kind", get_args(LimitKind))
def test_where_nothing_is_left_the_shortest_call_waits(load, clock, kind):
    """ "hi" is shorter than a token by the bound that counts what a call needs at least."""
    load.learn([Told(kind, 0, 20.0)], clock.monotonic())

    assert load.wait_s() == 20.0


def test_what_will_be_written_draws_on_no_limit_of_what_is_read(load, clock):
    load.learn([Told("input_tokens", 500, 20.0), Told("output_tokens", 10, 20.0)], clock.monotonic())

    assert (load.wait_s(500, 4_000), load.wait_s(501)) == (0.0, 20.0)


def test_a_later_reply_lifts_it(load, make_attempt):
    end(load, make_attempt(), headers={"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"})
    assert load.wait_s() == 20.0

    end(load, make_attempt(), headers={"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "20s"})

    assert load.wait_s() == 0.0


def test_idle_loads_make_room_and_busy_ones_stay(clock):
    loads = Loads(clock)
    busy = loads.get("busy", 10.0).begin()
    for n in range(2 * LOADS_MAX):
        loads.get(f"d{n}", 10.0)

    assert loads.find("busy") is busy
    assert len(loads._by_id) <= LOADS_MAX
