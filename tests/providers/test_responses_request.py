"""Responses requests as chat completion requests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from hookline.providers.responses_reasoning import pack_thinking, unpack_thinking
from hookline.providers.responses_request import FIELDS, to_chat
from hookline.providers.untranslatable import Untranslatable

TOOL = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}
PNG = "data:image/png;base64,iVBORw0KGgo="
BLOCKS = [{"type": "thinking", "thinking": "hm", "signature": "sig"}]


def chat(given_input: Any = "hi", **fields: Any) -> dict[str, Any]:
    return to_chat({"model": "m", "input": given_input, **fields})


def refused(given_input: Any = "hi", **fields: Any) -> str:
    with pytest.raises(Untranslatable) as caught:
        chat(given_input, **fields)
    assert caught.value.param in str(caught.value)
    return caught.value.param


def test_a_string_is_a_user_message_behind_the_instructions():
    assert chat("hi", instructions="be nice") == {
        "model": "m",
        "messages": [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hi"}],
    }


def test_fields_have_their_chat_names():
    schema = {"type": "object", "properties": {}}
    payload = {
        "max_output_tokens": 50, "temperature": 0.5, "top_p": 0.9, "user": "u", "safety_identifier": "s", "service_tier": "auto", "stream": True,
        "parallel_tool_calls": False, "tools": [TOOL], "tool_choice": {"type": "function", "name": "add"}, "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"},
    }  # fmt: skip

    translated = chat(**payload)

    assert translated == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "user": "u",
        "safety_identifier": "s", "service_tier": "auto", "stream": True, "stream_options": {"include_usage": True}, "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "add"}}, "reasoning_effort": "low", "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    }  # fmt: skip


def test_the_limit_has_the_name_the_answering_model_knows():
    payload = {"model": "alias", "input": "x", "max_output_tokens": 5}

    assert to_chat(payload, upstream_model="o3")["max_completion_tokens"] == 5
    assert to_chat(payload)["max_tokens"] == 5


class TestInput:
    def test_content_parts(self):
        parts = [
            {"type": "input_text", "text": "look"},
            {"type": "input_image", "image_url": PNG, "detail": "low"},
            {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"},
        ]

        assert chat([{"role": "user", "content": parts}])["messages"] == [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
                    {
                        "type": "file",
                        "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"},
                    },
                ],
            }
        ]

    def test_developer_messages_are_system_messages_and_lone_texts_are_strings(self):
        items = [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be nice"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"role": "assistant", "content": "yes"},
        ]

        assert [(message["role"], message["content"]) for message in chat(items)["messages"]] == [
            ("system", "be nice"),
            ("user", "hi"),
            ("assistant", "yes"),
        ]

    def test_the_items_of_one_answer_are_one_assistant_message(self):
        items = [
            {"role": "user", "content": "2+3, and the time?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": pack_thinking(BLOCKS)},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Both.", "annotations": [], "logprobs": []}],
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "status": "completed",
                "call_id": "call_1",
                "name": "add",
                "arguments": "{}",
            },
            {"type": "function_call", "call_id": "call_2", "name": "now", "arguments": ""},
            {"type": "function_call_output", "call_id": "call_1", "output": "5"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "noon"}]},
        ]

        assert chat(items)["messages"][1:] == [
            {
                "role": "assistant",
                "content": "Both.",
                "thinking_blocks": BLOCKS,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}},
                    {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
                ],
            },
            {"role": "tool", "content": "5", "tool_call_id": "call_1"},
            {"role": "tool", "content": "noon", "tool_call_id": "call_2"},
        ]

    def test_nothing_comes_between_calls_and_their_results(self):
        items = [
            {"role": "user", "content": "go"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"role": "assistant", "content": "Calling."},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
        ]

        assert [message["role"] for message in chat(items)["messages"]] == ["user", "assistant", "tool"]

    def test_reasoning_of_another_provider_has_no_place_in_a_chat(self):
        items = [
            {
                "type": "reasoning",
                "id": "rs",
                "summary": [{"type": "summary_text", "text": "hm"}],
                "encrypted_content": "gAAAA",
            },
            {"role": "assistant", "content": "yes"},
        ]

        assert chat(items)["messages"] == [{"role": "assistant", "content": "yes"}]

    @pytest.mark.parametrize(
        ("given_input", "param"),
        [
            (None, "input"),
            ([], "input"),
            (3, "input"),
            (["x"], "input[0]"),
            ([{"role": "tool", "content": "x"}], "input[0].role"),
            ([{"role": "user"}], "input[0].content"),
            ([{"role": "user", "content": [{"type": "input_audio"}]}], "input[0].content[0].type"),
            ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
            ([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "input[0].content[0].file_id"),
            (
                [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]}],
                "input[0].content[0].file_url",
            ),
            ([{"role": "system", "content": [{"type": "input_image", "image_url": PNG}]}], "input[0].content[0].type"),
            ([{"role": "assistant", "content": [{"type": "output_text", "text": 1}]}], "input[0].content[0].text"),
            ([{"type": "item_reference", "id": "msg_1"}], "input[0].type"),
            ([{"type": ["x"]}], "input[0].type"),
            ([{"type": "web_search_call", "id": "w"}], "input[0].type"),
            ([{"type": "function_call", "name": "f", "arguments": "{}"}], "input[0].call_id"),
            ([{"type": "function_call", "call_id": "c", "name": "f"}], "input[0].arguments"),
            ([{"type": "function_call_output", "call_id": "c"}], "input[0].output"),
        ],
    )
    def test_what_a_chat_cannot_hold_is_named_with_its_path(self, given_input, param):
        assert refused(given_input) == param

    def test_a_reference_to_a_kept_item_says_what_to_send_instead(self):
        """The Vercel AI SDK sends these from the second turn on, unless it is told `store: false`."""
        with pytest.raises(Untranslatable, match="store = false"):
            to_chat({"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}]})


class TestFields:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"conversation": "conv_1"}, "conversation"),
            ({"background": True}, "background"),
            ({"store": True}, "store"),
            ({"prompt": {"id": "p"}}, "prompt"),
            ({"truncation": "auto"}, "truncation"),
            ({"include": ["file_search_call.results"]}, "include[0]"),
            ({"include": "all"}, "include"),
            ({"top_logprobs": 3}, "top_logprobs"),
            ({"context_management": []}, "context_management"),
            ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
            ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
            ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
            ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.mode"),
            (
                {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
                "tool_choice.tools[0].type",
            ),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
            ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
            ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
            ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"temperature": "hot"}, "temperature"),
            ({"instructions": ["x"]}, "instructions"),
            ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
            ({"messages": []}, "messages"),
        ],
    )
    def test_what_cannot_be_sent_is_refused_by_name(self, fields, param):
        assert refused(**fields) == param

    def test_values_that_ask_for_nothing_and_what_is_only_echoed_are_not_sent(self):
        harmless = {name: field.harmless[0] for name, field in FIELDS.items() if field.harmless}
        echoed = {
            "metadata": {"a": "b"},
            "prompt_cache_key": "k",
            "max_tool_calls": 3,
            "stream_options": {},
            "include": ["reasoning.encrypted_content"],
        }

        assert chat(**harmless, **echoed) == chat()
        assert {name for name, field in FIELDS.items() if field.is_ignored} == echoed.keys()

    def test_nulls_are_absent(self):
        assert chat(**dict.fromkeys(FIELDS.keys() - {"input", "model"})) == chat()

    def test_allowed_tools_leave_the_others_out(self):
        other = {"type": "function", "name": "now", "parameters": None, "strict": None}
        choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}

        translated = chat(tools=[TOOL, other], tool_choice=choice)

        assert [tool["function"]["name"] for tool in translated["tools"]] == ["now"]
        assert translated["tool_choice"] == "required"

    def test_a_choice_without_tools_is_no_choice(self):
        assert chat(tools=[], tool_choice="auto", parallel_tool_calls=True) == chat()

    def test_every_field_the_openai_sdk_knows_is_decided(self):
        assert (ResponseCreateParamsBase.__annotations__.keys() | {"stream"}) - FIELDS.keys() == set()


def test_packed_thinking_comes_back_and_other_text_does_not():
    assert unpack_thinking(pack_thinking(BLOCKS)) == BLOCKS
    for foreign in (
        None,
        3,
        "",
        "gAAAA",
        "thinking_blocks:",
        "thinking_blocks:!!",
        "thinking_blocks:e30=",
        pack_thinking(BLOCKS)[:-5],
    ):
        assert unpack_thinking(foreign) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "message", "function_call", "function_call_output", "reasoning", "input_text", "output_text", "function", "auto"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "role", "content", "text", "call_id", "name", "arguments", "output", "encrypted_content", "format", "effort"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON, max_size=4))
def test_any_json_becomes_a_chat_or_a_named_error(payload):
    for attempt in (payload, {"input": "hi", **payload}):
        try:
            outcome: Any = to_chat(attempt)["messages"]
        except Untranslatable as refusal:
            outcome = refusal.param
        assert outcome
