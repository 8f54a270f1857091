"""A stream whose upstream dies half way, continued by another deployment: what the official SDK sees, and what it costs."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import orjson
import pytest

from hookline.testing.upstream import CUT, RESET, json_reply, sse_reply

TEXT = """
[chain]
plugins = ["auth", "budget", "circuit_breaker", "fallback", "logging"]
[providers.up]
kind = "openai"
base_url = "{up}"
[providers.spare]
kind = "openai"
base_url = "{spare}"
[models.m]
deployments = ["up/first", "spare/second"]
[plugins.fallback]
{options}
[[plugins.auth.keys]]
name = "ci"
key = "sk-client"
budget = {{ daily_usd = 5.0 }}
[prices."first"]
input = 1.0
output = 10.0
[prices."second"]
input = 1.0
output = 10.0
[admin]
key = "admin-key"
"""
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "count"}], "max_tokens": 50}


def chunk(
    text: str | None = None, *, id: str = "one", role: str | None = None, finish: str | None = None, **delta: Any
) -> str:
    delta = {**({"role": role} if role else {}), **({"content": text} if text is not None else {}), **delta}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return orjson.dumps(
        {"id": id, "object": "chat.completion.chunk", "created": 1, "model": id, "choices": [choice]}
    ).decode()


def usage(inputs: int, outputs: int) -> str:
    told = {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs}
    return orjson.dumps(
        {"id": "two", "object": "chat.completion.chunk", "created": 2, "model": "two", "choices": [], "usage": told}
    ).decode()


REST = [
    chunk("", id="two", role="assistant"),
    chunk("three ", id="two"),
    chunk("four", id="two"),
    chunk(id="two", finish="stop"),
    usage(30, 7),
    "[DONE]",
]


@pytest.fixture
def start(start_gateway, upstream, spare):
    async def start(
        options: str = 'mid_stream = "continue"', *more: str, deployments: str = '["up/first", "spare/second"]'
    ) -> Any:
        text = TEXT.format(up=upstream.url, spare=spare.url, options=options)
        text = text.replace('["up/first", "spare/second"]', deployments)
        text = text.replace('["auth", ', "".join(['["auth", ', *[f'"{name}", ' for name in more]]))
        return await start_gateway(text)

    return start


def client_of(proxy: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="sk-client", max_retries=0)


async def spent_usd(proxy: Any) -> float:
    headers = {"authorization": "Bearer admin-key"}
    url = f"http://127.0.0.1:{proxy.port}/admin/budgets?key=ci"
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as reply:
        (window,) = (await reply.json())["data"]
        return float(window["used_usd"])


@pytest.mark.parametrize("death", [RESET, CUT])
async def test_the_sdk_sees_one_stream_and_both_attempts_are_paid(start, upstream, spare, death):
    upstream.play(sse_reply(chunk("", role="assistant"), chunk("one "), chunk("two "), death))
    spare.play(sse_reply(*REST))
    proxy = await start()

    async with client_of(proxy) as client:
        stream = await client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "one two three four"
    assert {(c.id, c.model) for c in chunks} == {("one", "one")}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert [c.choices[0].delta.role for c in chunks if c.choices and c.choices[0].delta.role] == ["assistant"]
    (marked,) = [c for c in chunks if "hookline" in (c.model_extra or {})]
    assert marked.model_extra["hookline"] == {"continued": ["up/first", "spare/second"]}
    assert marked.choices[0].finish_reason == "stop"
    told = chunks[-1].usage
    cost_usd = told.model_extra["cost_usd"]
    assert told.completion_tokens >= 7 + 2
    assert (
        cost_usd >= (told.prompt_tokens * 1.0 + told.completion_tokens * 10.0) / 1e6
    )  # what died is charged by its bound
    assert await spent_usd(proxy) == pytest.approx(cost_usd)
    asked = spare.requests[0].json()
    assert (asked["model"], asked["max_tokens"]) == ("second", ASKED["max_tokens"] - 2)
    assert asked["messages"][:2] == [*ASKED["messages"], {"role": "assistant", "content": "one two "}]
    assert asked["messages"][2]["role"] == "user"


async def test_on_the_wire_there_is_one_done_and_a_clean_end(start, upstream, spare):
    upstream.play(sse_reply(chunk("", role="assistant"), chunk("one "), CUT))
    spare.play(sse_reply(*REST))
    proxy = await start()

    url, headers = f"http://127.0.0.1:{proxy.port}/v1/chat/completions", {"authorization": "Bearer sk-client"}
    asked = {**ASKED, "stream": True}
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=asked) as reply:
        body = await reply.read()

    assert body.count(b"data: [DONE]\n\n") == 1
    assert body.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in body


async def test_the_sdks_own_accumulation_is_the_whole_message(start, upstream, spare):
    upstream.play(sse_reply(chunk("", role="assistant"), chunk("one "), chunk("two "), RESET))
    spare.play(sse_reply(*REST))

    async with client_of(await start()) as client, client.chat.completions.stream(**ASKED) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()

    message = completion.choices[0].message
    assert (message.role, message.content) == ("assistant", "one two three four")


async def test_a_deployment_that_goes_on_from_a_prefix_is_given_one(start, upstream, spare):
    upstream.play(sse_reply(chunk("one"), CUT))
    spare.play(sse_reply(*REST))

    async with client_of(await start('mid_stream = "continue"\ncontinues_prefix = ["spare/*"]')) as client:
        async for _ in await client.chat.completions.create(**ASKED, stream=True):
            pass

    assert spare.requests[0].json()["messages"] == [*ASKED["messages"], {"role": "assistant", "content": "one"}]


@pytest.mark.parametrize(
    "death",
    [
        [chunk("never")[:40].encode(), CUT],
        [b"data: {oops\n\n", chunk("never")],
        ['{"error": {"message": "boom", "type": "server_error"}}'],
        [],
    ],
    ids=["inside an event", "a broken event", "an error event", "a clean end"],
)
async def test_however_it_dies_it_is_continued_and_the_joined_answer_is_not_cached(start, upstream, spare, death):
    gates = [asyncio.Event(), asyncio.Event()]
    upstream.play(
        *[sse_reply(chunk("", role="assistant"), chunk("one "), chunk("two "), gate, *death) for gate in gates]
    )
    spare.always(sse_reply(*REST))
    proxy = await start('mid_stream = "continue"\n[plugins.cache]\nwhen = "always"', "cache")

    async with client_of(proxy) as client:
        for asked, gate in enumerate(gates, 1):
            text = ""
            async for event in await client.chat.completions.create(**ASKED, stream=True):
                text += event.choices[0].delta.content or ""
                gate.set()

            assert text == "one two three four"
            assert len(spare.requests) == asked


async def test_a_first_attempt_that_never_left_is_not_named_in_the_mark(start, upstream, spare):
    gate = asyncio.Event()
    upstream.play(
        sse_reply('{"error": {"message": "boom"}}'),
        sse_reply(chunk("", role="assistant"), chunk("one "), gate, RESET),
    )
    spare.play(sse_reply(*REST))
    proxy = await start(
        'mid_stream = "continue"',
        deployments='["up/first", { provider = "up", model = "first", id = "up/again" }, "spare/second"]',
    )

    async with client_of(proxy) as client:
        stream = await client.chat.completions.create(**ASKED, stream=True)
        marked = None
        async for event in stream:
            gate.set()
            marked = (event.model_extra or {}).get("hookline", marked)

    assert marked == {"continued": ["up/again", "spare/second"]}


async def test_who_goes_on_with_json_goes_on(start, upstream, spare):
    upstream.play(sse_reply(chunk("", role="assistant"), chunk("one "), RESET))
    said = {"role": "assistant", "content": "two"}
    spare.play(json_reply({"id": "two", "object": "chat.completion", "created": 2, "model": "two", "choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}))  # fmt: skip

    async with client_of(await start()) as client, client.chat.completions.stream(**ASKED) as stream:
        async for _ in stream:
            pass
        told = await stream.get_final_completion()

    assert (told.choices[0].message.content, told.id) == ("one two", "one")


TOOL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{"}}


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        ([chunk("one "), chunk(tool_calls=[TOOL])], {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ([chunk('{"a": ')], {"response_format": {"type": "json_object"}}),
        ([chunk("one ")], {"n": 2}),
    ],
)
async def test_what_cannot_be_continued_ends_with_an_error(start, upstream, spare, begun, more):
    upstream.play(sse_reply(*begun, CUT))
    proxy = await start()

    async with client_of(proxy) as client:
        stream = await client.chat.completions.create(**ASKED, **more, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass

    assert spare.requests == []


async def test_a_continuation_that_fails_is_an_error_with_nothing_made_up(start, upstream, spare):
    upstream.play(sse_reply(chunk("one "), CUT))
    spare.play(json_reply({"error": {"message": "busy"}}, status=503))

    async with client_of(await start()) as client:
        stream = await client.chat.completions.create(**ASKED, stream=True)
        text = ""
        with pytest.raises(openai.APIError):
            async for chunk_ in stream:
                text += chunk_.choices[0].delta.content or ""

    assert text == "one "


async def test_it_is_off_unless_asked_for(start, upstream, spare):
    upstream.play(sse_reply(chunk("one "), CUT))

    async with client_of(await start("")) as client:
        stream = await client.chat.completions.create(**ASKED, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass

    assert spare.requests == []


def said(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **data}) + b"\n\n"


@pytest.mark.parametrize("style", ["", 'continues_prefix = ["spare/*"]'])
async def test_a_provider_with_another_wire_goes_on_too(start_gateway, upstream, spare, style):
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "second",
        "content": [],
        "stop_reason": None,
    }
    upstream.play(sse_reply(chunk("", role="assistant"), chunk("one "), chunk("two"), RESET))
    spare.play(
        sse_reply(
            said("message_start", message={**message, "usage": {"input_tokens": 9, "output_tokens": 1}}),
            said("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            said("content_block_delta", index=0, delta={"type": "text_delta", "text": " three"}),
            said("content_block_stop", index=0),
            said("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4}),
            said("message_stop"),
        )
    )
    text = TEXT.format(up=upstream.url, spare=spare.url, options=f'mid_stream = "continue"\n{style}')
    text = text.replace(
        '[providers.spare]\nkind = "openai"', '[providers.spare]\nkind = "anthropic"\napi_key = "sk-ant"'
    )

    async with client_of(await start_gateway(text)) as client, client.chat.completions.stream(**ASKED) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()

    assert completion.choices[0].message.content == "one two three"
    assert (completion.id, completion.model) == ("one", "one")
    asked = spare.requests[0].json()["messages"]
    assert [message["role"] for message in asked] == ["user", "assistant"] + ["user"] * (not style)
    assert "one two" in orjson.dumps(asked[1]["content"]).decode()
