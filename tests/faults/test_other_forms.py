"""An upstream that answers in another form than it was asked, or whose content filter stops the answer: what the official SDK gets."""

from __future__ import annotations

from typing import Any

import openai
import orjson
import pytest

from hookline.testing.upstream import bytes_reply, json_reply, sse_reply

TEXT = """
[chain]
plugins = ["cache", "fallback", "logging"]
[plugins.cache]
when = "always"
[providers.up]
kind = "openai"
base_url = "{up}"
[providers.spare]
kind = "openai"
base_url = "{spare}"
[models.m]
deployments = ["up/m"]
[models.pair]
deployments = ["up/m", "spare/m"]
[models.other]
deployments = ["spare/other"]
[models.filtered]
deployments = ["up/m", "up/n"]
[models.filtered.plugins.fallback]
content_policy = ["other"]
"""
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def completion(text: str | None = "well", finish: str = "stop", **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}


def chunk(finish: str | None = None, **delta: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return orjson.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    ).decode()


RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "output": [
        {
            "id": "msg",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "well", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4, "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
}  # fmt: skip


@pytest.fixture
async def client(start_gateway, upstream, spare):
    spare.always(lambda request: sse_reply(chunk(content="spare"), chunk("stop"), "[DONE]") if request.json().get("stream") else json_reply(completion("spare")))  # fmt: skip
    gateway = await start_gateway(TEXT.format(up=upstream.url, spare=spare.url))
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="x", max_retries=0) as client:
        yield client


async def streamed_text(client: openai.AsyncOpenAI, model: str) -> tuple[str, str | None]:
    """The text, and the finish_reason."""
    text, finish = "", None
    async for event in await client.chat.completions.create(model=model, **ASKED, stream=True):
        text += event.choices[0].delta.content or ""
        finish = event.choices[0].finish_reason or finish
    return text, finish


async def test_json_for_a_chat_stream_is_told_as_one_with_tools_and_usage(client, upstream):
    upstream.play(json_reply(completion(tool_calls=[TOOL_CALL], finish="tool_calls")))

    async with client.chat.completions.stream(model="m", **ASKED, stream_options={"include_usage": True}) as stream:
        async for _ in stream:
            pass
        told = await stream.get_final_completion()

    assert told.choices[0].message.content == "well"
    assert told.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
    assert (told.choices[0].finish_reason, told.usage.total_tokens) == ("tool_calls", 4)


async def test_a_usage_that_the_client_did_not_ask_for_is_not_told(client, upstream):
    upstream.play(json_reply(completion()))

    events = [e async for e in await client.chat.completions.create(model="m", **ASKED, stream=True)]

    assert all(event.choices and event.usage is None for event in events)


async def test_json_for_a_stream_of_completions_and_of_responses(client, upstream):
    text = {**completion(), "object": "text_completion", "choices": [{"index": 0, "text": "well", "finish_reason": "stop", "logprobs": None}]}  # fmt: skip
    upstream.play(json_reply(text), json_reply(RESPONSE))

    pieces = [e.choices[0].text async for e in await client.completions.create(model="m", prompt="hi", stream=True)]
    events = [e async for e in await client.responses.create(model="m", input="hi", stream=True)]

    assert "".join(pieces) == "well"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "well"
    assert (events[-1].type, events[-1].response.output_text) == ("response.completed", "well")


@pytest.mark.parametrize(
    "answer",
    [
        json_reply({"id": "c", "choices": []}),
        json_reply({"detail": "hi"}),
        json_reply(completion(finish=None)),  # type: ignore[arg-type]
        bytes_reply(b"busy, come again", headers={"content-type": "text/plain"}),
    ],
)
async def test_what_cannot_be_told_as_a_stream_falls_back(client, upstream, answer):
    upstream.always(answer)

    assert await streamed_text(client, "pair") == ("spare", "stop")
    with pytest.raises(openai.InternalServerError, match=r"garbage|JSON"):
        await streamed_text(client, "m")


async def test_a_stream_that_nobody_asked_for_falls_back(client, upstream):
    upstream.always(sse_reply(chunk(content="a"), chunk("stop"), "[DONE]"))

    told = await client.chat.completions.create(model="pair", **ASKED)

    assert told.choices[0].message.content == "spare"
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="m", **ASKED)


FILTERED = [chunk(role="assistant", content=""), chunk("content_filter"), "[DONE]"]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_a_filter_stopped_goes_to_the_content_policy_list(client, upstream, spare, is_stream):
    upstream.always(sse_reply(*FILTERED) if is_stream else json_reply(completion("", "content_filter")))

    if is_stream:
        text, _ = await streamed_text(client, "filtered")
    else:
        text = (await client.chat.completions.create(model="filtered", **ASKED)).choices[0].message.content

    assert text == "spare"
    assert [request.json()["model"] for request in upstream.requests] == ["m"], (
        "its other deployments would say the same"
    )
    assert [request.json()["model"] for request in spare.requests] == ["other"]


async def test_without_a_list_it_is_the_answer(client, upstream):
    upstream.always(lambda request: sse_reply(*FILTERED) if request.json().get("stream") else json_reply(completion("", "content_filter")))  # fmt: skip

    assert await streamed_text(client, "pair") == ("", "content_filter")
    told = await client.chat.completions.create(model="pair", messages=[{"role": "user", "content": "plain"}])
    assert told.choices[0].finish_reason == "content_filter"


async def test_text_that_a_filter_cut_is_an_answer(client, upstream):
    upstream.play(sse_reply(chunk(role="assistant", content=""), chunk(content="so"), chunk("content_filter"), "[DONE]"))  # fmt: skip

    assert await streamed_text(client, "filtered") == ("so", "content_filter")


async def test_a_response_that_a_filter_stopped(client, upstream, spare):
    stopped = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []}
    begun = {
        "type": "response.created",
        "sequence_number": 0,
        "response": {**RESPONSE, "status": "in_progress", "output": []},
    }
    ended = {"type": "response.incomplete", "sequence_number": 1, "response": stopped}
    spare.always(json_reply(RESPONSE))
    upstream.play(json_reply(stopped), sse_reply(*[f"event: {e['type']}\ndata: ".encode() + orjson.dumps(e) + b"\n\n" for e in (begun, ended)]))  # fmt: skip

    plain = await client.responses.create(model="filtered", input="hi")
    events = [e async for e in await client.responses.create(model="filtered", input="ho", stream=True)]

    assert (plain.output_text, events[-1].response.output_text) == ("well", "well")


async def test_when_the_list_fails_too_the_client_is_told_of_the_last(client, upstream, spare):
    upstream.always(json_reply(completion("", "content_filter")))
    spare.always(json_reply(completion("", "content_filter")))

    told = await client.chat.completions.create(model="filtered", **ASKED)

    assert told.choices[0].finish_reason == "content_filter", "nobody is left: so it is the answer"


async def test_when_the_list_cannot_be_asked_the_client_gets_a_400(start_gateway, upstream, spare):
    upstream.always(json_reply(completion("", "content_filter")))
    spare.always(json_reply(completion("spare")))
    long = [{"role": "user", "content": "hi " * 500}]
    text = TEXT.format(up=upstream.url, spare=spare.url).replace('"fallback", ', '"model_selection", "fallback", ')
    text = text.replace('["spare/other"]', '[{ provider = "spare", model = "other", context_tokens = 64 }]')
    gateway = await start_gateway(text)

    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="filtered", messages=long)

    assert refused.value.code == "content_filter"
