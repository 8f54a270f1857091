"""A whole tool loop through the translation, there and back, with thinking: what a client got is what it sends, and the upstream gets its signed blocks unchanged."""

from __future__ import annotations

from typing import Any

from anthropic.types import Message
from openai.lib.streaming._deltas import accumulate_delta
from openai.types.chat import ChatCompletion

from hookline.providers.anthropic_reply import from_anthropic
from hookline.providers.anthropic_request import to_anthropic
from hookline.providers.anthropic_stream import AnthropicStream
from hookline.providers.responses_request import to_chat as responses_to_chat
from hookline.providers.responses_stream import ResponsesStream

QUESTION = {"role": "user", "content": "What is 2 + 3, and what time is it?"}
BLOCKS = [
    {"type": "thinking", "thinking": "Two calls.", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"},
    {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 2, "b": 3}},
    {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("add", "now")
]
RESULTS = [
    {"role": "tool", "tool_call_id": "toolu_1", "content": "5"},
    {"role": "tool", "tool_call_id": "toolu_2", "content": "noon"},
]
EXPECTED_TURNS = [
    QUESTION,
    {"role": "assistant", "content": BLOCKS},
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "5"},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "noon"},
        ],
    },
]


def translate(messages: list[dict[str, Any]]) -> dict[str, Any]:
    payload = {"messages": messages, "tools": TOOLS, "reasoning_effort": "high"}
    return to_anthropic(payload, model="claude-sonnet-4-5", default_max_tokens=8000)


def test_complete_reply(assert_anthropic_request):
    reply = Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": BLOCKS,
            "stop_reason": "tool_use",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    ).model_dump(mode="json", exclude_unset=True)

    answered = (
        ChatCompletion.model_validate(from_anthropic(reply, model="m", created=0)).choices[0].message.model_dump()
    )
    request = translate([QUESTION, answered, *RESULTS])

    assert request["messages"] == EXPECTED_TURNS
    assert_anthropic_request(request)


def test_streamed_reply_merged_by_the_client(assert_anthropic_request):
    stream = AnthropicStream(model="m", created=0)
    merged: dict[str, Any] = {}
    for event in as_events(BLOCKS):
        for chunk in stream.feed(event["type"], event):
            merged = accumulate_delta(merged, chunk["choices"][0]["delta"])

    request = translate([QUESTION, merged, *RESULTS])

    assert request["messages"] == EXPECTED_TURNS
    assert_anthropic_request(request)


def test_through_the_responses_api(assert_anthropic_request):
    """Two translations deep: the signed blocks travel as the opaque part of a reasoning item."""
    tools = [
        {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}
        for name in ("add", "now")
    ]
    asked = {"model": "m", "input": [QUESTION], "tools": tools, "reasoning": {"effort": "high"}, "stream": True}
    chat_stream, stream = AnthropicStream(model="m", created=0), ResponsesStream(asked)
    events = [
        out
        for event in [*as_events(BLOCKS), {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}]
        for chunk in chat_stream.feed(event["type"], event)
        for out in stream.feed(chunk)
    ] + stream.done()

    outputs = [
        {"type": "function_call_output", "call_id": result["tool_call_id"], "output": result["content"]}
        for result in RESULTS
    ]
    again = responses_to_chat({**asked, "input": [QUESTION, *events[-1]["response"]["output"], *outputs]})
    request = to_anthropic(again, model="claude-sonnet-4-5", default_max_tokens=8000)

    assert request["messages"] == EXPECTED_TURNS
    assert_anthropic_request(request)


def as_events(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks as the API streams them."""
    deltas = {
        "text": [("text_delta", "text")],
        "thinking": [("thinking_delta", "thinking"), ("signature_delta", "signature")],
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "msg_1", "model": "m"}}]
    for index, block in enumerate(blocks):
        empty = {**block, **dict.fromkeys(("text", "thinking", "signature"), ""), "input": {}}
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        pieces = [
            {"type": kind, field: half}
            for kind, field in deltas.get(block["type"], [])
            for half in (block[field][:4], block[field][4:])
        ]
        if block["type"] == "tool_use" and block["input"]:
            pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"a": 2,', ' "b": 3}')]
        events += [{"type": "content_block_delta", "index": index, "delta": piece} for piece in pieces]
        events.append({"type": "content_block_stop", "index": index})
    return events
