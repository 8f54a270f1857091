"""Anthropic tools: function tools, the choice among them, and calls in a conversation.

Lives here: `tools`, `tool_choice` and `parallel_tool_calls` of a request; an assistant message's tool calls; tool ids.
Elsewhere: tool results, which are messages (anthropic_messages.py); calls in replies (anthropic_reply.py, anthropic_stream.py).
Idea: only functions exist on both sides; a tool choice there carries whether calls may be parallel, which is a field of its own here."""

from __future__ import annotations

import re

import orjson

from hookline.providers.allowed_tools import read_allowed_tools
from hookline.providers.anthropic_content import TARGET, read_cache_control
from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_bool,
    read_choice,
    read_name,
    read_object,
    read_optional_list,
    read_text,
    refuse_unknown,
    show,
)

_NOT_ID = re.compile(r"[^a-zA-Z0-9_-]")
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


def write_tools(payload: JsonObject, request: JsonObject) -> None:
    """Put `tools` and `tool_choice` into `request`. Raises `Untranslatable`."""
    tools = [
        _read_tool(tool, f"tools[{number}]")
        for number, tool in enumerate(read_optional_list(payload.get("tools"), "tools"))
    ]
    wanted = payload.get("tool_choice")
    if isinstance(wanted, dict) and wanted.get("type") == "allowed_tools":
        refuse_unknown(wanted, ("type", "allowed_tools"), "tool_choice", target=TARGET)
        wanted, allowed = read_allowed_tools(
            wanted.get("allowed_tools"),
            "tool_choice.allowed_tools",
            known=[tool["name"] for tool in tools],
            read_function=_read_function_name,
        )
        tools = [tool for tool in tools if tool["name"] in allowed]
    choice = _read_choice(wanted)
    may_be_parallel = payload.get("parallel_tool_calls")
    if (
        may_be_parallel is not None
        and not read_bool(may_be_parallel, "parallel_tool_calls")
        and choice["type"] != "none"
    ):
        choice["disable_parallel_tool_use"] = True
    if tools:
        request["tools"] = tools
        if choice != {"type": "auto"}:
            request["tool_choice"] = choice
    elif choice["type"] in ("any", "tool"):
        raise Untranslatable(
            '"tool_choice" asks for a tool call, but "tools" is empty; send tools or leave tool_choice out',
            param="tool_choice",
        )


def _read_choice(value: object) -> JsonObject:
    if value is None:
        return {"type": "auto"}
    if isinstance(value, str):
        return {"type": _CHOICES[read_choice(value, "tool_choice", _CHOICES)]}
    choice = read_object(value, "tool_choice")
    if choice.get("type") != "function":
        raise Untranslatable(
            f'"tool_choice.type" = {show(choice.get("type"))} cannot be sent to an Anthropic model; name functions, or send auto, required or none',
            param="tool_choice.type",
        )
    return {"type": "tool", "name": _read_function_name(choice, "tool_choice")}


def _read_function_name(value: JsonObject, path: str) -> str:
    """The name in `{"type": "function", "function": {"name": ...}}`."""
    refuse_unknown(value, ("type", "function"), path, target=TARGET)
    read_choice(value.get("type"), f"{path}.type", ("function",))
    function = read_object(value.get("function"), f"{path}.function")
    refuse_unknown(function, ("name",), f"{path}.function", target=TARGET)
    return read_name(function.get("name"), f"{path}.function.name")


def _read_tool(value: object, path: str) -> JsonObject:
    tool = read_object(value, path)
    if tool.get("type") != "function":
        raise Untranslatable(
            f'"{path}.type" = {show(tool.get("type"))} cannot be sent to an Anthropic model; send function tools',
            param=f"{path}.type",
        )
    refuse_unknown(tool, ("type", "function", "cache_control"), path, target=TARGET)
    function = read_object(tool.get("function"), f"{path}.function")
    refuse_unknown(
        function, ("name", "description", "parameters", "strict", "cache_control"), f"{path}.function", target=TARGET
    )
    written: JsonObject = {
        "name": read_name(function.get("name"), f"{path}.function.name"),
        "input_schema": _input_schema(function.get("parameters"), f"{path}.function.parameters"),
    }
    if function.get("description") is not None:
        written["description"] = read_text(function["description"], f"{path}.function.description")
    if function.get("strict") is not None and read_bool(function["strict"], f"{path}.function.strict"):
        written["strict"] = True
    for mark, where in ((tool.get("cache_control"), path), (function.get("cache_control"), f"{path}.function")):
        if mark is not None:
            written["cache_control"] = read_cache_control(mark, f"{where}.cache_control")
    return written


def _input_schema(value: object, path: str) -> JsonObject:
    schema = {} if value is None else read_object(value, path)
    if schema.get("type", "object") != "object":
        raise Untranslatable(
            f'"{path}.type" must be "object": an Anthropic model calls tools with an object', param=f"{path}.type"
        )
    return {"type": "object", **schema} if schema else {"type": "object", "properties": {}}


def read_tool_call(value: object, path: str) -> JsonObject:
    """A tool call of an assistant message as a `tool_use` block. Raises `Untranslatable`."""
    call = read_object(value, path)
    refuse_unknown(call, ("id", "type", "function", "index"), path, target=TARGET)
    read_choice(call.get("type", "function"), f"{path}.type", ("function",))
    function = read_object(call.get("function"), f"{path}.function")
    # parsed_arguments: the openai package adds it, and sends it back.
    refuse_unknown(function, ("name", "arguments", "parsed_arguments"), f"{path}.function", target=TARGET)
    return {
        "type": "tool_use",
        "id": write_tool_id(read_name(call.get("id"), f"{path}.id")),
        "name": read_name(function.get("name"), f"{path}.function.name"),
        "input": _arguments(function.get("arguments"), f"{path}.function.arguments"),
    }


def _arguments(value: object, path: str) -> JsonObject:
    text = read_text(value, path)
    try:
        arguments = orjson.loads(text) if text.strip() else {}
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise Untranslatable(
            f'"{path}" must be a JSON object in a string: an Anthropic model takes no other arguments', param=path
        )
    return arguments


def write_tool_id(call_id: str) -> str:
    """The API takes letters, digits, _ and - in ids; other providers' ids (a conversation that moved here) are made to fit, the same way each time."""
    return _NOT_ID.sub("_", call_id)
