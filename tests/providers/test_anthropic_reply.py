"""Messages and errors of the Messages API as OpenAI replies: in go the `anthropic` package's own objects, out come what the `openai` package parses."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from anthropic.types import Message, StopReason
from anthropic.types.shared import ErrorResponse, ErrorType
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from hookline.providers.anthropic_reply import ERROR_KINDS, FINISH_REASONS, error_from_anthropic, from_anthropic


def message(content: list[dict[str, Any]], *, stop_reason: str = "end_turn", **fields: Any) -> dict[str, Any]:
    """A reply as the vendor's package has it."""
    usage = fields.pop("usage", {"input_tokens": 10, "output_tokens": 5})
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": content,
        "stop_reason": stop_reason,
        "usage": usage,
        **fields,
    }
    return Message.model_validate(body).model_dump(mode="json")


def completion(reply: dict[str, Any]) -> ChatCompletion:
    return ChatCompletion.model_validate(from_anthropic(reply, model="asked", created=1_700_000_000))


def test_text_blocks_become_one_content():
    parsed = completion(message([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]))

    assert (parsed.id, parsed.model, parsed.created, parsed.object) == (
        "msg_1",
        "claude-x",
        1_700_000_000,
        "chat.completion",
    )
    assert parsed.choices[0].message.content == "Hello"
    assert parsed.choices[0].message.tool_calls is None
    assert parsed.choices[0].finish_reason == "stop"


def test_parallel_tool_calls_keep_order_and_arguments():
    blocks = [
        {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": [2]}},
        {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
    ]
    parsed = completion(message(blocks, stop_reason="tool_use"))

    assert parsed.choices[0].message.content is None
    assert [
        (call.id, call.function.name, call.function.arguments) for call in parsed.choices[0].message.tool_calls
    ] == [
        ("toolu_1", "add", '{"a":1,"b":[2]}'),
        ("toolu_2", "now", "{}"),
    ]
    assert parsed.choices[0].finish_reason == "tool_calls"


def test_thinking_is_shown_and_kept_with_its_signature():
    blocks = [
        {"type": "thinking", "thinking": "one ", "signature": "sig-1"},
        {"type": "redacted_thinking", "data": "secret"},
        {"type": "thinking", "thinking": "two", "signature": "sig-2"},
        {"type": "text", "text": "3"},
    ]
    reply = completion(message(blocks)).choices[0].message

    assert reply.content == "3"
    assert reply.reasoning_content == "one two"
    assert reply.thinking_blocks == blocks[:3]


@pytest.mark.parametrize("stop_reason", typing.get_args(StopReason))
def test_every_stop_reason_of_the_package_has_a_finish_reason(stop_reason):
    assert stop_reason in FINISH_REASONS
    assert completion(message([], stop_reason=stop_reason)).choices[0].finish_reason == FINISH_REASONS[stop_reason]


def test_a_refusal_says_why_where_the_api_does():
    parsed = completion(
        message(
            [], stop_reason="refusal", stop_details={"type": "refusal", "category": "bio", "explanation": "Not this."}
        )
    )

    assert parsed.choices[0].finish_reason == "content_filter"
    assert parsed.choices[0].message.refusal == "Not this."


def test_usage_counts_cached_input_once_and_in_the_total():
    usage = {
        "input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 1000, "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2}, "service_tier": "standard",
    }  # fmt: skip
    parsed = completion(message([], usage=usage))

    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (1110, 5, 1115)
    assert parsed.usage.prompt_tokens_details.cached_tokens == 100
    assert parsed.usage.prompt_tokens_details.cache_write_tokens == 1000
    assert parsed.usage.completion_tokens_details.reasoning_tokens == 2
    assert parsed.service_tier == "default"


def test_a_reply_without_usage_claims_none():
    reply = message([{"type": "text", "text": "x"}])
    del reply["usage"]

    assert "usage" not in from_anthropic(reply, model="asked", created=0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "thinking", "input", "id", "error", "message", "explanation"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["id", "model", "content", "stop_reason", "stop_details", "usage"]), JSON))
def test_a_reply_of_any_shape_is_still_a_chat_completion(reply):
    assert completion(reply).choices[0].message.role == "assistant"


class TestErrors:
    @pytest.mark.parametrize("kind", [kind for kind in typing.get_args(ErrorType) if not kind.startswith("memory_")])
    def test_every_error_type_of_the_package_is_mapped(self, kind):
        assert kind in ERROR_KINDS

    @pytest.mark.parametrize(
        ("status", "kind", "expected_status", "expected_type", "expected_code"),
        [
            (400, "invalid_request_error", 400, "invalid_request_error", None),
            (401, "authentication_error", 401, "invalid_request_error", "invalid_api_key"),
            (402, "billing_error", 402, "insufficient_quota", "insufficient_quota"),
            (403, "permission_error", 403, "invalid_request_error", "permission_denied"),
            (404, "not_found_error", 404, "invalid_request_error", "not_found"),
            (429, "rate_limit_error", 429, "rate_limit_error", "rate_limit_exceeded"),
            (500, "api_error", 500, "server_error", None),
            (504, "timeout_error", 504, "server_error", "upstream_timeout"),
            (529, "overloaded_error", 503, "server_error", "overloaded"),
            (200, "overloaded_error", 503, "server_error", "overloaded"),
            (200, "rate_limit_error", 429, "rate_limit_error", "rate_limit_exceeded"),
        ],
    )
    def test_error_types_become_openais(self, status, kind, expected_status, expected_type, expected_code):
        body = ErrorResponse.model_validate(
            {"type": "error", "error": {"type": kind, "message": "It went wrong."}}
        ).model_dump(mode="json")

        assert error_from_anthropic(status, body) == (
            expected_status,
            {"error": {"message": "It went wrong.", "type": expected_type, "param": None, "code": expected_code}},
        )

    def test_a_prompt_that_is_too_long_is_told_apart(self):
        body = {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
        }

        assert error_from_anthropic(400, body)[1]["error"]["code"] == "context_length_exceeded"

    @pytest.mark.parametrize(
        ("status", "expected_status", "expected_type"),
        [
            (502, 502, "server_error"),
            (418, 418, "invalid_request_error"),
            (529, 503, "server_error"),
            (200, 500, "server_error"),
        ],
    )
    def test_a_body_that_is_not_theirs_is_not_quoted(self, status, expected_status, expected_type):
        reply_status, body = error_from_anthropic(status, "<html>key sk-ant-1</html>")

        assert (reply_status, body["error"]["type"]) == (expected_status, expected_type)
        assert "sk-ant" not in body["error"]["message"]
        assert str(status) in body["error"]["message"]

    @given(st.integers(100, 999), JSON)
    def test_any_body_becomes_an_error_object(self, status, body):
        reply_status, answer = error_from_anthropic(status, body)

        assert 400 <= reply_status <= 599
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert answer["error"]["message"]
