"""Legacy completions and responses by chat, through the OpenAI provider on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from openai.types import Completion
from openai.types.responses import Response

from hookline import Attempt, BadRequest, Call, Deployment, Principal, Reply, UpstreamError
from hookline.providers import prompts
from hookline.providers.anthropic import AnthropicOptions, AnthropicProvider
from hookline.providers.bridge import Bridged, needs_chat
from hookline.providers.openai import OpenAIOptions, OpenAIProvider
from hookline.testing.clock import FakeClock
from hookline.testing.upstream import (
    CUT,
    STALL,
    RecordedRequest,
    Script,
    ScriptedUpstream,
    bytes_reply,
    json_reply,
    sse_reply,
)

MakeCall = Callable[..., Call]
MakeAttempt = Callable[..., Attempt]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": f"chatcmpl-{text}", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }  # fmt: skip


def chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    head = {"id": f"chatcmpl-{text}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return orjson.dumps({**head, "choices": [choice]}).decode()


def usage_chunk() -> str:
    return orjson.dumps({"id": "chatcmpl-u", "object": "chat.completion.chunk", "choices": [], "usage": USAGE}).decode()


def echo(request: RecordedRequest) -> Script:
    """Answer with the prompt."""
    payload = request.json()
    text = payload["messages"][-1]["content"]
    if not payload.get("stream"):
        return json_reply(completion(text))
    return sse_reply(chunk(text), chunk("", "stop"), usage_chunk(), "[DONE]")


@pytest.fixture
async def chat_only(upstream: ScriptedUpstream) -> AsyncIterator[Bridged]:
    bridged = Bridged(OpenAIProvider("up", OpenAIOptions(base_url=upstream.url, endpoints=["chat", "models"])))
    yield bridged
    await bridged.aclose()


async def events_of(reply: Reply) -> list[dict[str, Any] | str]:
    assert not isinstance(reply.body, bytes)
    raw = b"".join([piece async for piece in reply.body]).decode()
    data = [line.removeprefix("data: ") for line in raw.split("\n") if line.startswith("data: ")]
    return [one if one == "[DONE]" else orjson.loads(one) for one in data]


@pytest.mark.parametrize(
    ("endpoint", "endpoints", "model", "mode", "expected"),
    [
        ("completions", {"chat"}, "m", None, True),
        ("completions", {"chat", "completions"}, "m", None, False),
        ("completions", {"chat", "completions"}, "m", "chat", True),
        ("completions", {"chat", "completions"}, "gpt-4o", None, True),
        ("completions", {"chat", "completions"}, "gpt-4o", "completions", False),
        ("completions", {"completions"}, "gpt-4o", None, False),
        ("responses", {"chat"}, "m", None, True),
        ("responses", {"chat", "responses"}, "gpt-4o", None, False),
        ("responses", {"chat", "responses"}, "m", "chat", True),
        ("responses", {"embeddings"}, "m", None, False),
    ],
)
def test_when_a_call_is_sent_as_chat(endpoint: str, endpoints: set[str], model: str, mode: Any, expected: bool) -> None:
    deployment = Deployment("up/m", "up", model, mode=mode)

    assert needs_chat(endpoint, frozenset(endpoints), deployment) is expected


def test_a_chat_provider_gains_the_endpoints_and_others_do_not() -> None:
    assert {"chat", "completions", "responses"} == Bridged(
        OpenAIProvider("a", OpenAIOptions(endpoints=["chat"]))
    ).endpoints
    assert {"embeddings"} == Bridged(OpenAIProvider("b", OpenAIOptions(endpoints=["embeddings"]))).endpoints


async def test_a_completion_is_a_legacy_object_with_content(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(echo)
    payload = {"model": "up/m", "prompt": "hi", "max_tokens": 9}
    call = make_call(payload, path="/v1/completions", headers={"content-type": "application/json", "x-mine": "1"})
    call.principal = Principal(key_id="k")

    reply = await chat_only.send(call, make_attempt(cap=5))

    [request] = upstream.requests
    assert (request.target, request.header("x-mine")) == ("/v1/chat/completions", "1")
    assert request.json() == {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    body = reply.json()
    assert Completion.model_validate(body).choices[0].text == "hi"
    assert (body["content"], body["model"], body["usage"]) == ("hi", "up/m", USAGE)


async def test_a_list_of_prompts_is_one_call_each_joined_in_order(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(echo)
    call = make_call({"model": "m", "prompt": [str(n) for n in range(20)]}, path="/v1/completions")

    reply = await chat_only.send(call, make_attempt())

    assert [(c["index"], c["text"]) for c in reply.json()["choices"]] == [(n, str(n)) for n in range(20)]
    assert reply.json()["usage"]["total_tokens"] == 20 * 5
    assert upstream.connections <= prompts.MAX_PARALLEL


async def test_a_stream_of_several_prompts_ends_once_with_one_usage(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(echo)
    call = make_call({"model": "m", "prompt": ["a", "b"], "stream": True}, path="/v1/completions")
    attempt = make_attempt()

    reply = await chat_only.send(call, attempt)
    *chunks, usage, done = await events_of(reply)

    assert (done, attempt.has_hidden_usage) == ("[DONE]", True)
    assert isinstance(usage, dict)
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 10)
    texts = {0: "", 1: ""}
    for one in chunks:
        assert isinstance(one, dict)
        assert one["object"] == "text_completion"
        texts[one["choices"][0]["index"]] += one["choices"][0]["text"]
    assert texts == {0: "a", 1: "b"}
    assert len({one["id"] for one in chunks if isinstance(one, dict)}) == 1


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (sse_reply(chunk("b")), "up/m ended its stream before the end"),
        (sse_reply(chunk("b"), CUT), "closed the connection"),
        (json_reply({}), "up/m answered a stream with a whole reply"),
    ],
)
async def test_one_prompt_that_is_cut_cuts_the_stream_and_ends_the_others(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt,
    second: Script, message: str,
) -> None:  # fmt: skip
    upstream.always(lambda r: sse_reply(chunk("a"), STALL) if b'"a"' in r.body else second)
    call = make_call({"model": "m", "prompt": ["a", "b"], "stream": True}, path="/v1/completions")

    reply = await chat_only.send(call, make_attempt())
    with pytest.raises(Exception, match=message):
        await events_of(reply)

    stalled = next(request for request in upstream.requests if b'"a"' in request.body)
    await stalled.left.wait()


@pytest.mark.parametrize("second", [sse_reply(), sse_reply(CUT)])
async def test_no_prompt_looks_finished_before_each_has_begun(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt, second: Script
) -> None:
    """A stream is complete when the choices it has shown are: one cut before its first must not be missed."""
    upstream.always(lambda request: echo(request) if b'"a"' in request.body else second)
    call = make_call({"model": "m", "prompt": ["a", "b"], "stream": True}, path="/v1/completions")

    reply = await chat_only.send(call, make_attempt())
    pieces = b""
    with pytest.raises(Exception, match="before the end"):
        async for piece in reply.body:  # type: ignore[union-attr]
            pieces += piece

    assert b'"stop"' not in pieces


async def test_a_prompt_without_any_choice_holds_up_no_other(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(lambda request: echo(request) if b'"a"' in request.body else sse_reply("[DONE]"))
    call = make_call({"model": "m", "prompt": ["a", "b"], "stream": True}, path="/v1/completions")

    events = await events_of(await chat_only.send(call, make_attempt()))

    assert (events[-2]["choices"][0]["finish_reason"], events[-1]) == ("stop", "[DONE]")  # type: ignore[index]


async def test_one_prompt_that_fails_ends_the_others(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(lambda request: [STALL] if b'"a"' in request.body else [CUT])
    call = make_call({"model": "m", "prompt": ["a", "b"]}, path="/v1/completions")

    with pytest.raises(UpstreamError):
        await chat_only.send(call, make_attempt())

    stalled = next(request for request in upstream.requests if b'"a"' in request.body)
    await stalled.left.wait()


async def test_an_error_status_of_one_prompt_is_the_answer(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(lambda request: echo(request) if b'"a"' in request.body else json_reply({"error": 1}, status=429))
    call = make_call({"model": "m", "prompt": ["a", "b"], "stream": True}, path="/v1/completions")

    reply = await chat_only.send(call, make_attempt())

    assert (reply.status, reply.json()) == (429, {"error": 1})


async def test_cancelling_ends_the_calls_of_all_prompts(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always([STALL])
    call = make_call({"model": "m", "prompt": ["a", "b"]}, path="/v1/completions")
    task = asyncio.ensure_future(chat_only.send(call, make_attempt()))
    await upstream.wait_for_requests(2)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    for request in upstream.requests:
        await request.left.wait()


async def test_closing_a_joined_stream_closes_all_connections(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(sse_reply(chunk("x"), STALL))
    call = make_call({"model": "m", "prompt": ["a", "b"], "stream": True}, path="/v1/completions")
    reply = await chat_only.send(call, make_attempt())
    assert not isinstance(reply.body, bytes)
    tasks = asyncio.all_tasks()
    await anext(reply.body)

    await reply.body.aclose()  # type: ignore[attr-defined]

    # The upstream's own tasks end when they see it; of ours there must be none at once.
    assert not [task for task in asyncio.all_tasks() - tasks if "pump" in repr(task)]
    for request in upstream.requests:
        await request.left.wait()


@pytest.mark.parametrize(
    ("path", "payload", "param"),
    [
        ("/v1/completions", {"prompt": "a", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"),
        ("/v1/responses", {"input": "a", "previous_response_id": "r"}, "previous_response_id"),
    ],
)
async def test_what_chat_cannot_say_is_a_400_that_names_it(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt,
    path: str, payload: dict[str, Any], param: str,
) -> None:  # fmt: skip
    with pytest.raises(BadRequest) as refused:
        await chat_only.send(make_call({"model": "m", **payload}, path=path), make_attempt())

    assert (refused.value.param, upstream.requests) == (param, [])


async def test_a_response_by_chat(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(echo)

    reply = await chat_only.send(make_call({"model": "up/m", "input": "hi"}, path="/v1/responses"), make_attempt())

    response = Response.model_validate(reply.json())
    assert (response.output_text, response.status) == ("hi", "completed")
    assert reply.json()["usage"]["input_tokens"] == 3


async def test_a_streamed_response_has_its_usage_in_its_last_event_and_nothing_hidden(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(echo)
    attempt = make_attempt()
    call = make_call({"model": "up/m", "input": "hi", "stream": True}, path="/v1/responses")

    reply = await chat_only.send(call, attempt)
    events = await events_of(reply)

    assert upstream.requests[0].json()["stream_options"] == {"include_usage": True}
    assert not attempt.has_hidden_usage
    last = events[-1]
    assert isinstance(last, dict)
    assert (last["type"], last["response"]["usage"]["output_tokens"]) == ("response.completed", 2)


async def test_a_streamed_response_survives_a_server_that_refuses_the_usage_option(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(json_reply({"error": {"message": "stream_options?"}}, status=400))
    upstream.always(echo)
    call = make_call({"model": "up/m", "input": "hi", "stream": True}, path="/v1/responses")

    events = await events_of(await chat_only.send(call, make_attempt()))

    assert events[-1]["type"] == "response.completed"  # type: ignore[index]


async def test_a_response_whose_chat_was_cut_has_no_end(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(sse_reply(chunk("a")))
    call = make_call({"model": "up/m", "input": "hi", "stream": True}, path="/v1/responses")

    events = await events_of(await chat_only.send(call, make_attempt()))

    assert events[-1]["type"] == "response.output_text.delta"  # type: ignore[index]


async def test_a_response_whose_chat_begins_with_an_error_has_not_begun(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    error = {"error": {"message": "later", "code": "429"}}
    upstream.play(sse_reply(orjson.dumps(error).decode()))
    call = make_call({"model": "up/m", "input": "hi", "stream": True}, path="/v1/responses")

    assert await events_of(await chat_only.send(call, make_attempt())) == [error]


@pytest.mark.parametrize(
    ("path", "payload", "param", "text"),
    [
        ("responses", {"input": "hi", "reasoning": {"effort": "x"}}, "reasoning.effort", '"reasoning.effort" must'),
        ("responses", {"input": "hi", "text": {"verbosity": "low"}}, "text.verbosity", '"text.verbosity" = "low"'),
        (
            "responses",
            {"input": "hi", "text": {"format": {"type": "json_object"}}},
            "text.format.type",
            '"text.format.type" = "json_object"',
        ),
        (
            "responses",
            {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]},
            "tools[0].parameters.type",
            '"tools[0].parameters.type" must',
        ),
        (
            "responses",
            {"input": "hi", "reasoning": {"effort": "low"}, "max_output_tokens": 9},
            "reasoning.effort",
            "raise max_output_tokens or leave reasoning.effort out",
        ),
        ("responses", {"input": ""}, "input", '"input" as chat: "messages[0].content" is empty'),
        ("responses", {"input": "hi", "temperature": 2}, "temperature", '"temperature" = 2'),
        ("completions", {"prompt": ""}, "prompt", '"prompt" as chat: "messages[0].content" is empty'),
        ("completions", {"prompt": "hi", "seed": 1}, "seed", '"seed" = 1'),
    ],
)
async def test_what_the_chat_provider_refuses_has_the_clients_own_name(
    make_call: MakeCall, make_attempt: MakeAttempt, path: str, payload: dict[str, Any], param: str, text: str
) -> None:
    bridged = Bridged(AnthropicProvider("up", AnthropicOptions(base_url="http://127.0.0.1:9"), FakeClock()))

    with pytest.raises(BadRequest) as refused:
        await bridged.send(make_call({"model": "m", **payload}, path=f"/v1/{path}"), make_attempt())
    await bridged.aclose()

    assert refused.value.param == param
    assert text in refused.value.message


async def test_a_chat_reply_that_is_no_json_is_garbage(
    upstream: ScriptedUpstream, chat_only: Bridged, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.play(bytes_reply(b"<html>"))

    with pytest.raises(UpstreamError, match="no chat completion"):
        await chat_only.send(make_call({"model": "m", "prompt": "hi"}, path="/v1/completions"), make_attempt())


async def test_what_the_provider_has_itself_passes_untouched(
    upstream: ScriptedUpstream, make_call: MakeCall, make_attempt: MakeAttempt
) -> None:
    upstream.always(json_reply({}))
    bridged = Bridged(OpenAIProvider("up", OpenAIOptions(base_url=upstream.url)))

    await bridged.send(make_call({"model": "m", "prompt": [1, 2]}, path="/v1/completions"), make_attempt())
    await bridged.send(make_call({"model": "m", "input": "a"}, path="/v1/responses"), make_attempt())
    await bridged.aclose()

    assert [request.target for request in upstream.requests] == ["/v1/completions", "/v1/responses"]
