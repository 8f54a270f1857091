"""The demo: every route has an answer that the SDK's own types accept, and every fault is the fault its name says."""

from __future__ import annotations

import base64
import io
import struct
import wave
from array import array
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from openai.types import CreateEmbeddingResponse, FileObject, ImagesResponse, Model, ModerationCreateResponse
from openai.types.audio import Transcription, TranscriptionVerbose
from openai.types.batch import Batch
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.upload import Upload as OpenAIUpload
from openai.types.vector_store import VectorStore

from hookline import Attempt, BadRequest, Call, Reply, UpstreamError
from hookline.providers import demo_form, demo_objects
from hookline.providers.bridge import Bridged
from hookline.providers.demo import DemoOptions, DemoProvider
from hookline.providers.demo_behaviours import BEHAVIOURS
from hookline.providers.demo_form import parse_form
from hookline.testing.clock import FakeClock

MakeCall = Callable[..., Call]
MakeAttempt = Callable[..., Attempt]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CLOCK_TOOL = {"type": "function", "function": {"name": "clock"}}


class Ask:
    """One demo provider and a way to call it."""

    def __init__(self, make_call: MakeCall, make_attempt: MakeAttempt) -> None:
        self._make_call = make_call
        self._make_attempt = make_attempt
        self.provider = DemoProvider("demo", DemoOptions(chunk_interval_ms=0, slow_s=0), FakeClock())
        self.attempt = make_attempt("")

    async def __call__(
        self, payload: dict[str, Any] | None = None, *, path: str = "/v1/chat/completions", method: str = "POST",
        cap: int | None = None, target: dict[str, Any] | None = None, upload: Any = None, query: str = "",
    ) -> Reply:  # fmt: skip
        call = self._make_call(payload, path=path, method=method, query=query)
        if upload is not None:
            call.payload, call.upload = None, upload
        model = (call.model or "").removeprefix("demo/")
        self.attempt = self._make_attempt(model, cap=cap, target=target)
        return await self.provider.send(call, self.attempt)

    async def chat(self, model: str, text: str = "hi there", **more: Any) -> Reply:
        cap = more.pop("cap", None)
        target = more.pop("target", None)
        messages = more.pop("messages", [{"role": "user", "content": text}])
        return await self({"model": model, "messages": messages, **more}, cap=cap, target=target)


@pytest.fixture
def ask(make_call: MakeCall, make_attempt: MakeAttempt) -> Ask:
    return Ask(make_call, make_attempt)


def completion_of(reply: Reply) -> ChatCompletion:
    assert reply.status == 200
    return ChatCompletion.model_validate(reply.json(), strict=True)


async def events_of(reply: Reply) -> list[str]:
    assert reply.is_event_stream
    raw = b"".join([piece async for piece in reply.body]).decode()  # type: ignore[union-attr]
    return [line.removeprefix("data: ") for line in raw.split("\n") if line.startswith("data: ")]


