"""The official SDK against the real front: what it sends is understood, what comes back is what it expects."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest
from openai import AsyncOpenAI, AuthenticationError, RateLimitError

from hookline.call import Call
from hookline.errors import RateLimited, Unauthenticated
from hookline.reply import Reply

JSON = {"content-type": "application/json"}


def completion(**changes: object) -> dict[str, object]:
    message = {"role": "assistant", "content": "hello"}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **changes,
    }


def sdk(door, **options: object) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="sk-test", base_url=f"http://127.0.0.1:{door.port}/v1", max_retries=0, **options)


async def test_chat(open_door):
    async def answer(call: Call) -> Reply:
        return Reply(200, JSON, orjson.dumps(completion(model=call.model)))

    door = await open_door(answer)

    async with sdk(door) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="demo", messages=[{"role": "user", "content": "hi"}]
        )

    assert raw.parse().choices[0].message.content == "hello"
    assert raw.request_id == door.pipeline.calls[0].id
    assert door.pipeline.calls[0].headers["authorization"] == "Bearer sk-test"


async def test_stream(open_door):
    async def body() -> AsyncIterator[bytes]:
        for word in ("a", "b", "c"):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            chunk = completion(object="chat.completion.chunk", choices=[choice])
            yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def answer(call: Call) -> Reply:
        return Reply(200, {"content-type": "text/event-stream"}, body())

    door = await open_door(answer)

    async with sdk(door) as client:
        stream = await client.chat.completions.create(model="demo", messages=[], stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]

    assert words == ["a", "b", "c"]


async def test_transcription_upload(open_door):
    async def answer(call: Call) -> Reply:
        return Reply(200, JSON, orjson.dumps({"text": call.model}))

    door = await open_door(answer)

    async with sdk(door) as client:
        result = await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF" * 1000))

    assert result.text == "whisper-1"
    assert b"RIFF" * 1000 in door.pipeline.bodies[0]


async def test_file_upload_and_binary_download(open_door):
    async def answer(call: Call) -> Reply:
        if call.method == "GET":
            return Reply(200, {"content-type": "application/octet-stream"}, bytes(range(256)))
        file = {
            "id": "file-1",
            "object": "file",
            "bytes": 3,
            "created_at": 1,
            "filename": "a",
            "purpose": "batch",
            "status": "processed",
        }
        return Reply(200, JSON, orjson.dumps(file))

    door = await open_door(answer)

    async with sdk(door) as client:
        created = await client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
        content = await client.files.content("file-1")

    assert (created.id, content.content) == ("file-1", bytes(range(256)))
    assert [call.path for call in door.pipeline.calls] == ["/v1/files", "/v1/files/file-1/content"]


async def test_models(open_door, make_catalog):
    door = await open_door(catalog=make_catalog("gpt-4o", "team/big"))

    async with sdk(door) as client:
        listed = [model.id async for model in await client.models.list()]
        one = await client.models.retrieve("team/big")

    assert (listed, one.id) == (["gpt-4o", "team/big"], "team/big")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(Unauthenticated("no"), AuthenticationError), (RateLimited("slow", retry_after_s=1), RateLimitError)],
)
async def test_errors_become_the_sdks_exceptions(open_door, error, expected):
    async def answer(call: Call) -> Reply:
        raise error

    door = await open_door(answer)

    async with sdk(door) as client:
        with pytest.raises(expected) as caught:
            await client.embeddings.create(model="m", input="x")

    assert caught.value.code == error.code
    assert caught.value.request_id == door.pipeline.calls[0].id
