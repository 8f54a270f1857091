"""Chat replies and streams as Responses, judged by the `openai` package: its types, and its own accumulation of a stream."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from hookline.providers.responses_reasoning import unpack_thinking
from hookline.providers.responses_reply import from_chat
from hookline.providers.responses_request import to_chat
from hookline.providers.responses_stream import MAX_HELD_CHARS, ResponsesStream

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REQUEST = {
    "model": "alias", "input": "hi", "instructions": "be nice", "temperature": 0.5, "max_output_tokens": 9, "metadata": {"a": "b"}, "tool_choice": "auto",
    "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}}], "parallel_tool_calls": False, "user": "u",
    "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}, "verbosity": "low"},
}  # fmt: skip
USAGE = {
    "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip
CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
BLOCKS = [{"type": "thinking", "thinking": "hm", "signature": "sig"}]
MESSAGES: dict[str, dict[str, Any]] = {
    "text": {"content": "hello"},
    "calls": {"content": None, "tool_calls": CALLS},
    "text and calls": {"content": "Both.", "tool_calls": CALLS},
    "refusal": {"content": None, "refusal": "No."},
    "text and refusal": {"content": "Well. ", "refusal": "No."},
    "thinking": {"content": "hello", "reasoning_content": "hm"},
    "signed thinking": {"content": None, "reasoning_content": "hm", "thinking_blocks": BLOCKS, "tool_calls": CALLS},
    "hidden thinking": {"content": "hello", "thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]},
    "nothing": {"content": ""},
    "only thinking": {"content": None, "reasoning": "hm"},
}


def completion(message: dict[str, Any], reason: str = "stop", **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "real",
        "choices": [choice],
        "usage": USAGE,
        **fields,
    }


def chunks(message: dict[str, Any], reason: str = "stop") -> list[dict[str, Any]]:
    """The message as a server streams it, every text in two pieces."""

    def halves(text: str) -> list[str]:
        return [piece for piece in (text[:2], text[2:]) if piece]

    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for field in ("reasoning_content", "reasoning"):
        deltas += [{field: piece} for piece in halves(message.get(field) or "")]
    for index, block in enumerate(message.get("thinking_blocks", [])):
        deltas += [
            {"thinking_blocks": [{"index": index, "type": block["type"], name: block[name]}]}
            for name in block
            if name != "type"
        ]
    for field in ("content", "refusal"):
        deltas += [{field: piece} for piece in halves(message.get(field) or "")]
    for index, call in enumerate(message.get("tool_calls", [])):
        deltas.append(
            {"tool_calls": [{**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}]}
        )
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in halves(call["function"]["arguments"])
        ]
    envelope = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "real"}
    written = [{**envelope, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    written.append({**envelope, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    return [*written, {**envelope, "choices": [], "usage": USAGE}]


def run(message: dict[str, Any], reason: str = "stop") -> list[dict[str, Any]]:
    stream = ResponsesStream(REQUEST)
    return [event for chunk in chunks(message, reason) for event in stream.feed(chunk)] + stream.done()


class TestReply:
    def test_the_request_is_echoed_and_the_sdk_parses_it(self):
        to_chat(REQUEST)
        parsed = Response.model_validate(from_chat(completion(MESSAGES["text"]), REQUEST))

        assert (parsed.id, parsed.object, parsed.created_at, parsed.model, parsed.status) == (
            "resp_1",
            "response",
            5,
            "real",
            "completed",
        )
        assert (parsed.instructions, parsed.temperature, parsed.max_output_tokens, parsed.user) == (
            "be nice",
            0.5,
            9,
            "u",
        )
        assert (parsed.metadata, parsed.tool_choice, parsed.parallel_tool_calls) == ({"a": "b"}, "auto", False)
        assert (parsed.tools[0].name, parsed.reasoning.effort, parsed.text.verbosity) == ("add", "low", "low")
        assert (parsed.store, parsed.previous_response_id, parsed.error, parsed.incomplete_details) == (
            False,
            None,
            None,
            None,
        )

    def test_the_smallest_request_is_echoed_with_defaults(self):
        parsed = Response.model_validate(from_chat(completion(MESSAGES["text"]), {"model": "m", "input": "x"}))

        assert (parsed.tool_choice, parsed.tools, parsed.parallel_tool_calls, parsed.metadata, parsed.truncation) == (
            "auto",
            [],
            True,
            {},
            "disabled",
        )
        assert parsed.text.format.type == "text"

    def test_text(self):
        parsed = Response.model_validate(from_chat(completion(MESSAGES["text"]), REQUEST))

        assert parsed.output_text == "hello"
        assert [item.model_dump(exclude_unset=True) for item in parsed.output] == [
            {
                "id": "msg_1_0", "type": "message", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}],
            }
        ]  # fmt: skip

    def test_thinking_and_calls_are_items_of_their_own(self):
        parsed = Response.model_validate(from_chat(completion(MESSAGES["signed thinking"], "tool_calls"), REQUEST))

        reasoning, *calls = parsed.output
        assert [part.text for part in reasoning.summary] == ["hm"]
        assert unpack_thinking(reasoning.encrypted_content) == BLOCKS
        assert [(call.type, call.call_id, call.name, call.arguments) for call in calls] == [
            ("function_call", "call_1", "add", '{"a": 1}'),
            ("function_call", "call_2", "now", "{}"),
        ]

    @pytest.mark.parametrize(("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
    def test_a_cut_answer_is_incomplete(self, reason, why):
        parsed = Response.model_validate(from_chat(completion(MESSAGES["text"], reason), REQUEST))

        assert (parsed.status, parsed.incomplete_details.reason, parsed.output[0].status) == (
            "incomplete",
            why,
            "incomplete",
        )

    def test_usage(self):
        parsed = Response.model_validate(from_chat(completion(MESSAGES["text"]), REQUEST))

        assert (parsed.usage.input_tokens, parsed.usage.output_tokens, parsed.usage.total_tokens) == (10, 5, 15)
        assert (
            parsed.usage.input_tokens_details.cached_tokens,
            parsed.usage.input_tokens_details.cache_write_tokens,
        ) == (4, 1)
        assert parsed.usage.output_tokens_details.reasoning_tokens == 2
        assert from_chat(completion(MESSAGES["text"], usage=None), REQUEST)["usage"] is None

    @pytest.mark.parametrize("kind", MESSAGES)
    def test_output_items_go_back_into_the_next_request(self, kind):
        """What a client of this API does for a tool loop: it appends the output to its input."""
        output = Response.model_validate(from_chat(completion(MESSAGES[kind]), REQUEST)).output
        items = [item.model_dump(exclude_none=True) for item in output]

        returned = to_chat({"model": "m", "input": [{"role": "user", "content": "hi"}, *items]})["messages"][1]

        message = MESSAGES[kind]
        assert (returned["content"] or "") == (message.get("content") or "") + (message.get("refusal") or "")
        assert returned.get("tool_calls", []) == message.get("tool_calls", [])
        assert returned.get("thinking_blocks", []) == message.get("thinking_blocks", [])


class TestStream:
    @pytest.mark.parametrize("kind", MESSAGES)
    @pytest.mark.parametrize("reason", ["stop", "length"])
    def test_the_events_are_the_sdks_and_end_with_the_response_of_the_whole_reply(self, kind, reason):
        events = run(MESSAGES[kind], reason)

        for event in events:
            assert EVENT.validate_python(event).type == event["type"]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
        assert events[-1]["type"] == ("response.completed" if reason == "stop" else "response.incomplete")
        assert events[-1]["response"] == from_chat(completion(MESSAGES[kind], reason), REQUEST)
        assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == events[-1][
            "response"
        ]["output"]

    @pytest.mark.parametrize("kind", ["text", "calls", "text and calls", "thinking", "signed thinking"])
    def test_the_sdk_accumulates_the_same_response(self, kind):
        state: Any = ResponseStreamState(input_tools=[], text_format=omit)
        for event in run(MESSAGES[kind]):
            state.handle_event(EVENT.validate_python(event))

        final = state._completed_response
        assert [item.type for item in final.output] == [
            item["type"] for item in from_chat(completion(MESSAGES[kind]), REQUEST)["output"]
        ]
        assert final.output_text == (MESSAGES[kind]["content"] or "")

    def test_transcript_of_text_and_a_call(self):
        events = run({"content": "Both.", "tool_calls": CALLS[:1]}, "tool_calls")

        assert [event["type"].removeprefix("response.") for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
        assert [event["output_index"] for event in events if "output_index" in event] == [0] * 7 + [1] * 5

    def test_interleaved_arguments_of_parallel_calls_stay_apart(self):
        stream = ResponsesStream(REQUEST)
        for index, piece in [(0, '{"a"'), (1, '{"b"'), (0, ":1}"), (1, ":2}")]:
            stream.feed(
                {
                    "id": "x",
                    "choices": [
                        {
                            "index": 0,
                            "delta": {
                                "tool_calls": [
                                    {"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": piece}}
                                ]
                            },
                        }
                    ],
                }
            )

        output = stream.done()[-1]["response"]["output"]

        assert [(item["call_id"], item["arguments"]) for item in output] == [("c0", '{"a":1}'), ("c1", '{"b":2}')]

    def test_a_cut_stream_has_no_end_of_its_own(self):
        stream = ResponsesStream(REQUEST)
        for chunk in chunks(MESSAGES["text"])[:-2]:
            stream.feed(chunk)

        assert (stream.is_complete, stream.end()) == (False, [])
        number = stream.next_sequence_number
        assert EVENT.validate_python(stream.write_error(code="upstream_reset", message="gone")).model_dump() == {
            "type": "error", "code": "upstream_reset", "message": "gone", "param": None, "sequence_number": number,
        }  # fmt: skip

    def test_an_end_without_done_is_complete_after_a_finish_reason(self):
        stream = ResponsesStream(REQUEST)
        for chunk in chunks(MESSAGES["text"])[:-1]:
            stream.feed(chunk)

        assert stream.is_complete
        assert stream.end()[-1]["type"] == "response.completed"
        assert stream.end() == stream.done() == stream.feed(chunks(MESSAGES["text"])[0]) == []

    def test_azures_first_chunk_has_no_id_and_begins_nothing(self):
        stream = ResponsesStream(REQUEST)

        assert stream.feed({"id": "", "model": "", "created": 0, "choices": [], "prompt_filter_results": [{}]}) == []
        assert stream.feed(chunks(MESSAGES["text"])[0])[0]["response"]["id"] == "resp_1"

    def test_an_error_from_upstream_fails_the_response(self):
        stream = ResponsesStream(REQUEST)
        stream.feed(chunks(MESSAGES["text"])[1])

        events = stream.feed({"error": {"message": "Too many", "code": "rate_limit_exceeded"}})

        parsed = EVENT.validate_python(events[-1])
        assert (parsed.type, parsed.response.status) == ("response.failed", "failed")
        assert (parsed.response.error.code, parsed.response.error.message) == ("rate_limit_exceeded", "Too many")
        assert stream.done() == []

    def test_an_endless_answer_fails_instead_of_filling_the_memory(self):
        stream = ResponsesStream(REQUEST)
        piece = "x" * (MAX_HELD_CHARS // 4)
        events = list(
            itertools.chain.from_iterable(stream.feed({"choices": [{"delta": {"content": piece}}]}) for _ in range(6))
        )

        assert [event["type"] for event in events if event["type"] not in ("response.output_text.delta",)][
            -1
        ] == "response.failed"
        assert len([event for event in events if event["type"] == "response.output_text.delta"]) == 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["index", "delta", "message", "content", "refusal", "tool_calls", "function", "name", "arguments", "id", "thinking_blocks", "type", "reasoning", "finish_reason"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
REPLIES = st.dictionaries(st.sampled_from(["id", "choices", "created", "model", "usage", "error"]), JSON)


@given(REPLIES)
def test_a_reply_of_any_shape_is_still_a_response(reply):
    assert Response.model_validate(from_chat(reply, REQUEST)).object == "response"


@given(st.lists(REPLIES, max_size=5))
def test_chunks_of_any_shape_become_events(replies):
    stream = ResponsesStream(REQUEST)
    events = [event for reply in replies for event in stream.feed(reply)] + stream.done()

    for number, event in enumerate(events):
        assert EVENT.validate_python(event).sequence_number == number
