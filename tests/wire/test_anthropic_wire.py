"""The official OpenAI SDK, a real gateway, and an upstream that answers with the `anthropic` package's own messages and events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import CUT, Script, ScriptedUpstream, Step, json_reply, sse_reply

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
MODEL = "claude-sonnet-4-5"
USER: Any = {"role": "user", "content": "hi"}
USAGE = {"input_tokens": 10, "output_tokens": 7, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 3}
BLOCKS = [
    {"type": "thinking", "thinking": "Two calls.", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"},
    {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "id": "toolu_1", "name": "Add", "input": {"a": 2}},
    {"type": "tool_use", "id": "toolu_2", "name": "Add", "input": {"a": 3}},
]
RESULTS: list[Any] = [
    {"role": "tool", "tool_call_id": "toolu_1", "content": "2"},
    {"role": "tool", "tool_call_id": "toolu_2", "content": "3"},
]
EXPECTED_TURNS = [
    USER,
    {"role": "assistant", "content": BLOCKS},
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "3"},
        ],
    },
]


class Add(BaseModel):
    """Add to the sum."""

    a: int


def message(blocks: list[dict[str, Any]], stop_reason: str | None = "end_turn") -> dict[str, Any]:
    value = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": f"{MODEL}-20250929", "content": blocks,
        "stop_reason": stop_reason, "stop_sequence": None, "usage": USAGE,
    }  # fmt: skip
    Message.model_validate(value)
    return value


def begin() -> bytes:
    return event({"type": "message_start", "message": message([], None)})


def end(stop_reason: str) -> list[bytes]:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return [
        event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}),
        event({"type": "message_stop"}),
    ]


def event(data: dict[str, Any]) -> bytes:
    if data["type"] not in ("ping", "error"):
        EVENT.validate_python(data)
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def block_events(index: int, block: dict[str, Any]) -> list[bytes]:
    """A block in deltas, as the API sends it."""
    empty: dict[str, Any] = {"text": "", "thinking": "", "signature": "", "input": {}}
    start = {name: empty.get(name, value) for name, value in block.items()}
    deltas: list[dict[str, Any]] = []
    for name, value in block.items():
        if name in ("text", "thinking"):
            deltas += [{"type": f"{name}_delta", name: half} for half in (value[:3], value[3:])]
        elif name == "signature":
            deltas.append({"type": "signature_delta", "signature": value})
        elif name == "input":
            text = json.dumps(value)
            deltas += [{"type": "input_json_delta", "partial_json": half} for half in ("", text[:4], text[4:])]
    return [
        event({"type": "content_block_start", "index": index, "content_block": start}),
        *(event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas),
        event({"type": "content_block_stop", "index": index}),
    ]


def streamed(blocks: list[dict[str, Any]], stop_reason: str = "end_turn") -> Script:
    bodies = [piece for index, block in enumerate(blocks) for piece in block_events(index, block)]
    return sse_reply(begin(), event({"type": "ping"}), *bodies, *end(stop_reason))


def error(kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": "later"}, "request_id": "req_up"}


@pytest.fixture
async def client(serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    proxy = serve(
        f"""
