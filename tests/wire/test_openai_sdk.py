"""The official Python SDK against a real gateway: everything but base_url is as its users write it."""

from __future__ import annotations

import array
import asyncio
import base64
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import CUT, RESET, STALL, ScriptedUpstream, bytes_reply, json_reply, sse_reply

USER: list[Any] = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def completion(content: str | None = "ho", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
                "logprobs": None,
            }
        ],
        "usage": USAGE,
        "a_new_field": {"kept": True},
    }


def chunk(delta: dict[str, Any] | None, *, finish: str | None = None, usage: dict[str, int] | None = None) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    value = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
    return json.dumps({**value, "usage": usage})


STREAM = [chunk({"role": "assistant", "content": ""}), chunk({"content": "hé"}), chunk({"content": "llo"})]
END = [chunk({}, finish="stop"), chunk(None, usage=USAGE), "[DONE]"]


async def test_chat_arrives_with_unknown_fields_and_the_clients_own_bytes(client, upstream: ScriptedUpstream) -> None:
    upstream.play(json_reply(completion(), headers={"x-request-id": "req_up", "openai-processing-ms": "7"}))

    raw = await client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=USER, extra_body={"future_member": [1, {"x": None}]}
    )

    reply = raw.parse()
    assert reply.choices[0].message.content == "ho"
    assert reply.model_extra["a_new_field"] == {"kept": True}
    assert raw.headers["x-hookline-upstream-request-id"] == "req_up"
    assert raw.headers["openai-processing-ms"] == "7"
    assert raw.headers["x-request-id"] != "req_up"
    sent = upstream.requests[0]
    assert sent.json()["future_member"] == [1, {"x": None}]
    assert sent.header("authorization") == "Bearer sk-upstream-canary"
    assert sent.target == "/v1/chat/completions"


async def test_no_secret_of_the_client_goes_upstream(client, upstream: ScriptedUpstream) -> None:
    upstream.play(json_reply(completion()))
    secret = {"cookie": "canary=1", "x-api-key": "canary", "api-key": "canary", "x-goog-api-key": "canary"}
    ours = {"x-hookline-cache": "use", "openai-organization": "canary", "openai-project": "canary", "x-mine": "kept"}

    await client.chat.completions.create(model="gpt-4o", messages=USER, extra_headers={**secret, **ours})

    sent = dict(upstream.requests[0].headers)
    assert "canary" not in str({k: v for k, v in sent.items() if k != "authorization"})
    assert "sk-client-canary" not in str(sent)
    assert sent["x-mine"] == "kept"
    assert not [name for name in sent if name.startswith("x-hookline")]


async def test_stream_hides_the_usage_event_nobody_asked_for(client, upstream: ScriptedUpstream) -> None:
    upstream.play(sse_reply(*STREAM, *END))

    chunks = [c async for c in await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)]

    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "héllo"
    assert all(c.choices for c in chunks)
    assert upstream.requests[0].json()["stream_options"] == {"include_usage": True}


async def test_stream_keeps_the_usage_event_the_client_asked_for(client, upstream: ScriptedUpstream) -> None:
    upstream.play(sse_reply(*STREAM, *END))

    stream = await client.chat.completions.create(
        model="gpt-4o", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [c async for c in stream]

    assert chunks[-1].usage.total_tokens == 15


async def test_usage_option_that_an_upstream_refuses_is_sent_once_without(client, upstream: ScriptedUpstream) -> None:
    refusal = {
        "error": {"message": "Unrecognized request argument supplied: stream_options", "type": "x", "code": None}
    }
    upstream.play(json_reply(refusal, status=400), sse_reply(*STREAM, *END), sse_reply(*STREAM, *END))

    for _ in range(2):
        stream = await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)
        assert [c async for c in stream]

    assert ["stream_options" in r.json() for r in upstream.requests] == [True, False, False]


