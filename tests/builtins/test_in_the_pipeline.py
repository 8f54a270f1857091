"""Fallback, cache, call log and metrics through the real chain and pipeline: what clients, logs and dashboards see."""

from __future__ import annotations

import json

import orjson
import pytest

from hookline import UpstreamError, hookimpl
from hookline.builtins import cache, fallback, logging, metrics
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryReplies
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, stream

COLD = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def make_kit(*providers: ScriptedProvider, plugins=(), options=None) -> PipelineKit:
    """Model "m" at each provider in turn."""
    clock = FakeClock()
    stores = Stores(None, MemoryReplies(clock), None)
    return PipelineKit(
        *plugins,
        providers=providers,
        deployments={"m": [f"{provider.name}/m" for provider in providers]},
        options=options,
        stores=stores,
        clock=clock,
        host_settings={"tenants": {}, "users": {}, "global": {}, "server": {}, "models": ["m"]},
    )


def error(status: int):
    return lambda: answer(b'{"error":{"message":"no"}}', status)


@pytest.mark.parametrize("failure", [error(401), error(404), error(429), error(500), UpstreamError("x", kind="reset")])
async def test_the_next_target_answers_after_a_failure_that_goes_on(failure):
    kit = make_kit(ScriptedProvider(failure, name="a"), ScriptedProvider(name="b"), plugins=[fallback.Plugin])

    delivered = await kit.call(COLD)

    assert (delivered.status, delivered.headers["x-hookline-deployment"]) == (200, "b/m")
    assert delivered.headers["x-hookline-attempts"] == "2"


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_a_failure_that_blames_the_request_is_passed_on_at_once(status):
    second = ScriptedProvider(name="b")
    kit = make_kit(ScriptedProvider(error(status), name="a"), second, plugins=[fallback.Plugin])

    delivered = await kit.call(COLD)

    assert (delivered.status, second.sent) == (status, [])


async def test_each_target_is_tried_once_and_the_last_error_is_passed_on():
    providers = [ScriptedProvider(error(status), name=name) for name, status in (("a", 500), ("b", 429), ("c", 503))]
    kit = make_kit(*providers, plugins=[fallback.Plugin])

    delivered = await kit.call(COLD)

    assert [len(provider.sent) for provider in providers] == [1, 1, 1]
    assert (delivered.status, delivered.body) == (503, b'{"error":{"message":"no"}}')


async def test_there_is_no_second_try_after_the_first_byte():
    second = ScriptedProvider(name="b")
    dying = ScriptedProvider(lambda: stream(DELTA, UpstreamError("gone", kind="reset")), name="a")
    kit = make_kit(dying, second, plugins=[fallback.Plugin])

    delivered = await kit.call({**COLD, "stream": True})

    assert delivered.body.startswith(DELTA)
    assert (b'"error"' in delivered.body, DONE in delivered.body, second.sent) == (True, False, [])


async def test_a_hit_asks_no_upstream_and_costs_nothing():
    up = ScriptedProvider(name="up")
    kit = make_kit(up, plugins=[cache.Plugin, metrics.Plugin])

    first, second = await kit.call(COLD), await kit.call(COLD)

    assert [d.headers["x-hookline-cache"] for d in (first, second)] == ["miss", "hit"]
    assert (second.body, second.headers["age"], len(up.sent)) == (first.body, "0", 1)
    shown = kit.metrics.render().decode()
    assert 'hookline_cache_total{model="m",status="hit"} 1.0' in shown
    assert 'ai_requests_total{model="m",provider="none",status="success"} 1.0' in shown
    assert 'ai_tokens_total{model="m",provider="none",type="prompt"} 0.0' in shown
    assert 'ai_cost_dollars_total{model="m",provider="none"} 0.0' in shown