[server]
port = 0
[chain]
plugins = ["fallback"]
[providers.claude]
kind = "anthropic"
base_url = "{upstream.url}"
api_key = "sk-ant-canary"
default = true
[providers.other]
kind = "openai"
base_url = "{upstream.url}"
[models.either]
deployments = ["claude/{MODEL}", "other/m"]
"""
    )
    async with openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="sk-client", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_tool_loop_of_the_sdks_helpers_keeps_the_signed_thinking(
    client: openai.AsyncOpenAI, upstream: ScriptedUpstream, is_stream: bool
) -> None:
    """`parse` and `stream` add fields of their own to what they return, and it all comes back."""
    tools: Any = [openai.pydantic_function_tool(Add)]
    fields: Any = {"model": MODEL, "tools": tools, "reasoning_effort": "medium"}
    upstream.play(streamed(BLOCKS, "tool_use") if is_stream else json_reply(message(BLOCKS, "tool_use")))
    upstream.always(json_reply(message([{"type": "text", "text": "5"}])))

    if is_stream:
        async with client.chat.completions.stream(messages=[USER], **fields) as stream:
            answer: Any = (await stream.get_final_completion()).choices[0].message
    else:
        answer = (await client.chat.completions.parse(messages=[USER], **fields)).choices[0].message
    done = await client.chat.completions.create(messages=[USER, answer, *RESULTS], **fields)

    assert [call.function.parsed_arguments.a for call in answer.tool_calls] == [2, 3]
    assert upstream.requests[1].json()["messages"] == EXPECTED_TURNS
    assert done.choices[0].message.content == "5"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_tool_loop_of_responses_keeps_the_signed_thinking(
    client: openai.AsyncOpenAI, upstream: ScriptedUpstream, is_stream: bool
) -> None:
    fields: Any = {"model": MODEL, "tools": [openai.pydantic_function_tool(Add)], "reasoning": {"effort": "medium"}}
    fields["tools"] = [{"type": "function", **tool["function"]} for tool in fields["tools"]]
    upstream.play(streamed(BLOCKS, "tool_use") if is_stream else json_reply(message(BLOCKS, "tool_use")))
    upstream.always(json_reply(message([{"type": "text", "text": "5"}])))

    numbers = []
    if is_stream:
        async with client.responses.stream(input=[USER], **fields) as stream:
            numbers = [event.sequence_number async for event in stream]
            answer: Any = await stream.get_final_response()
    else:
        answer = await client.responses.parse(input=[USER], **fields)
    outputs = [{"type": "function_call_output", "call_id": r["tool_call_id"], "output": r["content"]} for r in RESULTS]
    done = await client.responses.create(input=[USER, *answer.output, *outputs], **fields)

    assert numbers == list(range(len(numbers)))
    assert (answer.status, answer.usage.input_tokens) == ("completed", 17)
    assert upstream.requests[1].json()["messages"] == EXPECTED_TURNS
    assert done.output_text == "5"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's, about its own `parsed`
async def test_structured_answers_parse_on_every_door(client: openai.AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.always(json_reply(message([{"type": "text", "text": '{"a": 4}'}])))

    chat = await client.chat.completions.parse(model=MODEL, messages=[USER], response_format=Add)
    again = await client.chat.completions.parse(
        model=MODEL, messages=[USER, chat.choices[0].message, USER], response_format=Add
    )
    response = await client.responses.parse(model=MODEL, input="hi", text_format=Add)

    assert chat.choices[0].message.parsed == again.choices[0].message.parsed == response.output_parsed == Add(a=4)
    for request in upstream.requests:
        assert request.json()["output_config"]["format"]["schema"]["required"] == ["a"]


@pytest.mark.parametrize("door", ["chat", "responses", "completions"])
async def test_a_stream_that_begins_with_an_error_falls_back(
    client: openai.AsyncOpenAI, upstream: ScriptedUpstream, door: str
) -> None:
    failing = sse_reply(event({"type": "ping"}), event(error("overloaded_error")))
    choice = {"index": 0, "delta": {"content": "ho"}, "finish_reason": "stop"}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    begun: dict[str, Step | str] = {
        "chat": json.dumps(chunk),
        "responses": b'event: response.completed\ndata: {"type":"response.completed","response":{},"sequence_number":0}\n\n',
        "completions": json.dumps({**chunk, "choices": [{"index": 0, "text": "ho", "finish_reason": "stop"}]}),
    }
    upstream.play(failing, sse_reply(begun[door]), failing)

    assert [one async for one in await ask(client, door, "either")]
    with pytest.raises(openai.InternalServerError) as failed:
        await ask(client, door, MODEL)

    assert (failed.value.status_code, failed.value.code) == (503, "overloaded")


async def ask(client: openai.AsyncOpenAI, door: str, model: str) -> Any:
    if door == "chat":
        return await client.chat.completions.create(model=model, messages=[USER], stream=True)
    if door == "responses":
        return await client.responses.create(model=model, input="hi", stream=True)
    return await client.completions.create(model=model, prompt="hi", stream=True)


@pytest.mark.parametrize(
    "broken", [[event(error("api_error"))], [CUT], []], ids=["error event", "cut", "clean end"]
)  # fmt: skip
async def test_a_stream_that_breaks_is_an_error_for_the_client(
    client: openai.AsyncOpenAI, upstream: ScriptedUpstream, broken: list[Any]
) -> None:
    upstream.play(sse_reply(begin(), *block_events(0, {"type": "text", "text": "hello"})[:2], *broken))

    stream = await client.chat.completions.create(model=MODEL, messages=[USER], stream=True)
    told = ""
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            told += chunk.choices[0].delta.content or ""

    assert told == "hel"


@pytest.mark.parametrize("second", [sse_reply(), sse_reply(CUT), sse_reply(event(error("rate_limit_error")))])
async def test_a_prompt_that_is_lost_before_its_first_word_is_an_error(
    client: openai.AsyncOpenAI, upstream: ScriptedUpstream, second: Script
) -> None:
    whole = streamed([{"type": "text", "text": "hello"}])
    upstream.always(lambda request: whole if b'"one"' in request.body else second)

    with pytest.raises(openai.APIError):
        stream = await client.completions.create(model=MODEL, prompt=["one", "two"], stream=True)
        _ = [chunk async for chunk in stream]


async def test_a_refused_key_is_not_told_to_the_client(client: openai.AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    refusal = {"type": "error", "error": {"type": "authentication_error", "message": "invalid key sk-ant-canary"}}
    upstream.always(json_reply(refusal, status=401))

    with pytest.raises(openai.AuthenticationError) as refused:
        await client.chat.completions.create(model=MODEL, messages=[USER])

    assert "canary" not in refused.value.response.text
