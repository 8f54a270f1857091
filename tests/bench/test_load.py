"""wrk's answer and chat.lua's line, percentiles, and the check of numbered events."""

from __future__ import annotations

import pytest
from bench.load import Aim, Calls, LoadError, parse_calls
from bench.streams import Door, EventCheck, percentile, read_stream
from bench.upstream import Script, Upstream

USER = "000000000007"
WRK = """Running 2s test @ http://127.0.0.1:9000
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.13ms    0.90ms   8.27ms   71.18%
Requests/sec:  35879.11
BENCH {"calls":71900,"duration_us":2004000,"bytes":5,"p50_us":1130,"p99_us":4270,"connect":1,"read":2,"write":3,"status":4,"timeout":5}
"""


def test_figures_come_from_our_own_line():
    assert parse_calls(WRK) == Calls(calls=71900, seconds=2.004, errors=15, p50_ms=1.13, p99_ms=4.27)


def test_wrk_without_figures_says_why():
    with pytest.raises(LoadError, match="unable to connect"):
        parse_calls("Running 2s test", "unable to connect to 127.0.0.1:9000 Connection refused")


def test_an_aim_is_an_sdk_base_url():
    aim = Aim("https://example.org:8443/openai/v1/")

    assert (aim.origin, aim.path) == ("https://example.org:8443", "/openai/v1/chat/completions")


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, 0.0), ([7.0], 99, 7.0), ([1, 2, 3, 4], 50, 2), ([4, 3, 2, 1], 75, 3), (list(range(1, 101)), 99, 99)],
)
def test_percentile_is_the_nearest_rank(values, percent, expected):
    assert percentile(values, percent) == expected


def make_events(*numbers: int, user: str = USER) -> bytes:
    return b"".join(b'data: {"choices":[{"delta":{"content":"%b:%04d "}}]}\n\n' % (user.encode(), n) for n in numbers)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (make_events(0, 1, 2) + b"data: [DONE]\n\n", None),
        (make_events(0, 1, 2), "no [DONE]"),
        (make_events(0, 1) + b"data: [DONE]\n\n", "cut"),
        (make_events(0, 1, 2, 3) + b"data: [DONE]\n\n", "too many events"),
        (make_events(0, 2, 1) + b"data: [DONE]\n\n", "out of order"),
        (make_events(0, 1, 1) + b"data: [DONE]\n\n", "out of order"),
        (make_events(0) + make_events(1, user="000000000008") + make_events(2), "event of another stream"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_what_is_wrong_with_a_stream_is_named_however_it_is_cut(body, problem, piece_bytes):
    check = EventCheck(USER)

    for start in range(0, len(body), piece_bytes):
        check.feed(body[start : start + piece_bytes])

    assert check.finish(3) == problem


@pytest.fixture
async def upstream():
    upstream = Upstream()
    server, port = await upstream.listen(0)
    yield upstream, Door(port)
    server.close()


async def test_the_scripted_upstream_sends_what_the_check_expects(upstream):
    served, door = upstream
    served.script = Script(chunks=30)

    result = await read_stream(door, USER, events=30, timeout_s=20)

    assert (result.status, result.problem, result.events) == (200, None, 30)
    assert (served.counts.calls, served.counts.streams, served.counts.events, served.counts.cut) == (1, 1, 30, 0)


async def test_a_client_that_leaves_counts_as_cut(upstream):
    served, door = upstream
    served.script = Script(chunks=10, delay_ms=3_600_000)

    result = await read_stream(door, USER, events=10, timeout_s=0.05)
    await served.was_cut.wait()

    assert result.problem == "timeout"
    assert (served.counts.cut, served.counts.open_now) == (1, 0)


async def test_a_reply_that_waits_does_not_hold_up_the_next(upstream):
    served, door = upstream
    served.script = Script(chunks=3, delay_ms=3_600_000)
    await read_stream(door, USER, events=3, timeout_s=0.05)
    served.script = Script(chunks=3)

    result = await read_stream(door, USER, events=3, timeout_s=20)

    assert result.problem is None


async def test_nobody_listening_is_a_problem_not_an_exception(upstream):
    _, door = upstream

    result = await read_stream(Door(1), USER, events=1, timeout_s=20)

    assert result.problem is not None
    assert result.problem.startswith("connect: ")
    assert door.port != 1
