"""Degradation: an old answer, a smaller model, a sentence, a 503, in this order, each saying what it is."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from hookline import BadRequest, InsufficientQuota, Principal, Rejected, Skip, hookimpl
from hookline.builtins import degradation
from hookline.builtins.degradation.static_answer import may_answer, static_reply
from hookline.builtins.fallback import Plugin as Fallback
from hookline.errors import UpstreamError
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, make_plugin, stream

ASKED = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
MODELS = {"big": ["up/big"], "small": ["local/small"]}
CHUNKS = (b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n', b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', b"data: [DONE]\n\n")  # fmt: skip


def refused(kind: str = "connect", **about: Any) -> UpstreamError:
    return UpstreamError("up/big can't be reached", kind=kind, is_written=False, **about)


def kit_of(*local: Any, up: Any = None, plugins: tuple[type, ...] = (), **options: Any) -> PipelineKit:
    return PipelineKit(
        *plugins,
        degradation.Plugin,
        providers=[ScriptedProvider(up or refused()), ScriptedProvider(*local, name="local")],
        deployments=MODELS,
        options={"degradation": options},
    )


async def test_a_smaller_model_answers_as_a_call_of_its_own() -> None:
    seen: list[tuple[str, str, str | None]] = []
    watch = make_plugin("watch", call_ended=lambda call, result: seen.append((call.id, result.outcome, call.model)))
    kit = kit_of(answer(), model="small", static="sorry", plugins=(watch,))
    principal = Principal("k", "k", tenant="t")

    delivered = await kit.call(ASKED, principal=principal, headers={"idempotency-key": "one"})

    assert (delivered.status, delivered.headers["x-hookline-rescue"]) == (200, "model")
    assert delivered.headers["x-hookline-deployment"] == "local/small"
    assert delivered.headers["x-hookline-attempts"] == "2"
    ((inner, _),) = kit.providers["local"].sent
    assert inner.principal is principal
    assert inner.payload == {**ASKED, "model": "small"}
    assert "idempotency-key" not in inner.headers
    assert seen == [("req_1-rescue", "ok", "small"), ("req_1", "ok", "big")]
    assert kit.metric("hookline_rescues_total", answer="model") == 1
    assert delivered.headers["x-hookline-cost-usd"] == "0.00002"


async def test_a_stand_in_says_nothing_of_coming_again() -> None:
    """`fallback` tells the SDK of a call that has failed not to send it again."""
    spent = {"retry_budget": 0.0, "retry_budget_per_s": 0.0}
    said = []
    for options in ({"static": "sorry"}, {}):
        kit = PipelineKit(
            Fallback,
            degradation.Plugin,
            providers=[ScriptedProvider(refused())],
            deployments={"big": ["up/big"]},
            options={"degradation": options, "fallback": spent},
        )
        delivered = await kit.call(ASKED)
        said.append((delivered.status, delivered.headers.get("x-should-retry")))

    assert said == [(200, None), (503, "false")]


async def test_a_smaller_models_stream_comes_as_it_is_made() -> None:
    go_on = asyncio.Event()
    kit = kit_of(stream(CHUNKS[0], go_on, *CHUNKS[1:]), model="small")
    running = kit.start(kit.make_call({**ASKED, "stream": True}))

    await running.delivered.has_begun.wait()
    assert running.delivered.body == CHUNKS[0]
    go_on.set()
    delivered = await running.done()

    assert delivered.body == b"".join(CHUNKS)
    assert delivered.headers["x-hookline-rescue"] == "model"


async def test_a_client_that_leaves_ends_the_smaller_models_stream_too() -> None:
    closed: list[str] = []
    seen: list[str] = []
    never = asyncio.Event()
    watch = make_plugin("watch", call_ended=lambda call, result: seen.append(f"{call.id} {result.outcome}"))
    kit = kit_of(stream(CHUNKS[0], never, closed=closed), model="small", plugins=(watch,))
    running = kit.start(kit.make_call({**ASKED, "stream": True}))
    await running.delivered.has_begun.wait()

    running.leave()
    await running.done()

    assert closed == ["closed"]
    assert seen == ["req_1-rescue client_gone", "req_1 client_gone"]


async def test_a_smaller_models_stream_that_dies_is_no_finished_stream() -> None:
    kit = kit_of(stream(CHUNKS[0], refused("reset")), model="small")

    delivered = await kit.call({**ASKED, "stream": True})

    assert delivered.error is not None
    assert b'"error"' in delivered.body
    assert b"[DONE]" not in delivered.body


async def test_cancelled_while_it_waits_for_the_smaller_model_nothing_stays() -> None:
    asked, cancelled = asyncio.Event(), []

    async def never(call: Any, attempt: Any) -> Any:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(call.id)
            raise

    kit = kit_of(never, model="small")
    running = kit.start(kit.make_call(ASKED))
    await asked.wait()
    running.leave()
    await running.done()

    assert cancelled == ["req_1-rescue"]
    assert kit.pipeline.running == 0


@pytest.mark.parametrize(
    "forbidden", [Rejected(BadRequest("no")), Rejected(InsufficientQuota("spent")), RuntimeError("broke")]
)
async def test_who_may_not_ask_the_smaller_model_gets_the_sentence(forbidden: Exception) -> None:
    class Gate:
        @hookimpl
        def admit(self, call: Any) -> None:
            if call.model == "small":
                raise forbidden

    kit = kit_of(answer(), model="small", static="We are busy.", plugins=(Gate,))

    delivered = await kit.call(ASKED)

    assert (delivered.status, delivered.headers["x-hookline-rescue"]) == (200, "static")
    assert delivered.json()["choices"][0]["message"]["content"] == "We are busy."
    assert kit.providers["local"].sent == []


async def test_a_smaller_model_that_fails_is_not_rescued_itself() -> None:
    kit = kit_of(refused(), model="small", static="sorry")

    delivered = await kit.call(ASKED)

    assert delivered.headers["x-hookline-rescue"] == "static"
    assert len(kit.providers["local"].sent) == 1


async def test_with_nothing_left_it_is_a_503_that_says_when_to_come_back() -> None:
    seen: list[Any] = []
    watch = make_plugin("watch", call_ended=lambda call, result: seen.append((result.outcome, result.error.kind)))
    kit = kit_of(retry_after_s=7, plugins=(watch,))

    delivered = await kit.call(ASKED)

    assert (delivered.status, delivered.headers["retry-after"]) == (503, "7")
    assert delivered.json()["error"]["code"] == "no_provider_available"
    assert "x-hookline-rescue" not in delivered.headers
    assert delivered.headers["x-hookline-attempts"] == "1"
    assert seen == [("upstream_error", "connect")]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/images/generations", "/v1/audio/speech"])
async def test_the_503_is_for_every_endpoint_with_a_model(path: str) -> None:
    """Symptom: of a picture the client saw the provider's own 500, without a word on when to come back."""
    kit = kit_of(answer(), up=answer(b"<html>", status=500), model="small", static="sorry", retry_after_s=7)

    delivered = await kit.call({"model": "big", "input": "x", "prompt": "x"}, path=path)

    assert (delivered.status, delivered.headers["retry-after"]) == (503, "7")
    assert kit.providers["local"].sent == []


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_is_wrong_with_the_request_is_not_papered_over(status: int) -> None:
    kit = kit_of(up=answer(b'{"error":{"message":"bad"}}', status=status), static="sorry")

    assert (await kit.call(ASKED)).status == status