async def test_a_streams_hit_is_the_same_bytes():
    up = ScriptedProvider(lambda: stream(DELTA, STOP, DONE), name="up")
    kit = make_kit(up, plugins=[cache.Plugin])

    first, second = [await kit.call({**COLD, "stream": True}) for _ in range(2)]

    assert second.headers["x-hookline-cache"] == "hit"
    assert (second.body, len(up.sent)) == (first.body, 1) == (DELTA + STOP + DONE, 1)


@pytest.mark.parametrize(
    "events",
    [
        [DELTA],
        [DELTA, UpstreamError("gone", kind="reset")],
        [DELTA, b'data: {"error":{"message":"overloaded"}}\n\n', DONE],
    ],
)
async def test_a_stream_that_did_not_end_well_is_not_cached(events):
    up = ScriptedProvider(lambda: stream(*events), name="up")
    kit = make_kit(up, plugins=[cache.Plugin])

    for _ in range(2):
        await kit.call({**COLD, "stream": True})

    assert len(up.sent) == 2


async def test_the_cache_holds_what_plugins_listed_after_it_made_of_the_reply():
    class Shout:
        @hookimpl
        def edit_reply(self, call, reply):
            reply.replace_json({"shouted": True})
            return reply

    kit = make_kit(ScriptedProvider(name="up"), plugins=[cache.Plugin, Shout])

    first, second = await kit.call(COLD), await kit.call(COLD)

    assert (first.json(), second.json()) == ({"shouted": True}, {"shouted": True})
    assert second.headers["x-hookline-cache"] == "hit"


async def test_an_answer_of_a_capped_attempt_that_ended_in_length_is_not_cached():
    class Cap:
        @hookimpl
        def admit_attempt(self, call, target, attempt):
            attempt.lower_output_cap(5)

    cut = orjson.dumps({"choices": [{"index": 0, "message": {"content": "h"}, "finish_reason": "length"}]})
    up = ScriptedProvider(lambda: answer(cut), name="up")
    kit = make_kit(up, plugins=[cache.Plugin, Cap])

    delivered = [await kit.call(COLD) for _ in range(2)]

    assert [d.headers["x-hookline-cache"] for d in delivered] == ["miss", "miss"]
    assert delivered[0].headers["x-hookline-output-capped"] == "5"


async def test_one_line_per_call_says_how_each_ended(tmp_path):
    up = ScriptedProvider(answer, error(429), lambda: stream(DELTA, UpstreamError("gone", kind="reset")), name="up")
    path = tmp_path / "calls.log"
    kit = make_kit(up, plugins=[fallback.Plugin, logging.Plugin], options={"logging": {"to": str(path)}})
    plugin = kit.plugin(logging.Plugin)
    plugin.start()

    for payload in (COLD, COLD, {**COLD, "stream": True}):
        await kit.call(payload)
    await plugin.stop()

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["status"], line["outcome"]) for line in lines] == [
        (200, "ok"),
        (429, "upstream_error"),
        (200, "upstream_lost"),
    ]
    assert (lines[0]["input_tokens"], lines[0]["output_tokens"], lines[0]["cost_usd"]) == (10, 5, 0.00002)
    assert lines[1]["error"]["code"] == "upstream_error"
    assert lines[2]["attempts"][0]["error"] == "upstream_reset"


async def test_a_call_counts_with_its_tokens_and_its_cost():
    kit = make_kit(ScriptedProvider(name="up"), plugins=[metrics.Plugin])

    await kit.call(COLD)

    shown = kit.metrics.render().decode()
    for line in (
        'ai_requests_total{model="m",provider="up",status="success"} 1.0',
        'ai_tokens_total{model="m",provider="up",type="prompt"} 10.0',
        'ai_tokens_total{model="m",provider="up",type="completion"} 5.0',
        'ai_cost_dollars_total{model="m",provider="up"} 2e-05',
        'ai_request_duration_seconds_bucket{le="30.0",model="m",provider="up"} 1.0',
        'hookline_attempts_total{deployment="up/m",outcome="ok",provider="up"} 1.0',
    ):
        assert line in shown
