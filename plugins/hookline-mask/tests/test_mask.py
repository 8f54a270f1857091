"""hookline-mask through the real pipeline, on the public API alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hookline_mask import Plugin
from hookline_mask.vault import Vault, has_valid_check_digit
from hypothesis import given
from hypothesis import strategies as st

from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, stream

CARD = "4111 1111 1111 1111"


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "up/m", "messages": [{"role": "user", "content": text}], **more}


def completion(content: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def text_of(body: bytes) -> str:
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    choices = [c for e in events if e != "[DONE]" for c in json.loads(e)["choices"]]
    return "".join(c["delta"].get("content") or "" for c in choices)


async def test_provider_sees_placeholders_and_client_sees_values() -> None:
    provider = ScriptedProvider(answer(completion("mail <EMAIL_1> and <EMAIL_2>, card <CARD_1>")))
    kit = PipelineKit(Plugin, providers=[provider])

    delivered = await kit.call(ask(f"ann@example.org, bob@example.org, ann@example.org, {CARD}"))

    sent = provider.sent[0][0].body.decode()
    assert json.loads(sent)["messages"][0]["content"] == "<EMAIL_1>, <EMAIL_2>, <EMAIL_1>, <CARD_1>"
    content = delivered.json()["choices"][0]["message"]["content"]
    assert content == f"mail ann@example.org and bob@example.org, card {CARD}"


async def test_clean_prompt_goes_out_byte_for_byte() -> None:
    provider = ScriptedProvider()
    kit = PipelineKit(Plugin, providers=[provider])
    call = kit.make_call(ask("nothing to hide: 4111 1111 1111 1112, a@b"))

    await kit.run(call)

    assert b"4111 1111 1111 1112" in provider.sent[0][0].body


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
async def test_placeholder_cut_by_events_is_restored(size: int) -> None:
    text = "to <EMAIL_1> or <b> <EMAIL_9> <EMAIL"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    script = stream(*(chunk({"content": p}) for p in pieces), chunk({}, "stop"), b"data: [DONE]\n\n")
    kit = PipelineKit(Plugin, providers=[ScriptedProvider(script)])

    delivered = await kit.call(ask("ann@example.org", stream=True))

    assert text_of(delivered.body) == "to ann@example.org or <b> <EMAIL_9> <EMAIL"
    assert delivered.body.endswith(b"data: [DONE]\n\n")


async def test_tool_arguments_are_restored_in_streams() -> None:
    def call(arguments: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}

    script = stream(chunk(call('{"to": "<EMA')), chunk(call('IL_1>"}')), chunk({}, "tool_calls"), b"data: [DONE]\n\n")
    kit = PipelineKit(Plugin, providers=[ScriptedProvider(script)])

    delivered = await kit.call(ask("ann@example.org", stream=True))

    events = [json.loads(e[6:]) for e in delivered.body.decode().split("\n\n") if e.startswith("data: {")]
    calls = [t for e in events for c in e["choices"] for t in c["delta"].get("tool_calls", [])]
    assert "".join(t["function"]["arguments"] for t in calls) == '{"to": "ann@example.org"}'


async def test_responses_stream_is_restored() -> None:
    def event(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()

    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    script = stream(
        event("response.output_text.delta", delta="to <EMA", **place),
        event("response.output_text.delta", delta="IL_1>", **place),
        event("response.output_text.done", text="to <EMAIL_1>", **place),
        event("response.completed", response={"output": [{"text": "to <EMAIL_1>"}]}),
    )
    kit = PipelineKit(Plugin, providers=[ScriptedProvider(script)])

    delivered = await kit.call({"model": "up/m", "input": "ann@example.org", "stream": True}, path="/v1/responses")

    assert b"<EMAIL" not in delivered.body
    assert delivered.body.count(b"ann@example.org") == 3


async def test_placeholders_of_the_clients_own_are_not_given_out_again() -> None:
    provider = ScriptedProvider(answer(completion("<EMAIL_1> <EMAIL_2>")))
    kit = PipelineKit(Plugin, providers=[provider])

    delivered = await kit.call(ask("literally <EMAIL_1> and ann@example.org"))

    assert delivered.json()["choices"][0]["message"]["content"] == "<EMAIL_1> ann@example.org"


async def test_restore_can_be_turned_off() -> None:
    kit = PipelineKit(
        Plugin,
        providers=[ScriptedProvider(answer(completion("<EMAIL_1>")))],
        options={"hookline_mask": {"restore": False}},
    )

    delivered = await kit.call(ask("ann@example.org"))

    assert delivered.json()["choices"][0]["message"]["content"] == "<EMAIL_1>"


async def test_ids_urls_and_images_are_left_alone() -> None:
    provider = ScriptedProvider()
    image = {"type": "image_url", "image_url": {"url": "https://ann@example.org/4111111111111111.png"}}
    kit = PipelineKit(Plugin, providers=[provider])

    await kit.call(
        {"model": "up/m", "messages": [{"role": "user", "content": [image, {"type": "text", "text": "x@y.org"}]}]}
    )

    content = json.loads(provider.sent[0][0].body)["messages"][0]["content"]
    assert content == [image, {"type": "text", "text": "<EMAIL_1>"}]


@pytest.mark.parametrize(
    ("number", "is_valid"), [("4111111111111111", True), ("4111111111111112", False), ("5500-0000-0000-0004", True)]
)
def test_check_digit(number: str, is_valid: bool) -> None:
    assert has_valid_check_digit(number) is is_valid


@given(
    st.recursive(
        st.text() | st.emails() | st.integers() | st.none(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_restoring_what_was_masked_gives_it_back(value: Any) -> None:
    vault = Vault(["email", "card"], taken=json.dumps(value, ensure_ascii=False))

    assert vault.restore(vault.mask(value)) == value