@pytest.mark.parametrize("signal", [Skip("spent", InsufficientQuota("spent")), Rejected(BadRequest("no"))])
async def test_what_a_budget_or_a_rule_refused_stays_refused(signal: Exception) -> None:
    class Gate:
        @hookimpl
        def admit_attempt(self, call: Any, target: Any, attempt: Any) -> None:
            raise signal

    kit = kit_of(answer(), model="small", static="sorry", plugins=(Gate,))

    delivered = await kit.call(ASKED)

    assert delivered.status in (400, 429)
    assert "x-hookline-rescue" not in delivered.headers


async def test_a_rate_limit_of_the_last_upstream_is_passed_on_with_its_time() -> None:
    kit = kit_of(up=answer(b"{}", status=429, **{"retry-after": "9"}))

    delivered = await kit.call(ASKED)

    assert (delivered.status, delivered.headers["retry-after"]) == (429, "9")


@pytest.mark.parametrize(
    ("path", "payload", "may"),
    [
        ("/v1/chat/completions", ASKED, True),
        ("/v1/chat/completions", {**ASKED, "response_format": {"type": "json_object"}}, False),
        ("/v1/chat/completions", {**ASKED, "tool_choice": "required"}, False),
        ("/v1/chat/completions", {**ASKED, "modalities": ["text", "audio"]}, False),
        ("/v1/completions", {"model": "m", "prompt": "x"}, True),
        ("/v1/completions", {"model": "m", "prompt": ["x", "y"]}, False),
        ("/v1/responses", {"model": "m", "input": "x"}, True),
        ("/v1/responses", {"model": "m", "input": "x", "text": {"format": {"type": "json_schema"}}}, False),
        ("/v1/embeddings", {"model": "m", "input": "x"}, False),
    ],
)
def test_a_sentence_answers_only_who_asked_for_text(path: str, payload: Any, may: bool, make_call: Any) -> None:
    assert may_answer(make_call(payload, path=path)) is may


def test_a_static_answer_is_what_the_sdks_types_say_and_its_stream_too(make_call: Any) -> None:
    chat = static_reply(make_call({**ASKED, "n": 2}), "Sorry.", now=5.0)
    completion = ChatCompletion.model_validate(orjson.loads(chat.body))
    assert [choice.message.content for choice in completion.choices] == ["Sorry.", "Sorry."]

    streamed = static_reply(
        make_call({**ASKED, "stream": True, "stream_options": {"include_usage": True}}), "Sorry.", now=5.0
    )
    assert isinstance(streamed.body, bytes)
    *events, done = [event.removeprefix(b"data: ") for event in streamed.body.strip().split(b"\n\n")]
    chunks = [ChatCompletionChunk.model_validate(orjson.loads(event)) for event in events]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Sorry."
    assert done == b"[DONE]"
    assert chunks[-1].usage is not None

    response = static_reply(make_call({"model": "m", "input": "x"}, path="/v1/responses"), "Sorry.", now=5.0)
    assert Response.model_validate(orjson.loads(response.body)).output_text == "Sorry."
    told = static_reply(
        make_call({"model": "m", "input": "x", "stream": True}, path="/v1/responses"), "Sorry.", now=5.0
    )
    assert isinstance(told.body, bytes)
    assert b"response.completed" in told.body
