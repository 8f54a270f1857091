"""Streamed messages as chat completion chunks. In go events of the `anthropic` package's own types, out come chunks the `openai` package parses and accumulates.

Transcripts: one line per event in, `->` what leaves for it."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta
from openai.types.chat import ChatCompletionChunk
from pydantic import TypeAdapter

from hookline.providers.anthropic_stream import DONE, AnthropicStream

EVENT = TypeAdapter(RawMessageStreamEvent)
START = {
    "type": "message_start",
    "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "stop_reason": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1, "service_tier": "standard"},
    },
}  # fmt: skip
STOP = {"type": "message_stop"}


def block_start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def block_delta(index: int, kind: str, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}


def block_stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def finish(stop_reason: str, **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 7, **usage}}


def typed(event: dict[str, Any]) -> dict[str, Any]:
    """The event as the vendor's package parses and writes it."""
    return EVENT.validate_python(event).model_dump(mode="json")


def short(chunk: dict[str, Any] | bytes) -> Any:
    """A chunk, checked by the OpenAI types, as what is new in it."""
    if isinstance(chunk, bytes):
        return chunk
    if "error" in chunk:
        return chunk
    ChatCompletionChunk.model_validate(chunk)
    assert (chunk["id"], chunk["created"], chunk["object"]) == ("msg_1", 123, "chat.completion.chunk")
    if not chunk["choices"]:
        return chunk["usage"]
    choice = chunk["choices"][0]
    return (choice["delta"], choice["finish_reason"]) if choice["finish_reason"] else choice["delta"]


def run(*events: dict[str, Any]) -> list[Any]:
    stream = AnthropicStream(model="asked", created=123)
    return [short(chunk) for event in events for chunk in stream.feed(event["type"], typed(event))]


USAGE = {
    "prompt_tokens": 14, "completion_tokens": 7, "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
}  # fmt: skip


def test_text():
    assert run(
        START,
        block_start(0, type="text", text=""),
        block_delta(0, "text_delta", text="Hel"),
        block_delta(0, "text_delta", text="lo"),
        block_stop(0),
        finish("end_turn"),
        STOP,
    ) == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, ({}, "stop"), USAGE, DONE]


