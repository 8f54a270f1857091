"""The conversation of a chat completion as turns of the Messages API."""

from __future__ import annotations

import pytest

from hookline.providers.anthropic_request import to_anthropic
from hookline.providers.untranslatable import Untranslatable

OLD = "claude-sonnet-4-5-20250929"
USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
PNG = "data:image/png;base64,iVBORw0KGgo="


def test_system_and_developer_messages_are_collected_in_order_wherever_they_stand(translate):
    request = translate(
        {"role": "system", "content": "one"},
        USER,
        {"role": "developer", "content": "two"},
        {"role": "assistant", "content": "yes"},
        USER,
    )

    assert request["system"] == [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert [turn["role"] for turn in request["messages"]] == ["user", "assistant", "user"]


def test_results_of_parallel_calls_share_one_user_turn_with_what_the_user_says_next(translate):
    second = {**CALL, "id": "call_2"}
    request = translate(
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL, second]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
        {"role": "user", "content": "and?"},
    )

    assert request["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "call_1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "call_2", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "1"},
                {"type": "tool_result", "tool_use_id": "call_2"},
                {"type": "text", "text": "and?"},
            ],
        },
    ]


def test_an_sdk_message_dumped_with_its_nulls_is_taken_back(translate):
    echoed = {
        "role": "assistant",
        "content": "yes",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }

    assert translate(USER, echoed, USER)["messages"][1] == {"role": "assistant", "content": "yes"}


def test_a_cache_mark_on_a_message_marks_its_last_block(translate):
    request = translate({**USER, "cache_control": {"type": "ephemeral"}})

    assert request["messages"][0]["content"] == [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]


def test_ids_of_other_providers_are_made_to_fit_alike_in_call_and_result(translate):
    request = translate(
        USER,
        {"role": "assistant", "tool_calls": [{**CALL, "id": "functions.add:0"}]},
        {"role": "tool", "tool_call_id": "functions.add:0", "content": "1"},
    )

    assert (
        request["messages"][1]["content"][0]["id"]
        == "functions_add_0"
        == request["messages"][2]["content"][0]["tool_use_id"]
    )


def test_image_jpg_is_the_name_people_use_for_jpeg(translate):
    request = translate(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/jpg;base64,/9j/"}}]}
    )

    assert request["messages"][0]["content"][0]["source"] == {
        "type": "base64",
        "media_type": "image/jpeg",
        "data": "/9j/",
    }


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[1]"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "function", "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": ""}, "messages[1].content"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": "x", "name": "ann"}, "messages[1].name"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages[1].content[0].text"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {}}]},
            "messages[1].content[0].prompt_cache_breakpoint",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "forever"}}]},
            "messages[1].content[0].cache_control.type",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "https://x.test"}]},
            "messages[1].content[0].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/tiff;base64,abc"}}],
            },
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]},
            "messages[1].content[0].image_url.detail",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]},
            "messages[1].content[0].file.file_id",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:text/csv;base64,YQ=="}}]},
            "messages[1].content[0].file.file_data",
        ),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
            "messages[1].content[0].type",
        ),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages[1].audio"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}, "messages[1].function_call"),
        ({"role": "assistant", "tool_calls": 0}, "messages[1].tool_calls"),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {}}]},
            "messages[1].tool_calls[0].custom",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]},
            "messages[1].tool_calls[0].function",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[]"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "thinking_blocks": [{"type": "thinking", "thinking": "t"}]},
            "messages[1].thinking_blocks[0].signature",
        ),
        ({"role": "assistant", "thinking_blocks": [{"type": "text"}]}, "messages[1].thinking_blocks[0].type"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
    ],
)
def test_what_cannot_be_said_is_named_with_its_path(refused, message, param):
    error = refused(USER, message)

    assert error.param == param
    assert param in str(error)


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "be nice"}], None, {}, "hi"])
def test_nothing_to_answer_names_messages(messages):
    with pytest.raises(Untranslatable) as caught:
        to_anthropic({"messages": messages}, model=OLD, default_max_tokens=10)

    assert caught.value.param == "messages"


def test_text_without_a_visible_character_vanishes(translate, refused):
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    answer = {"role": "assistant", "content": "\n\n", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": " "}]}

    turns = translate(USER, answer, result)["messages"]

    assert turns[1]["content"] == [{"type": "tool_use", "id": "call_1", "name": "add", "input": {}}]
    assert turns[2]["content"] == [{"type": "tool_result", "tool_use_id": "call_1"}]
    assert refused({"role": "user", "content": " "}).param == "messages[0].content"


def test_a_text_file_is_a_document(translate, assert_anthropic_request):
    file = {"file_data": "data:text/plain;base64,aMOkIQ==", "filename": "a.txt"}

    request = translate({"role": "user", "content": [{"type": "file", "file": file}]})

    source = {"type": "text", "media_type": "text/plain", "data": "hä!"}
    assert request["messages"][0]["content"] == [{"type": "document", "source": source, "title": "a.txt"}]
    assert_anthropic_request(request)


@pytest.mark.parametrize("data", ["!", "/w=="])
def test_a_text_file_that_is_no_text_is_named(refused, data):
    file = {"type": "file", "file": {"file_data": f"data:text/plain;base64,{data}"}}

    assert refused({"role": "user", "content": [file]}).param == "messages[0].content[0].file.file_data"
