"""Hedging, rescue, shedding, timeouts and explain on a real gateway, with the official SDK."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from hookline.builtins.explain.commands import ask as ask_gateway
from hookline.testing.process import HOOKLINE, ProxyProcess, clean_environ
from hookline.testing.upstream import STALL, ScriptedUpstream, json_reply, sse_reply

ADMIN = "admin-key-0123"
CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}  # fmt: skip
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def config(upstream: ScriptedUpstream, plugins: str, more: str = "") -> str:
    return f"""
[server]
port = 0
total_timeout_s = 30
[chain]
plugins = [{plugins}]
[admin]
key = "{ADMIN}"
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
api_key = "sk-none"
default = true
[models.two]
deployments = ["up/one", "up/other"]
[prices."up/one"]
input = 1.0
output = 2.0
[prices."up/other"]
input = 1.0
output = 2.0
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
budget = {{ daily_usd = 5.0 }}
requests_per_minute = 100
{more}
"""


def sdk(proxy: ProxyProcess, key: str = "sk-ci") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key=key, max_retries=0)


async def ask(
    proxy: ProxyProcess, path: str, body: Any = None, *, key: str | None = ADMIN, **headers: str
) -> tuple[int, Any]:
    """(status, JSON or text) of a GET, or of a POST with a body."""
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    async with (
        aiohttp.ClientSession(proxy.base_url) as http,
        http.request("GET" if body is None else "POST", path, json=body, headers=headers) as reply,
    ):
        return reply.status, await (reply.json() if reply.content_type == "application/json" else reply.text())


async def test_a_hedge_answers_and_the_ledger_has_both(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    more = "[plugins.hedging]\nafter_s = 0.05\nbudget = 1.0\n"
    proxy = serve(config(upstream, '"auth", "budget", "hedging", "circuit_breaker", "fallback", "logging"', more))
    upstream.play([STALL], json_reply(CHAT))
    async with sdk(proxy) as client:
        raw = await client.chat.completions.with_raw_response.create(model="two", messages=MESSAGES, max_tokens=20)

    assert raw.parse().choices[0].message.content == "hello"
    assert raw.headers["x-hookline-deployment"] == "up/other"
    assert raw.headers["x-hookline-attempts"] == "2"
    await asyncio.wait_for(upstream.requests[0].left.wait(), 30)
    line = json.loads(proxy.wait_for(r'"attempts":\[\{')[0] and next(x for x in proxy.lines if '"attempts":[{' in x))
    assert [(a["deployment"], a.get("hedge")) for a in line["attempts"]] == [("up/one", "lost"), ("up/other", "won")]
    rows = (await ask(proxy, "/admin/ledger"))[1]["data"]
    assert {(row["deployment"], row["outcome"], row["is_estimated"]) for row in rows} == {
        ("up/one", "client_gone", True),
        ("up/other", "ok", False),
    }


@pytest.mark.parametrize("endpoint", ["chat", "stream", "completions", "responses", "responses_stream"])
async def test_the_sdk_reads_a_static_answer(
    endpoint: str, serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    more = '[plugins.degradation]\nstatic = "We are busy; try again soon."\n'
    proxy = serve(config(upstream, '"auth", "fallback", "degradation"', more))
    upstream.always(lambda request: json_reply({"error": {"message": "down"}}, status=500))
    async with sdk(proxy) as client:
        if endpoint == "chat":
            text = (await client.chat.completions.create(model="two", messages=MESSAGES)).choices[0].message.content
        elif endpoint == "stream":
            stream = await client.chat.completions.create(model="two", messages=MESSAGES, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        elif endpoint == "completions":
            text = (await client.completions.create(model="two", prompt="hi")).choices[0].text
        elif endpoint == "responses":
            text = (await client.responses.create(model="two", input="hi")).output_text
        else:
            async with client.responses.stream(model="two", input="hi") as events:
                text = (await events.get_final_response()).output_text

    assert text == "We are busy; try again soon."


async def test_a_smaller_model_streams_to_the_sdk_and_pays(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    more = '[models.small]\ndeployments = ["demo/echo"]\n[providers.demo]\nkind = "demo"\n[plugins.degradation]\nmodel = "small"\n[prices."demo/echo"]\ninput = 1.0\n'
    proxy = serve(config(upstream, '"auth", "budget", "fallback", "degradation", "logging"', more))
    upstream.always(lambda request: json_reply({"error": {"message": "down"}}, status=503))
    async with sdk(proxy) as client:
        raw = await client.chat.completions.with_raw_response.create(model="two", messages=MESSAGES, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in raw.parse() if c.choices])

    assert raw.headers["x-hookline-rescue"] == "model"
    assert raw.headers["x-hookline-deployment"] == "demo/echo"
    assert "hi" in text
    rows = (await ask(proxy, "/admin/ledger"))[1]["data"]
    assert [row["deployment"] for row in rows if row["outcome"] == "ok"] == ["demo/echo"]


async def test_what_does_not_fit_is_a_fast_503_and_the_important_get_through(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    more = '[plugins.load_shedding]\ninitial_limit = 2\nmin_limit = 2\nmax_limit = 2\nkeys = { ci = "high" }\n'
    proxy = serve(config(upstream, '"auth", "load_shedding", "metrics"', more))
    go_on = asyncio.Event()
    upstream.always(lambda request: [go_on, *json_reply(CHAT)])
    async with sdk(proxy) as client:
        low = {"x-hookline-priority": "low"}
        first = asyncio.ensure_future(client.chat.completions.create(model="two", messages=MESSAGES, extra_headers=low))
        await upstream.wait_for_requests(1)
        with pytest.raises(openai.InternalServerError) as shed:
            await client.chat.completions.create(model="two", messages=MESSAGES, extra_headers=low)
        second = asyncio.ensure_future(client.chat.completions.create(model="two", messages=MESSAGES))
        await upstream.wait_for_requests(2)
        metrics = (await ask(proxy, "/metrics"))[1]
        go_on.set()
        await asyncio.gather(first, second)

    assert (shed.value.status_code, shed.value.code) == (503, "overloaded")
    assert shed.value.response.headers["retry-after"] == "1"
    assert shed.value.response.headers["x-should-retry"] == "false"
    assert 'hookline_shedding_in_flight{model="two"} 2' in metrics
    assert 'hookline_shed_total{model="two",priority="low"} 1' in metrics


async def test_a_client_that_says_how_long_it_waits_is_told_so_and_a_bad_number_is_a_400(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    proxy = serve(config(upstream, '"auth", "fallback"'))
    upstream.always(lambda request: [STALL])
    async with sdk(proxy) as client:
        with pytest.raises(openai.InternalServerError, match=r"deadline of 0\.2 s") as late:
            await client.chat.completions.create(
                model="two", messages=MESSAGES, extra_headers={"x-hookline-timeout-s": "0.2"}
            )
        assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
        assert late.value.response.headers["x-should-retry"] == "false"
        for bad in ("soon", "1_0", "-1", "0", "nan", "inf"):
            with pytest.raises(openai.BadRequestError, match="x-hookline-timeout-s"):
                await client.chat.completions.create(
                    model="two", messages=MESSAGES, extra_headers={"x-hookline-timeout-s": bad}
                )


@pytest.mark.parametrize(
    ("limit", "told"),
    [("first_byte_s", r"did not begin to answer within 0\.1 s"), ("total_s", r"did not end its reply within 0\.1 s")],
)
async def test_a_head_without_a_stream_falls_back_when_its_time_is_over(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream, limit: str, told: str
) -> None:
    """Symptom: an attempt that had used up its `total_s` ended the call, for no table said what kind of failure that is."""
    more = f"[models.quick]\ndeployments = ['up/one', 'up/other']\ntimeouts = {{ {limit} = 0.1 }}\n"
    proxy = serve(config(upstream, '"auth", "fallback", "logging"', more))
    event = '{"choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":"stop"}]}'
    upstream.play(sse_reply(STALL), sse_reply(event, "[DONE]"))
    async with sdk(proxy) as client:
        raw = await client.chat.completions.with_raw_response.create(model="quick", messages=MESSAGES, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in raw.parse() if c.choices])

    assert (text, raw.headers["x-hookline-deployment"]) == ("ho", "up/other")
    proxy.wait_for(told)


async def test_explain_tells_all_and_takes_nothing(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    plugins = '"auth", "rate_limit", "idempotency", "cache", "budget", "model_selection", "load_shedding", "hedging", "circuit_breaker", "fallback", "degradation", "logging", "metrics", "explain"'
    proxy = serve(config(upstream, plugins))
    upstream.always(lambda request: json_reply(CHAT))
    body = {"model": "two", "messages": MESSAGES, "max_tokens": 100, "temperature": 0}
    asked = {"key": "ci", "request": body}
    async with sdk(proxy) as client:
        answers = [(await ask(proxy, "/admin/explain", asked))[1] for _ in range(3)]
        own = await ask(proxy, "/v1/chat/completions", body, key="sk-ci", **{"x-hookline-explain": "true"})
        assert upstream.requests == []
        first, last = answers[0], answers[-1]
        for answer in (last, own[1]):
            assert answer["can_proceed"] is True
            assert answer["who"]["key"] == "ci"
            assert {c["deployment"]: c["verdict"] for c in answer["candidates"]} == {
                "up/one": "kept",
                "up/other": "kept",
            }
            assert answer["worst_case_usd"] > 0
            (limit,) = [one for one in answer["limits"] if one["unit"] == "requests per minute"]
            assert (limit["limit"], limit["remaining"]) == (100, 100)
            assert answer["budgets"][0]["left_usd"] == 5.0
            assert answer["cache"]["status"] == "miss"
            assert not [n for n in answer["notes"] if n["verdict"] == "not asked"]
        assert [first[name] for name in ("limits", "budgets")] == [last[name] for name in ("limits", "budgets")]

        await client.chat.completions.create(**body)
        after = (await ask(proxy, "/admin/explain", asked))[1]
        assert (after["cache"]["status"], after["answered_by"]) == ("hit", "cache")
        assert after["budgets"][0]["used_usd"] == 0.00002
        assert len(after["candidates"]) == 2

        explain_me = {"x-hookline-explain": "true"}
        assert (await ask(proxy, "/v1/chat/completions", body, key="sk-wrong", **explain_me))[0] == 401
        assert (await ask(proxy, "/admin/explain", asked, key=None))[0] in (401, 403)
        assert (await ask(proxy, "/admin/explain", {"key": "nobody", "request": body}))[0] == 404

    (tmp_path / "request.json").write_text(json.dumps(body))
    command = [*HOOKLINE, "explain", "request.json", "--key", "ci", "--url", proxy.base_url, "--admin-key", ADMIN]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "candidate  up/one: kept" in done.stdout
    assert "budget     " in done.stdout
    with pytest.raises(OSError, match="has no scheme: begin it with http"):
        ask_gateway(proxy.base_url.removeprefix("http://"), ADMIN, asked)
    assert len(upstream.requests) == 1


async def test_explain_goes_on_after_a_refusal_and_says_what_else_is_in_the_way(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    more = '[[plugins.auth.keys]]\nname = "poor"\nkey = "sk-poor"\nmax_parallel = 1\ntokens_per_minute = 5\nbudget = { total_usd = 0.0 }\n'
    proxy = serve(config(upstream, '"auth", "rate_limit", "budget", "model_selection", "explain"', more))
    body = {"model": "two", "messages": MESSAGES, "max_tokens": 100, "temperature": 0}
    _, answer = await ask(proxy, "/admin/explain", {"key": "poor", "request": body})

    assert (answer["can_proceed"], answer["status"], answer["refusals"][0]["plugin"]) == (False, 429, "rate_limit")
    assert [c["verdict"] for c in answer["candidates"]] == ["skipped", "skipped"]
    assert any("budget" in reason["text"] for reason in answer["candidates"][0]["reasons"])
    assert answer["budgets"][0]["left_usd"] == 0


async def test_a_key_that_is_good_no_more_can_not_proceed(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    proxy = serve(config(upstream, '"auth", "budget", "model_selection", "explain"'))
    _, key = await ask(proxy, "/admin/keys", {"name": "gone", "disabled": True})
    asked = {"key": key["id"], "request": {"model": "two", "messages": MESSAGES}}

    _, explained = await ask(proxy, "/admin/explain", asked)
    _, checked = await ask(proxy, "/admin/budgets/check", asked)

    assert (explained["can_proceed"], explained["status"], explained["who"]["key"]) == (False, 401, "gone")
    assert "is disabled" in explained["error"]["message"]
    assert checked["can_proceed"] is False
    assert "is disabled" in checked["error"]["message"]


async def test_a_model_that_the_key_may_not_use_is_a_refusal(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    more = '[[plugins.auth.keys]]\nname = "narrow"\nkey = "sk-narrow"\nmodels = ["other"]\n'
    proxy = serve(config(upstream, '"auth", "model_selection", "explain"', more))

    _, answer = await ask(proxy, "/admin/explain", {"key": "narrow", "request": {"model": "two", "messages": MESSAGES}})

    (refusal,) = answer["refusals"]
    assert (refusal["status"], refusal["code"], answer["status"]) == (403, "model_not_allowed", 403)


async def test_where_explain_is_not_served_the_header_never_becomes_a_call(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream
) -> None:
    proxy = serve(config(upstream, '"auth"'))
    async with sdk(proxy) as client:
        with pytest.raises(openai.BadRequestError, match="not served here"):
            await client.chat.completions.create(model="two", messages=MESSAGES, extra_headers={"x-hookline-explain": "true"})  # fmt: skip

    assert upstream.requests == []