def test_parallel_tool_calls_get_indexes_of_their_own():
    assert run(
        START,
        block_start(0, type="text", text=""),
        block_delta(0, "text_delta", text="Both."),
        block_stop(0),
        block_start(1, type="tool_use", id="toolu_1", name="add", input={}),
        block_delta(1, "input_json_delta", partial_json=""),
        block_delta(1, "input_json_delta", partial_json='{"a"'),
        block_delta(1, "input_json_delta", partial_json=": 1}"),
        block_stop(1),
        block_start(2, type="tool_use", id="toolu_2", name="now", input={}),
        block_stop(2),
        finish("tool_use"),
        STOP,
    ) == [
        {"role": "assistant", "content": ""},
        {"content": "Both."},
        {
            "tool_calls": [
                {"index": 0, "id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "toolu_2", "type": "function", "function": {"name": "now", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        ({}, "tool_calls"),
        USAGE,
        DONE,
    ]


def test_thinking_merges_to_the_signed_blocks():
    """By the accumulation of OpenAI's own SDK, which wants an index in every list entry."""
    deltas = run(
        START,
        block_start(0, type="thinking", thinking="", signature=""),
        block_delta(0, "thinking_delta", thinking="one "),
        block_delta(0, "thinking_delta", thinking="two"),
        block_delta(0, "signature_delta", signature="sig-1"),
        block_stop(0),
        block_start(1, type="redacted_thinking", data="secret"),
        block_stop(1),
        block_start(2, type="thinking", thinking="", signature=""),
        block_delta(2, "signature_delta", signature="sig-2"),
        block_stop(2),
        block_start(3, type="text", text=""),
        block_delta(3, "text_delta", text="3"),
    )

    merged: dict[str, Any] = {}
    for delta in deltas:
        merged = accumulate_delta(merged, delta)
    assert merged == {
        "role": "assistant",
        "content": "3",
        "reasoning_content": "one two",
        "thinking_blocks": [
            {"index": 0, "type": "thinking", "thinking": "one two", "signature": "sig-1"},
            {"index": 1, "type": "redacted_thinking", "data": "secret"},
            {"index": 2, "type": "thinking", "signature": "sig-2"},
        ],
    }


def test_a_refusal_ends_as_content_filter_and_says_why():
    event = {
        "type": "message_delta",
        "delta": {"stop_reason": "refusal", "stop_details": {"type": "refusal", "explanation": "No."}},
        "usage": {"output_tokens": 1},
    }

    assert run(START, event)[-1] == ({"refusal": "No."}, "content_filter")


def test_an_error_ends_the_stream_without_done():
    stream = AnthropicStream(model="asked", created=123)
    stream.feed(None, START)

    error = stream.feed("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})

    assert error == [{"error": {"message": "Overloaded", "type": "server_error", "param": None, "code": "overloaded"}}]
    assert (stream.error_status, stream.is_complete) == (503, False)
    assert stream.feed("message_stop", STOP) == stream.end() == []


def test_usage_is_known_as_far_as_it_was_told():
    stream = AnthropicStream(model="asked", created=123)
    assert stream.usage is None

    stream.feed("message_start", START)
    assert (stream.usage["prompt_tokens"], stream.usage["completion_tokens"]) == (14, 1)

    stream.feed("message_delta", finish("end_turn", input_tokens=20))
    assert (stream.usage["prompt_tokens"], stream.usage["completion_tokens"]) == (24, 7)


@pytest.mark.parametrize(
    ("events", "is_complete", "owed"),
    [
        ([], False, []),
        ([START], False, []),
        ([START, finish("end_turn")], True, [USAGE, DONE]),
        ([START, finish("end_turn"), STOP], True, []),
    ],
)
def test_the_end_of_the_connection_owes_only_what_a_complete_answer_lacks(events, is_complete, owed):
    stream = AnthropicStream(model="asked", created=123)
    for event in events:
        stream.feed(event["type"], event)

    assert stream.is_complete is is_complete
    assert [short(chunk) for chunk in stream.end()] == owed
    assert stream.end() == []


def test_a_stop_without_a_reason_is_still_an_end():
    assert run(START, block_start(0, type="tool_use", id="t", name="f", input={"a": 1}), block_stop(0), STOP)[2:4] == [
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
        ({}, "tool_calls"),
    ]


def test_pings_and_unknown_events_say_nothing():
    stream = AnthropicStream(model="asked", created=123)

    assert stream.feed("ping", {"type": "ping"}) == stream.feed("sing", {"type": "sing"}) == stream.feed(None, {}) == []


def test_events_without_a_type_go_by_their_name():
    stream = AnthropicStream(model="asked", created=123)

    assert len(stream.feed("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "x"}})) == 2, (
        "role chunk first"
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.text(max_size=5)
    | st.sampled_from(["tool_use", "thinking", "text", "text_delta", "input_json_delta", "end_turn"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "thinking", "input", "id", "delta", "stop_reason", "partial_json", "usage"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
TYPES = st.sampled_from(
    [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    ]
)
EVENTS = st.lists(
    st.builds(
        lambda kind, fields: {**fields, "type": kind},
        TYPES,
        st.dictionaries(st.sampled_from(["message", "content_block", "delta", "index", "usage", "error"]), JSON),
    ),
    max_size=8,
)


@given(EVENTS)
def test_events_of_any_shape_become_chunks_or_nothing(events):
    stream = AnthropicStream(model="asked", created=123)

    for chunk in [chunk for event in events for chunk in stream.feed(None, event)] + stream.end():
        assert chunk == DONE or "error" in chunk or ChatCompletionChunk.model_validate(chunk)
