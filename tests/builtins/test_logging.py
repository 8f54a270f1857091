"""The call log: what a line says, and that no reader can hold up the loop."""

from __future__ import annotations

import asyncio
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest

from hookline import CACHE_STATUS, SKIPPED, Principal, StartupError, UpstreamError, Usage
from hookline.builtins.logging import LineSink, LoggingOptions, Plugin, describe, encode, pieces


async def logged(make_host, tmp_path: Path, *ended, **options) -> list[dict]:
    """The lines that a plugin writes into a file for these (call, result) pairs."""
    plugin = Plugin(LoggingOptions(to=str(tmp_path / "calls.log"), **options), make_host())
    plugin.start()
    for call, result in ended:
        plugin.call_ended(call, result)
    await plugin.stop()
    return [json.loads(line) for line in (tmp_path / "calls.log").read_text().splitlines()]


async def test_a_line_says_who_asked_what_and_how_it_ended(make_host, make_call, make_attempt, make_result, tmp_path):
    call = make_call(
        {"model": "gpt-4o", "stream": True},
        principal=Principal(key_id="k1", key_name="ci", tenant="acme", user="ann"),
    )
    call[CACHE_STATUS] = "miss"
    attempt = make_attempt("openai/gpt-4o", usage=Usage(20, 60, cached_tokens=5), latency_s=0.25)
    call.attempts.append(attempt)

    [line] = await logged(
        make_host,
        tmp_path,
        (call, make_result(attempt, cost_nanousd=650_000, first_byte_at=call.started_at + 0.1)),
    )

    assert line == {
        "time": "2026-11-18T11:23:20.000Z",
        "id": "call-1",
        "endpoint": "chat",
        "model": "gpt-4o",
        "deployment": "openai/gpt-4o",
        "status": 200,
        "outcome": "ok",
        "source": "upstream",
        "stream": True,
        "latency_ms": 250.0,
        "ttft_ms": 100.0,
        "input_tokens": 20,
        "output_tokens": 60,
        "cached_tokens": 5,
        "cost_usd": 0.00065,
        "estimated": False,
        "cache": "miss",
        "key": "ci",
        "key_id": "k1",
        "tenant": "acme",
        "user": "ann",
        "attempts": [{"deployment": "openai/gpt-4o", "status": 200, "ms": 250.0}],
    }


async def test_a_failed_call_names_the_error_and_every_attempts_reason(
    make_host, make_call, make_attempt, make_result, tmp_path
):
    call = make_call({"model": "m"})
    first = make_attempt("a/m", error=UpstreamError("a/m: connection refused", kind="connect"))
    last = make_attempt("b/m", error=UpstreamError("b/m answered 500", kind="status", upstream_status=500))
    last.target.reason = "next in weight order"
    call.attempts += [first, last]

    [line] = await logged(make_host, tmp_path, (call, make_result(last)))

    assert line["error"] == {"type": "upstream_error", "code": "upstream_error", "message": "b/m answered 500"}
    assert (line["outcome"], line["status"]) == ("upstream_error", 500)
    assert [(a["deployment"], a["error"], a.get("reason")) for a in line["attempts"]] == [
        ("a/m", "upstream_connect_failed", None),
        ("b/m", "upstream_error", "after a/m: upstream_connect_failed; next in weight order"),
    ]


def test_cost_keeps_every_digit(make_call, make_result):
    line = encode(describe(make_call({"model": "m"}), make_result(cost_nanousd=12_000_000_001), "now"))

    assert Decimal("12.000000001") == json.loads(line, parse_float=Decimal)["cost_usd"]


def test_an_unknown_cost_is_null(make_call, make_result):
    assert json.loads(encode(describe(make_call(), make_result(cost_nanousd=None), "now")))["cost_usd"] is None


def test_a_relayed_call_names_method_and_path(make_call, make_result):
    line = describe(make_call(method="GET", path="/v1/files/file-1"), make_result(), "now")

    assert (line["method"], line["path"]) == ("GET", "/v1/files/file-1")


async def test_prompts_and_keys_stay_out(make_host, make_call, make_result, tmp_path):
    call = make_call(
        {"model": "m", "messages": [{"role": "user", "content": "canary-prompt"}]},
        headers={"authorization": "Bearer canary-key"},
    )

    await logged(make_host, tmp_path, (call, make_result()))

    assert "canary" not in (tmp_path / "calls.log").read_text()


async def test_prompts_are_logged_when_asked_for(make_host, make_call, make_result, tmp_path):
    payload = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}

    [line] = await logged(make_host, tmp_path, (make_call(payload), make_result()), prompts=True)

    assert payload == line["request"]


async def test_a_prompt_beyond_the_bound_is_logged_by_its_size(make_host, make_call, make_result, tmp_path):
    call = make_call({"model": "m", "input": "x" * 100})

    [line] = await logged(make_host, tmp_path, (call, make_result()), prompts=True, max_prompt_bytes=50)

    assert {"bytes": len(call.body)} == line["request"]


