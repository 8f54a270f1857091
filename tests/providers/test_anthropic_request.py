"""Chat completion requests as Messages API requests, field by field, judged by the `anthropic` package's own parameter types."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params

from hookline.providers.anthropic_request import FIELDS, to_anthropic
from hookline.providers.untranslatable import Untranslatable

OLD = "claude-sonnet-4-5-20250929"
NEW = "claude-opus-4-8"
USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
PNG = "data:image/png;base64,iVBORw0KGgo="


def test_smallest_request(translate, assert_anthropic_request):
    request = translate(USER)

    assert request == {"model": OLD, "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]}
    assert_anthropic_request(request)


def test_request_with_everything_fits_the_vendors_types(translate, assert_anthropic_request):
    request = translate(
        {
            "role": "system",
            "content": [{"type": "text", "text": "long", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
                {"type": "image_url", "image_url": {"url": "https://example.test/a.png"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
            ],
        },
        {
            "role": "assistant",
            "content": "adding",
            "tool_calls": [CALL],
            "thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}],
        },
        {
            "role": "tool",
            "tool_call_id": "call_1",
            "content": [{"type": "text", "text": "1"}, {"type": "image_url", "image_url": {"url": PNG}}],
        },
        model="claude-sonnet-4-6",
        tools=[TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
        stop=["END", "STOP"],
        max_completion_tokens=500,
        reasoning_effort="medium",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "description": "d", "strict": True, "schema": {"type": "object"}},
        },
        user="u-1",
        service_tier="default",
        cache_control={"type": "ephemeral"},
        stream=True,
    )

    assert_anthropic_request(request)
    assert request["output_config"] == {
        "effort": "medium",
        "format": {"type": "json_schema", "schema": {"description": "d", "type": "object"}},
    }
    assert request["metadata"] == {"user_id": "u-1"}
    assert request["stop_sequences"] == ["END", "STOP"]


@pytest.mark.parametrize(
    ("fields", "cap", "expected"),
    [
        ({}, None, 4096),
        ({"max_tokens": 9}, None, 9),
        ({"max_completion_tokens": 8, "max_tokens": 9}, None, 8),
        ({"max_tokens": 9}, 5, 5),
        ({}, 5000, 4096),
    ],
)
def test_the_smallest_limit_wins(translate, fields, cap, expected):
    assert translate(USER, cap=cap, **fields)["max_tokens"] == expected


@pytest.mark.parametrize("model", [OLD, "claude-opus-4-6", "claude-2.1", "minimax-m2"])
def test_models_up_to_4_6_get_sampling_fields(translate, model):
    request = translate(USER, model=model, temperature=0, top_p=0.5)

    assert (request["temperature"], request["top_p"]) == (0, 0.5)


@pytest.mark.parametrize("model", [OLD, NEW])
def test_sampling_at_its_default_is_not_sent(translate, model):
    request = translate(USER, model=model, temperature=1, top_p=1.0)

    assert request.keys() == {"model", "max_tokens", "messages"}


@pytest.mark.parametrize("harmless", [name for name, field in FIELDS.items() if field.harmless])
def test_values_that_ask_for_nothing_are_accepted_and_not_sent(translate, harmless):
    for value in FIELDS[harmless].harmless:
        assert translate(USER, **{harmless: value}) == translate(USER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2), ("n", True), ("store", True), ("logprobs", True), ("top_logprobs", 2), ("logit_bias", {"1": 1}), ("presence_penalty", 0.1),
        ("frequency_penalty", -1), ("seed", 7), ("modalities", ["text", "audio"]), ("audio", {}), ("verbosity", "low"), ("prediction", {}),
        ("web_search_options", {}), ("functions", [{}]), ("function_call", "auto"), ("service_tier", "flex"), ("temperature", 1.5),
        ("temperature", "hot"), ("temperature", True), ("top_p", -0.1), ("max_tokens", 0), ("max_tokens", 1.5), ("max_completion_tokens", "9"), ("stop", " "),
        ("stop", 3), ("stream", "yes"), ("user", 3), ("response_format", "json"), ("cache_control", 1), ("top_k", 3), ("made_up", 0),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_by_name(refused, field, value):
    error = refused(USER, **{field: value})

    assert error.param == field
    assert f'"{field}"' in str(error)


@pytest.mark.parametrize("field", ["temperature", "top_p"])
def test_new_models_refuse_sampling_before_they_are_asked(refused, field):
    error = refused(USER, model=NEW, **{field: 0.3})

    assert error.param == field
    assert NEW in str(error)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"type": "json_object"}, "response_format.type"),
        ({"type": "grammar"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
    ],
)
def test_formats_without_a_schema_are_refused(refused, value, param):
    assert refused(USER, response_format=value).param == param


def test_nulls_are_absent(translate):
    assert translate(USER, **dict.fromkeys(set(FIELDS) - {"messages", "model"})) == translate(USER)


def test_labels_and_hints_change_nothing(translate, refused):
    assert translate(
        USER, metadata={"a": "b"}, prompt_cache_key="k", stream_options={"include_usage": True}
    ) == translate(USER)
    assert refused(USER, stream_options={"include_obfuscation": True}).param == "stream_options.include_obfuscation"


def test_every_field_the_openai_sdk_knows_is_decided():
    known = completion_create_params.CompletionCreateParamsBase.__annotations__.keys() | {"stream"}

    assert known - FIELDS.keys() == set()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    [
        "system",
        "user",
        "assistant",
        "tool",
        "text",
        "image_url",
        "file",
        "function",
        "thinking",
        PNG,
        "{}",
        "low",
        "auto",
        "json_schema",
        "ephemeral",
    ]
)
KEYS = st.sampled_from(
    ["role", "content", "type", "text", "image_url", "url", "file", "file_data", "tool_calls", "function", "name", "arguments", "id", "tool_call_id", "thinking_blocks", "signature", "cache_control", "json_schema", "schema", "parameters"]
)  # fmt: skip
NESTED = st.recursive(
    WORDS | JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=15
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), NESTED, max_size=4),
    st.lists(st.dictionaries(KEYS, NESTED, max_size=4), max_size=3),
)
def test_any_json_becomes_a_request_or_a_named_error(fields, messages):
    for payload in (
        fields,
        {**fields, "messages": messages},
        {**fields, "messages": [USER, *messages]},
        {**fields, "messages": [USER]},
    ):
        try:
            request = to_anthropic(payload, model=OLD, default_max_tokens=2000)
        except Untranslatable as refusal:
            names = refusal.param
        else:
            names = request["messages"]
        assert names