async def test_stream_helper_accumulates_tool_calls(client, upstream: ScriptedUpstream) -> None:
    begin = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    upstream.play(
        sse_reply(
            chunk({"role": "assistant", "content": None, "tool_calls": [begin]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
            chunk({}, finish="tool_calls"),
            "[DONE]",
        )
    )

    async with client.chat.completions.stream(model="gpt-4o", messages=USER) as stream:
        final = await stream.get_final_completion()

    assert final.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'


async def test_structured_outputs_parse(client, upstream: ScriptedUpstream) -> None:
    class City(BaseModel):
        name: str

    upstream.play(json_reply(completion('{"name": "Bern"}')))

    reply = await client.chat.completions.parse(model="gpt-4o", messages=USER, response_format=City)

    assert reply.choices[0].message.parsed == City(name="Bern")
    assert upstream.requests[0].json()["response_format"]["json_schema"]["name"] == "City"


async def test_embeddings_in_base64_are_decoded_by_the_sdk(client, upstream: ScriptedUpstream) -> None:
    packed = base64.b64encode(array.array("f", [0.5, -1.0]).tobytes()).decode()
    data = [{"object": "embedding", "index": 0, "embedding": packed}]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    upstream.play(json_reply({"object": "list", "data": data, "model": "e", "usage": usage}))

    reply = await client.embeddings.create(model="text-embedding-3-small", input="x")

    assert reply.data[0].embedding == [0.5, -1.0]
    assert upstream.requests[0].json()["encoding_format"] == "base64"


async def test_audio_comes_back_as_bytes(client, upstream: ScriptedUpstream) -> None:
    sound = bytes(range(256)) * 100
    upstream.play(bytes_reply(sound, headers={"content-type": "audio/mpeg"}))

    reply = await client.audio.speech.create(model="tts-1", voice="alloy", input="hello")

    assert reply.content == sound


async def test_file_upload_is_relayed_as_multipart(client, upstream: ScriptedUpstream) -> None:
    created = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch"}
    upstream.play(json_reply({**created, "status": "processed"}))

    reply = await client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")

    assert reply.id == "file-1"
    sent = upstream.requests[0]
    assert (sent.header("content-type") or "").startswith("multipart/form-data; boundary=")
    assert b"{}\n" in sent.body
    assert b'name="purpose"' in sent.body


async def test_transcription_with_a_model_field_behind_the_file(client, upstream: ScriptedUpstream) -> None:
    upstream.play(json_reply({"text": "hello"}))

    reply = await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF" + b"\0" * 4_000_000))

    assert reply.text == "hello"
    assert b"whisper-1" in upstream.requests[0].body
    assert len(upstream.requests[0].body) > 4_000_000


async def test_responses_stream_reaches_its_end(client, upstream: ScriptedUpstream) -> None:
    response = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-4o", "status": "completed", "output": [],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7,
                  "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
    }  # fmt: skip
    events = [
        {
            "type": "response.created",
            "sequence_number": 0,
            "response": {**response, "status": "in_progress", "usage": None},
        },
        {"type": "response.completed", "sequence_number": 1, "response": response},
    ]
    upstream.play(sse_reply(*(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)))

    seen = [e.type async for e in await client.responses.create(model="gpt-4o", input="x", stream=True)]

    assert seen == ["response.created", "response.completed"]


async def test_relayed_route_keeps_its_query(client, upstream: ScriptedUpstream) -> None:
    upstream.play(json_reply({"object": "list", "data": [], "has_more": False}))

    page = await client.fine_tuning.jobs.list(after="ft/ü 1", limit=3)

    assert page.data == []
    assert upstream.requests[0].target == "/v1/fine_tuning/jobs?after=ft%2F%C3%BC%201&limit=3" or (
        upstream.requests[0].target.startswith("/v1/fine_tuning/jobs?after=ft%2F%C3%BC")
    )


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError), (401, openai.AuthenticationError), (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError), (409, openai.ConflictError), (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError), (500, openai.InternalServerError), (529, openai.InternalServerError),
    ],
)  # fmt: skip
async def test_upstream_error_becomes_the_sdks_exception(
    client, upstream: ScriptedUpstream, status: int, error: type[openai.APIStatusError]
) -> None:
    told = {"error": {"message": "told by the upstream", "type": "t", "param": "p", "code": "c"}}
    upstream.play(json_reply(told, status=status, headers={"retry-after": "7"}))

    with pytest.raises(error) as caught:
        await client.chat.completions.create(model="gpt-4o", messages=USER)

    assert caught.value.body == told["error"]
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.request_id


