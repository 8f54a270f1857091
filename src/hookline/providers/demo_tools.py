"""Demo tools: which tools a demo model calls, and when it has called enough.

Lives here: choosing tools for a request, the calls, the results that came back. Elsewhere: arguments that fit a schema (demo_schema.py), what is said instead (demo_chat.py).
Idea: every loop ends. An agent that demands a call each time (`tool_choice = "required"`) ends its loop itself, at the tool that takes its answer: so each tool is called once, in their order,
and then the last one, which is where agents put that tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import orjson

from hookline.chat_view import ChatView
from hookline.providers.demo_behaviours import Answer
from hookline.providers.demo_schema import example_of

Tool = dict[str, Any]


def choose_tools(view: ChatView, tool_choice: Any, answer: Answer) -> list[Tool]:
    """The tools to call now; empty if it is time to speak."""
    tools = [tool for tool in view.tools if tool.get("type") == "function" and isinstance(tool.get("function"), dict)]
    if isinstance(tool_choice, dict) and tool_choice.get("type") == "allowed_tools":
        tools, tool_choice = _allowed(tools, tool_choice.get("allowed_tools"))
    if not tools or tool_choice == "none":
        return []
    if isinstance(tool_choice, dict):
        function = tool_choice.get("function")
        named = function.get("name") if isinstance(function, dict) else None
        return [tool for tool in tools if tool["function"].get("name") == named][:1]
    if tool_choice == "required":
        called = set(_called(view.messages))
        fresh = [tool for tool in tools if tool["function"].get("name") not in called] or tools[-1:]
        return fresh if answer == "tools-parallel" else fresh[:1]
    if view.messages[-1].get("role") == "tool":
        return []
    return tools if answer == "tools-parallel" else tools[:1] if answer == "tools" else []


def call_tool(tool: Tool, seed: str, number: int) -> dict[str, Any]:
    """The call of a tool, as the message has it."""
    function = tool["function"]
    arguments = orjson.dumps(example_of(function.get("parameters") or {"type": "object"})).decode()
    return {
        "id": f"call_{seed[:20]}{number:04}",
        "type": "function",
        "function": {"name": str(function.get("name")), "arguments": arguments},
    }


def tool_results(messages: Sequence[dict[str, Any]]) -> list[Any]:
    """The contents of the tool messages at the end, in order."""
    found = [message.get("content") for message in takewhile(_is_result, reversed(messages))]
    return found[::-1]


def _is_result(message: dict[str, Any]) -> bool:
    return message.get("role") == "tool"


def _allowed(tools: list[Tool], allowed: Any) -> tuple[list[Tool], Any]:
    given = allowed.get("tools") if isinstance(allowed, dict) else None
    functions = [one.get("function") for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return [t for t in tools if t["function"].get("name") in names], allowed.get("mode") if given else None


def _called(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Names called since the user last spoke."""
    for message in takewhile(lambda message: message.get("role") != "user", reversed(messages)):
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                yield str(function.get("name"))
