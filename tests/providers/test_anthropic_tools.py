"""Function tools and the choice among them, judged by the `anthropic` package's own parameter types."""

from __future__ import annotations

import pytest

USER = {"role": "user", "content": "hi"}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


def test_a_function_becomes_a_tool(translate, assert_anthropic_request):
    request = translate(USER, tools=[TOOL])

    function = TOOL["function"]
    assert request["tools"] == [
        {"name": "add", "description": "Adds.", "input_schema": function["parameters"], "strict": True}
    ]
    assert_anthropic_request(request)


@pytest.mark.parametrize("parameters", [None, {}])
def test_a_function_without_parameters_takes_an_empty_object(translate, parameters):
    request = translate(USER, tools=[{"type": "function", "function": {"name": "now", "parameters": parameters}}])

    assert request["tools"] == [{"name": "now", "input_schema": {"type": "object", "properties": {}}}]


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        ("auto", True, None),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "add"}}, None, {"type": "tool", "name": "add"}),
    ],
)
def test_tool_choice_carries_whether_calls_may_be_parallel(
    translate, choice, parallel, expected, assert_anthropic_request
):
    request = translate(USER, tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)

    assert request.get("tool_choice") == expected
    assert_anthropic_request(request)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": 0}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters.type",
        ),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_what_is_not_a_function_tool_is_named(refused, fields, param):
    assert refused(USER, **fields).param == param


def allowed(mode: str, *names: str) -> dict[str, object]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(("mode", "expected"), [("auto", None), ("required", {"type": "any"})])
def test_allowed_tools_leave_the_others_out(translate, assert_anthropic_request, mode, expected):
    other = {"type": "function", "function": {"name": "now"}}

    request = translate(USER, tools=[TOOL, other], tool_choice=allowed(mode, "now"))

    assert ([tool["name"] for tool in request["tools"]], request.get("tool_choice")) == (["now"], expected)
    assert_anthropic_request(request)


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        (allowed("none", "add"), "tool_choice.allowed_tools.mode"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        (allowed("auto", "add", "gone"), "tool_choice.allowed_tools.tools[1]"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "custom", "name": "x"}]}},
            "tool_choice.allowed_tools.tools[0].name",
        ),
    ],
)
def test_allowed_tools_that_are_no_functions_of_the_request_are_named(refused, choice, param):
    assert refused(USER, tools=[TOOL], tool_choice=choice).param == param