class TestChat:
    async def test_echo_repeats_the_last_user_message(self, ask: Ask) -> None:
        messages = [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": [{"type": "text", "text": "wörld "}, {"type": "image_url", "image_url": {}}]},
        ]

        answer = completion_of(await ask.chat("demo/echo", messages=messages))

        assert answer.choices[0].message.content == "wörld [image_url]"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    async def test_any_name_that_is_not_the_demos_answers_like_echo(self, ask: Ask) -> None:
        answer = completion_of(await ask.chat("gpt-4o", "hi"))

        assert (answer.model, answer.choices[0].message.content) == ("gpt-4o", "hi")

    async def test_a_misspelt_demo_model_is_a_404_naming_close_ones(self, ask: Ask) -> None:
        reply = await ask.chat("demo/lorme")

        assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert "demo/lorem" in reply.json()["error"]["message"]

    @pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/moderations", "/v1/audio/speech"])
    async def test_where_the_answer_is_no_text_any_name_serves(self, ask: Ask, path: str) -> None:
        assert (await ask({"model": "demo/mine", "input": "hi"}, path=path)).status == 200

    async def test_the_same_request_has_the_same_answer(self, ask: Ask) -> None:
        assert (await ask.chat("demo/lorem")).body == (await ask.chat("demo/lorem")).body

    @pytest.mark.parametrize(("limit", "cap", "expected"), [(5, None, 5), (5, 3, 3), (None, 3, 3)])
    async def test_a_limit_cuts_the_answer_and_says_so(
        self, ask: Ask, limit: int | None, cap: int | None, expected: int
    ) -> None:
        answer = completion_of(await ask.chat("demo/lorem", max_tokens=limit, cap=cap))

        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == expected

    async def test_there_are_never_more_tokens_than_bytes(self, ask: Ask) -> None:
        text = "a b c d e \n\n f" * 20

        answer = completion_of(await ask.chat("demo/echo", text))

        assert answer.choices[0].message.content == text
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= len(text.encode())

    async def test_n_choices(self, ask: Ask) -> None:
        answer = completion_of(await ask.chat("demo/echo", n=3))

        assert [choice.index for choice in answer.choices] == [0, 1, 2]

    async def test_tools_calls_the_first_tool_and_then_repeats_its_result(self, ask: Ask) -> None:
        answer = completion_of(await ask.chat("demo/tools", tools=[WEATHER, CLOCK_TOOL]))
        [call] = answer.choices[0].message.tool_calls or []
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.type == "function"
        assert (call.function.name, orjson.loads(call.function.arguments)) == ("weather", {"city": "Paris"})

        messages = [
            {"role": "user", "content": "hi"},
            answer.choices[0].message.model_dump(),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        final = completion_of(await ask.chat("demo/tools", messages=messages, tools=[WEATHER]))
        assert final.choices[0].message.content == "The tool answered: sunny"

    async def test_all_results_are_repeated(self, ask: Ask) -> None:
        results = [{"role": "tool", "tool_call_id": str(n), "content": f"result {n}"} for n in (1, 2)]

        answer = completion_of(await ask.chat("demo/tools", messages=[{"role": "user", "content": "hi"}, *results]))

        assert answer.choices[0].message.content == "The tool answered: result 1, result 2"

    async def test_an_agent_that_demands_a_call_each_time_comes_to_its_last_tool(self, ask: Ask) -> None:
        """LangChain's and pydantic-ai's agents with an output type: their loop ends at the tool that takes the answer, which is the last one."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
        called = []

        for _ in range(3):
            more = {"messages": messages, "tools": [WEATHER, CLOCK_TOOL], "tool_choice": "required"}
            message = completion_of(await ask.chat("demo/tools", **more)).choices[0].message
            [call] = message.tool_calls or []
            assert call.type == "function"
            called.append(call.function.name)
            messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "done"}]

        assert called == ["weather", "clock", "clock"]

        messages.append({"role": "user", "content": "again"})
        answer = completion_of(await ask.chat("demo/tools", **(more | {"messages": messages})))
        assert [call.function.name for call in answer.choices[0].message.tool_calls or []] == ["weather"]  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("model", "tool_choice", "names"),
        [
            (
                "demo/echo",
                {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK_TOOL]}},
                ["clock"],
            ),
            ("demo/tools-parallel", None, ["weather", "clock"]),
            ("demo/echo", "required", ["weather"]),
            ("demo/echo", {"type": "function", "function": {"name": "clock"}}, ["clock"]),
            ("demo/tools", "none", []),
            ("demo/echo", None, []),
        ],
    )
    async def test_tool_choice_is_obeyed(self, ask: Ask, model: str, tool_choice: Any, names: list[str]) -> None:
        answer = completion_of(await ask.chat(model, tools=[WEATHER, CLOCK_TOOL], tool_choice=tool_choice))

        calls = answer.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls if call.type == "function"] == names
        assert len({call.id for call in calls}) == len(names)

    async def test_a_json_schema_is_obeyed(self, ask: Ask) -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5}, "s": {"enum": ["b", "a"]}}}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

        answer = completion_of(await ask.chat("demo/echo", response_format=wanted))

        assert orjson.loads(answer.choices[0].message.content or "") == {"n": 5, "s": "b"}

    async def test_json_answers_json(self, ask: Ask) -> None:
        answer = completion_of(await ask.chat("demo/json", 'say "hi"'))

        assert orjson.loads(answer.choices[0].message.content or "") == {"echo": 'say "hi"'}

    @pytest.mark.parametrize(
        ("model", "more"), [("demo/json", {}), ("demo/echo", {"response_format": {"type": "json_object"}})]
    )
    async def test_a_schema_written_in_a_message_is_obeyed_where_json_is_asked(
        self, ask: Ask, model: str, more: dict[str, Any]
    ) -> None:
        """instructor's JSON mode, pydantic-ai's prompted output: the schema is in the system message."""
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5}}}
        told = {"role": "system", "content": f"Answer by this schema:\n{orjson.dumps(schema).decode()}\nNothing else."}

        answer = completion_of(await ask.chat(model, messages=[told, {"role": "user", "content": "hi"}], **more))

        assert orjson.loads(answer.choices[0].message.content or "") == {"n": 5}

    @pytest.mark.parametrize(
        ("stop", "said", "reason"),
        [("c", "a b ", "stop"), (["x", "b c"], "a ", "stop"), ([], "a b c d", "stop"), ("x", "a b c d", "stop")],
    )
    async def test_a_stop_sequence_ends_the_answer(self, ask: Ask, stop: Any, said: str, reason: str) -> None:
        answer = completion_of(await ask.chat("demo/echo", "a b c d", stop=stop))

        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (said, reason)

    async def test_logprobs_are_there_for_every_token(self, ask: Ask) -> None:
        whole = completion_of(await ask.chat("demo/echo", "one two", logprobs=True, top_logprobs=2))
        more = {"logprobs": True, "top_logprobs": 2, "stream": True}
        *data, _ = await events_of(await ask.chat("demo/echo", "one two", **more))

        assert whole.choices[0].logprobs is not None
        tokens = whole.choices[0].logprobs.content or []
        assert [(t.token, [top.token for top in t.top_logprobs]) for t in tokens] == [
            ("one", ["one"]),
            (" two", [" two"]),
        ]
        chunks = [ChatCompletionChunk.model_validate_json(one, strict=True) for one in data]
        logprobs = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs is not None]
        assert [t.token for one in logprobs for t in one.content or []] == ["one", " two"]

    @pytest.mark.parametrize("payload", [{}, {"messages": []}, {"messages": "x"}, {"messages": [1]}])
    async def test_a_request_without_messages_is_a_400(self, ask: Ask, payload: dict[str, Any]) -> None:
        reply = await ask({"model": "demo/echo", **payload})

        assert (reply.status, reply.json()["error"]["param"]) == (400, "messages")

    async def test_a_stream_says_the_same_as_the_whole_answer(self, ask: Ask) -> None:
        whole = completion_of(await ask.chat("demo/lorem", n=2))

        *data, done = await events_of(await ask.chat("demo/lorem", n=2, stream=True))

        chunks = [ChatCompletionChunk.model_validate_json(one, strict=True) for one in data]
        for index, choice in enumerate(whole.choices):
            mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
            assert "".join(one.delta.content or "" for one in mine) == choice.message.content
            assert mine[-1].finish_reason == "stop"
        assert (done, chunks[-1].choices, chunks[-1].usage) == ("[DONE]", [], whole.usage)
        assert ask.attempt.has_hidden_usage

    async def test_streamed_tool_arguments_join_to_the_whole_ones(self, ask: Ask) -> None:
        *data, _ = await events_of(await ask.chat("demo/tools", tools=[WEATHER], stream=True))

        deltas = [d for one in data for c in orjson.loads(one)["choices"] for d in c["delta"].get("tool_calls", [])]
        assert orjson.loads("".join(delta["function"]["arguments"] for delta in deltas)) == {"city": "Paris"}
        assert deltas[0]["function"]["name"] == "weather"


class TestFaults:
    @pytest.mark.parametrize("status", [400, 401, 404, 418, 429, 500, 503, 529])
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/audio/speech"])
    async def test_error_nnn_answers_that_status_on_every_route(self, ask: Ask, status: int, path: str) -> None:
        reply = await ask({"model": f"demo/error-{status}", "input": "x", "messages": [{}]}, path=path)

        assert reply.status == status
        assert reply.json()["error"]["message"]
        assert reply.headers.get("retry-after") == ("1" if status == 429 else None)

    @pytest.mark.parametrize(
        ("model", "kind"), [("unreachable", "connect"), ("reset", "reset"), ("cut-mid-stream", "reset")]
    )
    async def test_broken_connections(self, ask: Ask, model: str, kind: str) -> None:
        with pytest.raises(UpstreamError) as failed:
            await ask.chat(f"demo/{model}")

        assert (failed.value.kind, failed.value.is_written) == (kind, kind != "connect")

    async def test_flaky_fails_every_second_time_beginning_with_the_first(self, ask: Ask) -> None:
        assert [(await ask.chat("demo/flaky")).status for _ in range(4)] == [500, 200, 500, 200]

    async def test_cut_mid_stream_breaks_after_some_bytes(self, ask: Ask) -> None:
        reply = await ask.chat("demo/cut-mid-stream", stream=True)
        pieces = []

        with pytest.raises(UpstreamError) as failed:
            async for piece in reply.body:  # type: ignore[union-attr]
                pieces.append(piece)

        assert failed.value.kind == "reset"
        assert pieces
        assert b'finish_reason":"' not in b"".join(pieces)

    async def test_error_mid_stream_is_an_error_event_and_nothing_after_it(self, ask: Ask) -> None:
        first, *_, last = await events_of(await ask.chat("demo/error-mid-stream", stream=True))

        assert "error" not in orjson.loads(first)
        assert orjson.loads(last)["error"]["type"] == "server_error"

    async def test_no_done_ends_with_a_finish_reason(self, ask: Ask) -> None:
        events = await events_of(await ask.chat("demo/no-done", stream=True))

        assert "[DONE]" not in events
        assert any('"finish_reason":"stop"' in event for event in events)

    @pytest.mark.parametrize("model", ["stall", "slow-3600"])
    async def test_what_begins_too_late_is_a_first_byte_timeout(self, ask: Ask, model: str) -> None:
        with pytest.raises(UpstreamError) as failed:
            await ask.chat(f"demo/{model}", target={"first_byte_timeout_s": 0.01})

        assert failed.value.kind == "first_byte_timeout"

    async def test_stall_mid_stream_is_an_idle_timeout(self, ask: Ask) -> None:
        reply = await ask.chat("demo/stall-mid-stream", stream=True, target={"idle_timeout_s": 0.01})

        with pytest.raises(UpstreamError) as failed:
            await events_of(reply)

        assert failed.value.kind == "idle_timeout"

    @pytest.mark.parametrize("model", ["slow", "slow-0.01"])
    async def test_slow_answers_in_the_end(self, ask: Ask, model: str) -> None:
        assert completion_of(await ask.chat(f"demo/{model}")).choices

    def test_every_behaviour_says_what_it_does(self) -> None:
        assert all(behaviour.doc for behaviour in BEHAVIOURS.values())


class TestOtherRoutes:
    @pytest.mark.parametrize(("given", "count"), [("a b", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2)])
    async def test_embeddings_in_both_encodings_are_the_same_unit_vectors(
        self, ask: Ask, given: Any, count: int
    ) -> None:
        payload = {"model": "demo/echo", "input": given, "dimensions": 64}

        as_floats = (await ask(payload, path="/v1/embeddings")).json()
        as_base64 = (await ask({**payload, "encoding_format": "base64"}, path="/v1/embeddings")).json()

        parsed = CreateEmbeddingResponse.model_validate(as_floats)
        assert len(parsed.data) == count
        for floats, packed in zip(parsed.data, as_base64["data"], strict=True):
            vector = struct.unpack("<64f", base64.b64decode(packed["embedding"]))
            assert list(array("f", floats.embedding)) == list(vector)
            assert sum(value * value for value in vector) == pytest.approx(1.0, abs=1e-5)

    async def test_texts_that_share_words_are_nearer(self, ask: Ask) -> None:
        texts = ["the red car stops", "the red car drives", "monday soup recipe"]
        reply = await ask({"model": "demo/echo", "input": texts}, path="/v1/embeddings")

        first, near, far = (one["embedding"] for one in reply.json()["data"])
        assert sum(map(float.__mul__, first, near)) > sum(map(float.__mul__, first, far))

    @pytest.mark.parametrize(
        "payload", [{}, {"input": ""}, {"input": []}, {"input": ["a", 1]}, {"input": "a", "dimensions": 0}]
    )
    async def test_bad_embedding_requests_are_400(self, ask: Ask, payload: dict[str, Any]) -> None:
        assert (await ask({"model": "demo/echo", **payload}, path="/v1/embeddings")).status == 400

    async def test_moderations(self, ask: Ask) -> None:
        reply = await ask({"input": ["a walk", "I will kill you"]}, path="/v1/moderations")

        results = ModerationCreateResponse.model_validate(reply.json()).results
        assert [result.flagged for result in results] == [False, True]
        assert results[1].categories.violence

    async def test_speech_is_a_wav_that_plays(self, ask: Ask) -> None:
        reply = await ask({"model": "demo/echo", "input": "two words", "voice": "x"}, path="/v1/audio/speech")

        assert reply.headers["content-type"] == "audio/wav"
        with wave.open(io.BytesIO(reply.body)) as sound:  # type: ignore[arg-type]
            assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (1, 8000, 800)

    async def test_images_are_png(self, ask: Ask) -> None:
        reply = await ask({"model": "demo/echo", "prompt": "a cat", "n": 2}, path="/v1/images/generations")

        shown = ImagesResponse.model_validate(reply.json()).data or []
        assert len(shown) == 2
        assert base64.b64decode(shown[0].b64_json or "").startswith(b"\x89PNG\r\n\x1a\n")

    async def test_models_are_listed_and_found(self, ask: Ask) -> None:
        listed = (await ask(path="/v1/models", method="GET")).json()
        one = (await ask(path="/v1/models/demo/echo", method="GET")).json()

        assert {f"demo/{name}" for name in BEHAVIOURS} <= {Model.model_validate(model).id for model in listed["data"]}
        assert Model.model_validate(one).id == "demo/echo"

    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
    async def test_an_unknown_route_is_an_error_object(self, ask: Ask, method: str) -> None:
        reply = await ask({}, path="/v1/nothing/here", method=method)

        assert reply.status in (404, 405)
        assert reply.json()["error"]["message"]

    async def test_completions_and_responses_come_by_the_bridge(
        self, ask: Ask, make_call: MakeCall, make_attempt: MakeAttempt
    ) -> None:
        bridged = Bridged(ask.provider)

        completion = await bridged.send(
            make_call({"model": "demo/echo", "prompt": "hi"}, path="/v1/completions"), make_attempt("echo")
        )
        response = await bridged.send(
            make_call({"model": "demo/echo", "input": "hi"}, path="/v1/responses"), make_attempt("echo")
        )

        assert completion.json()["content"] == "hi"
        assert response.json()["output"][0]["content"][0]["text"] == "hi"
        with pytest.raises(BadRequest):
            await bridged.send(
                make_call({"model": "demo/echo", "prompt": [1]}, path="/v1/completions"), make_attempt("echo")
            )


class Form:
    """A multipart upload."""

    content_type = "multipart/form-data; boundary=BOUND"
    content_length = None
    is_replayable = True

    def __init__(self, file: bytes, **fields: str) -> None:
        parts = [
            f'--BOUND\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()
        ]
        head = b'--BOUND\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
        self.body = b"".join([*parts, head, file, b"\r\n--BOUND--\r\n"])

    fields = ()
    model = None

    async def complete(self) -> None: ...

    async def chunks(self, model: str | None, /) -> AsyncIterator[bytes]:
        for at in range(0, len(self.body), 7):
            yield self.body[at : at + 7]

    async def aclose(self) -> None:
        pass


class TestStoredThings:
    async def test_a_file_is_kept_listed_read_and_deleted(self, ask: Ask) -> None:
        content = b"line\r\n--BOUN\r\n\0\xff"
        made = (await ask({}, path="/v1/files", upload=Form(content, purpose="batch"))).json()

        file = FileObject.model_validate(made)
        assert (file.bytes, file.filename, file.purpose) == (len(content), "a.txt", "batch")
        assert (await ask(path=f"/v1/files/{file.id}/content", method="GET")).body == content
        listed = (await ask(path="/v1/files", method="GET", query="purpose=batch")).json()
        assert [one["id"] for one in listed["data"]] == [file.id]
        assert (await ask(path="/v1/files", method="GET", query="purpose=other")).json()["data"] == []
        deleted = (await ask(path=f"/v1/files/{file.id}", method="DELETE")).json()
        assert deleted == {"id": file.id, "object": "file", "deleted": True}
        assert (await ask(path=f"/v1/files/{file.id}", method="GET")).status == 404
        assert (await ask(path=f"/v1/files/{file.id}/content", method="GET")).status == 404

    @pytest.mark.parametrize("form", ["json", "verbose_json", "text", "srt", "vtt"])
    async def test_transcriptions_in_every_format(self, ask: Ask, form: str) -> None:
        upload = Form(b"RIFF", model="demo/echo", response_format=form)
        reply = await ask({}, path="/v1/audio/transcriptions", upload=upload)

        if form == "json":
            assert Transcription.model_validate(reply.json()).text == "The demo heard 4 bytes of a.txt."
        elif form == "verbose_json":
            assert TranscriptionVerbose.model_validate(reply.json()).duration == 1.0
        else:
            assert b"The demo heard 4 bytes" in reply.body  # type: ignore[operator]

    async def test_an_upload_in_parts_becomes_a_file(self, ask: Ask) -> None:
        about = {"filename": "big.txt", "purpose": "batch", "bytes": 4, "mime_type": "text/plain", "expires_at": 1}
        made = OpenAIUpload.model_validate((await ask(about, path="/v1/uploads")).json())
        parts = [
            (await ask({}, path=f"/v1/uploads/{made.id}/parts", upload=Form(data))).json()["id"]
            for data in (b"ab", b"cd")
        ]

        done = (await ask({"part_ids": parts[::-1]}, path=f"/v1/uploads/{made.id}/complete")).json()

        assert done["status"] == "completed"
        assert (await ask(path=f"/v1/files/{done['file']['id']}/content", method="GET")).body == b"cdab"

    async def test_a_batch_runs_its_lines(self, ask: Ask) -> None:
        lines = [
            {
                "custom_id": "1",
                "url": "/v1/chat/completions",
                "body": {"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
            },
            {"custom_id": "2", "url": "/v1/embeddings", "body": {"model": "e", "input": "x"}},
            {"custom_id": "3", "url": "/v1/chat/completions", "body": {"model": "error-429"}},
            {"custom_id": "4", "url": "/v1/other", "body": {}},
            "no object",
        ]
        upload = Form(b"\n".join(orjson.dumps(line) for line in lines), purpose="batch")
        file = (await ask({}, path="/v1/files", upload=upload)).json()
        about = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}

        batch = Batch.model_validate((await ask(about, path="/v1/batches")).json())

        assert (batch.status, batch.request_counts and batch.request_counts.failed) == ("completed", 3)
        output = (await ask(path=f"/v1/files/{batch.output_file_id}/content", method="GET")).body
        assert isinstance(output, bytes)
        answers = [orjson.loads(line) for line in output.splitlines()]
        assert [one["response"]["status_code"] for one in answers] == [200, 200, 429, 400, 400]
        assert answers[0]["response"]["body"]["choices"][0]["message"]["content"] == "hi"

    async def test_a_batch_of_a_file_that_is_not_there_is_a_400(self, ask: Ask) -> None:
        assert (await ask({"input_file_id": "file-x"}, path="/v1/batches")).status == 400

    async def test_anything_else_is_made_changed_listed_in_pages_and_deleted(self, ask: Ask) -> None:
        ids = [(await ask({"name": name}, path="/v1/vector_stores")).json()["id"] for name in "abc"]
        changed = (await ask({"name": "B", "id": "evil"}, path=f"/v1/vector_stores/{ids[1]}")).json()
        assert (changed["id"], changed["name"]) == (ids[1], "B")

        first = (await ask(path="/v1/vector_stores", method="GET", query="limit=2&order=asc")).json()
        rest = (await ask(path="/v1/vector_stores", method="GET", query=f"order=asc&after={first['last_id']}")).json()

        assert ([one["id"] for one in first["data"]], first["has_more"]) == (ids[:2], True)
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2:], False)
        assert VectorStore.model_construct(**first["data"][0]).object == "vector_store"

    async def test_things_below_an_object_need_that_object(self, ask: Ask) -> None:
        store = (await ask({}, path="/v1/vector_stores")).json()["id"]
        inside = (await ask({"file_id": "f"}, path=f"/v1/vector_stores/{store}/files")).json()

        assert inside["object"] == "vector_store.file"
        assert len((await ask(path=f"/v1/vector_stores/{store}/files", method="GET")).json()["data"]) == 1
        assert len((await ask(path="/v1/vector_stores", method="GET")).json()["data"]) == 1
        assert (await ask({}, path="/v1/vector_stores/vs_none/files")).status == 404

    async def test_an_action_changes_the_status(self, ask: Ask) -> None:
        job = (await ask({"model": "gpt", "training_file": "f"}, path="/v1/fine_tuning/jobs")).json()["id"]

        assert (await ask({}, path=f"/v1/fine_tuning/jobs/{job}/cancel")).json()["status"] == "cancelled"

    async def test_what_is_kept_is_bounded_and_the_oldest_go_first(
        self, ask: Ask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo_objects, "MAX_OBJECTS", 3)
        monkeypatch.setattr(demo_objects, "MAX_CONTENT_BYTES", 10)

        files = [(await ask({}, path="/v1/files", upload=Form(b"x" * 4))).json()["id"] for _ in range(5)]

        listed = (await ask(path="/v1/files", method="GET", query="order=asc")).json()["data"]
        assert [one["id"] for one in listed] == files[3:]

    async def test_a_form_that_is_too_large_is_a_413(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_form, "MAX_FORM_BYTES", 20)

        assert (await ask({}, path="/v1/files", upload=Form(b"x" * 40))).status == 413

    def test_a_body_that_is_no_form_is_one_file(self) -> None:
        assert parse_form("application/octet-stream", b"abc").files == [("file", "upload", b"abc")]