async def test_sdk_retries_what_the_gateway_says_may_be_retried(
    proxy: ProxyProcess, upstream: ScriptedUpstream
) -> None:
    upstream.play(json_reply({"error": {"message": "busy"}}, status=503, headers={"retry-after-ms": "1"}))
    upstream.play(json_reply(completion()))

    async with openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="x", max_retries=2) as client:
        reply = await client.chat.completions.create(model="gpt-4o", messages=USER)

    assert reply.choices[0].message.content == "ho"
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("end", [RESET, CUT])
async def test_death_before_the_first_byte_is_a_plain_502(client, upstream: ScriptedUpstream, end: Any) -> None:
    upstream.always([end])

    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)

    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_reset"


@pytest.mark.parametrize("end", [RESET, CUT])
async def test_death_mid_stream_is_an_error_event_and_no_done(client, upstream: ScriptedUpstream, end: Any) -> None:
    upstream.play(sse_reply(*STREAM, end))
    seen = []

    with pytest.raises(openai.APIError) as caught:
        async for part in await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True):
            seen.append(part.choices[0].delta.content)

    assert seen == ["", "hé", "llo"]
    assert "up/gpt-4o" in str(caught.value)


async def test_error_as_first_event_is_an_http_error(client, upstream: ScriptedUpstream) -> None:
    upstream.play(sse_reply(json.dumps({"error": {"message": "overloaded", "type": "server_error", "code": 503}})))

    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)

    assert caught.value.status_code == 503
    assert caught.value.body["message"] == "overloaded"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_client_that_leaves_cancels_the_upstream(client, upstream: ScriptedUpstream, is_stream: bool) -> None:
    upstream.play(sse_reply(*STREAM, STALL) if is_stream else [STALL])

    if is_stream:
        stream = await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)
        await anext(aiter(stream))
        await stream.close()
    else:
        asking = asyncio.ensure_future(client.chat.completions.create(model="gpt-4o", messages=USER))
        await upstream.wait_for_requests(1)
        asking.cancel()

    await asyncio.wait_for(upstream.requests[0].left.wait(), 30)


async def test_model_list_is_the_upstreams(client, upstream: ScriptedUpstream) -> None:
    model = {"id": "gpt-4o", "object": "model", "created": 1, "owned_by": "openai"}
    upstream.play(json_reply({"object": "list", "data": [model]}))

    listed = await client.models.list()

    assert [m.id for m in listed.data] == ["gpt-4o"]


def test_sync_client_chats_and_streams(serve) -> None:
    proxy = serve('[server]\nport = 0\n[chain]\nplugins = []\n[providers.demo]\nkind = "demo"\ndefault = true\n')

    with openai.OpenAI(base_url=f"{proxy.base_url}/v1", api_key="none") as client:
        reply = client.chat.completions.create(model="demo/echo", messages=[{"role": "user", "content": "ping"}])
        stream = client.chat.completions.create(model="demo/echo", messages=USER, stream=True)
        streamed = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)

    assert reply.choices[0].message.content == "ping"
    assert streamed == "hi"


async def test_log_line_tells_the_call_and_no_secret(client, proxy: ProxyProcess, upstream: ScriptedUpstream) -> None:
    upstream.play(json_reply(completion("canary-answer")))
    message: list[Any] = [{"role": "user", "content": "canary-prompt"}]

    await client.chat.completions.create(model="gpt-4o", messages=message)
    line = json.loads(proxy.wait_for(r'^\{.*"endpoint":"chat".*\}$')[0])

    assert (line["status"], line["outcome"], line["deployment"]) == (200, "ok", "up/gpt-4o")
    assert (line["input_tokens"], line["output_tokens"]) == (10, 5)
    assert "canary" not in "\n".join(proxy.lines)
