"""Reasoning effort as what each Claude generation understands, judged by the `anthropic` package's own parameter types."""

from __future__ import annotations

import pytest

OLD = "claude-sonnet-4-5-20250929"
NEW = "claude-opus-4-8"
PLAIN = "claude-3-5-haiku-20241022"
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


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "output_config"),
    [
        (OLD, "minimal", {"type": "enabled", "budget_tokens": 1024}, None),
        (OLD, "medium", {"type": "enabled", "budget_tokens": 8192}, None),
        ("claude-3-7-sonnet-latest", "low", {"type": "enabled", "budget_tokens": 2048}, None),
        ("claude-opus-4-20250514", "low", {"type": "enabled", "budget_tokens": 2048}, None),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", "low", {"type": "enabled", "budget_tokens": 2048}, None),
        ("some-other-model", "low", {"type": "enabled", "budget_tokens": 2048}, None),
        ("claude-opus-4-6", "minimal", {"type": "adaptive"}, {"effort": "low"}),
        (NEW, "xhigh", {"type": "adaptive"}, {"effort": "xhigh"}),
        ("claude-mythos-preview", "high", {"type": "adaptive"}, {"effort": "high"}),
        ("claude-sonnet-5", "max", {"type": "adaptive"}, {"effort": "max"}),
        (NEW, "none", {"type": "disabled"}, None),
        (OLD, "none", None, None),
        (PLAIN, "none", None, None),
    ],
)
def test_effort_becomes_what_the_generation_understands(
    translate, model, effort, thinking, output_config, assert_anthropic_request
):
    request = translate(USER, model=model, reasoning_effort=effort, max_tokens=20_000)

    assert (request.get("thinking"), request.get("output_config")) == (thinking, output_config)
    assert_anthropic_request(request)


@pytest.mark.parametrize(("limit", "budget"), [(1025, 1024), (3000, 1500), (100_000, 16384)])
def test_a_budget_leaves_room_for_the_answer(translate, limit, budget):
    request = translate(USER, reasoning_effort="high", max_tokens=limit)

    assert request["thinking"]["budget_tokens"] == budget < request["max_tokens"] == limit


def test_the_vendors_own_field_is_passed_on(translate, assert_anthropic_request):
    thinking = {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}
    request = translate(USER, thinking=thinking, max_tokens=3000)

    assert request["thinking"] == thinking
    assert_anthropic_request(request)


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (OLD, {"reasoning_effort": "a lot"}, "reasoning_effort"),
        (OLD, {"reasoning_effort": "low", "max_tokens": 1024}, "reasoning_effort"),
        (PLAIN, {"reasoning_effort": "low"}, "reasoning_effort"),
        (OLD, {"reasoning_effort": "low", "thinking": {"type": "adaptive"}}, "reasoning_effort"),
        (
            OLD,
            {"thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 5000},
            "thinking.budget_tokens",
        ),
        (OLD, {"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens"),
        (OLD, {"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        (OLD, {"thinking": {"type": "adaptive", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        (OLD, {"thinking": {"type": "hard"}}, "thinking.type"),
        (OLD, {"thinking": True}, "thinking"),
        (OLD, {"reasoning_effort": "low", "temperature": 0}, "temperature"),
        ("claude-opus-4-6", {"reasoning_effort": "low", "temperature": 0.5}, "temperature"),
        (OLD, {"reasoning_effort": "low", "top_p": 0.9}, "top_p"),
        (OLD, {"reasoning_effort": "low", "tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_a_generation_cannot_think_is_named(refused, model, fields, param):
    assert refused(USER, model=model, **fields).param == param


def test_a_tool_loop_that_lost_its_thinking_is_told_what_to_send(translate, refused):
    loop = [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    ]

    error = refused(*loop, reasoning_effort="low")

    assert error.param == "messages[1].thinking_blocks"
    assert "thinking" in translate(*loop, {"role": "assistant", "content": "1"}, USER, reasoning_effort="low"), (
        "a loop that is over does not matter"
    )
    assert "thinking" in translate(*loop, model=NEW, reasoning_effort="low"), "adaptive thinking does not insist"