async def test_prompts_can_differ_per_model(make_host, make_call, make_result, tmp_path):
    to = str(tmp_path / "calls.log")
    host = make_host(options_by_model={"open": LoggingOptions(to=to, prompts=True)})
    plugin = Plugin(LoggingOptions(to=to), host)
    plugin.start()

    plugin.call_ended(make_call({"model": "open"}), make_result())
    plugin.call_ended(make_call({"model": "other"}), make_result())
    await plugin.stop()

    lines = [json.loads(line) for line in (tmp_path / "calls.log").read_text().splitlines()]
    assert ["request" in line for line in lines] == [True, False]


def test_a_destination_per_model_is_refused(make_host):
    host = make_host(options_by_model={"m": LoggingOptions(to="stdout")})

    with pytest.raises(StartupError, match=r'models\."m"\.plugins\.logging'):
        Plugin(LoggingOptions(), host)


def test_a_destination_that_cannot_be_written_is_refused_at_start(make_host, tmp_path):
    plugin = Plugin(LoggingOptions(to=str(tmp_path / "missing" / "calls.log")), make_host())

    with pytest.raises(StartupError, match="No such file"):
        plugin.start()


def test_text_that_is_no_unicode_is_escaped(make_call, make_result):
    call = make_call(method="GET", path="/v1/\udcff", id="x")

    assert rb"/v1/\\udcff" in encode(describe(call, make_result(), "now"))


async def test_lines_arrive_without_waiting_for_the_end():
    reader, writer = os.pipe()
    sink = LineSink(writer, 64 * 1024, lambda n: None)

    sink.write(b'{"a":1}\n')
    line = await asyncio.to_thread(os.read, reader, 100)

    assert line == b'{"a":1}\n'
    sink.close()
    sink.join()
    os.close(reader)


async def test_a_reader_that_does_not_read_costs_lines_not_memory_and_hears_how_many():
    reader, writer = os.pipe()
    dropped: list[float] = []
    sink = LineSink(writer, 256 * 1024, dropped.append)
    line = b"x" * 1023 + b"\n"

    for _ in range(1000):  # 1 MB into a pipe of 64 KiB and a buffer of 256 KiB
        sink.write(line)
    lost = len(dropped)
    kept = 1000 - lost
    received = await asyncio.to_thread(read_lines, reader, kept - sink_backlog_lines(sink, line))
    while sink.waiting_bytes > 128 * 1024:
        received += await asyncio.to_thread(read_lines, reader, 1)
    sink.write(b"after\n")
    sink.close()
    rest = await asyncio.to_thread(read_to_the_end, reader)

    assert 600 < lost < 1000
    assert [b"x" * 1023] * kept == (received + rest)[:kept]
    marker, after = (received + rest)[kept:]
    assert lost == json.loads(marker)["dropped_lines"]
    assert after == b"after"


def sink_backlog_lines(sink: LineSink, line: bytes) -> int:
    return sink.waiting_bytes // len(line)


def read_lines(fd: int, count: int) -> list[bytes]:
    found = b""
    while found.count(b"\n") < count:
        found += os.read(fd, 1024)
    return found.splitlines()


def read_to_the_end(fd: int) -> list[bytes]:
    with os.fdopen(fd, "rb") as file:
        return file.read().splitlines()


async def test_a_reader_that_is_gone_costs_its_lines_only():
    reader, writer = os.pipe()
    os.close(reader)
    dropped: list[float] = []
    sink = LineSink(writer, 64 * 1024, dropped.append)

    sink.write(b"one\n")
    sink.write(b"two\n")
    sink.close()
    sink.join()
    sink.count_failed()

    assert sum(dropped) == 2


def test_writes_hold_whole_lines_up_to_the_bound():
    lines = [b"a" * 5, b"b" * 5, b"c" * 25, b"d"]

    assert pieces(lines, 10) == [b"aaaaabbbbb", b"c" * 25, b"d"]


async def test_a_line_says_which_targets_were_skipped_and_how_a_race_went(
    make_host, make_call, make_attempt, make_result, tmp_path
):
    call = make_call({"model": "m"})
    call[SKIPPED] = [("up/0", "circuit open for another 3.0 s: no answer")]
    lost, won, failed = (
        make_attempt("up/1"),
        make_attempt("up/2"),
        make_attempt("up/3", error=UpstreamError("no", kind="reset")),
    )
    lost.is_loser = won.is_hedge = failed.is_hedge = True
    won.first_byte_at = 1.0
    call.attempts += [lost, won, failed]

    [line] = await logged(make_host, tmp_path, (call, make_result(won)))

    assert line["skipped"] == [{"deployment": "up/0", "reason": "circuit open for another 3.0 s: no answer"}]
    assert [attempt["hedge"] for attempt in line["attempts"]] == ["lost", "won", "failed"]
