"""Responses request: `/v1/responses` served by a provider that only chats.

Lives here: `FIELDS`, what becomes of every field of a Responses request (the docs table is made from it), and `to_chat`, which obeys it: fields, tools, formats.
Elsewhere: the input items (responses_input.py), the way back (responses_reply.py, responses_stream.py), when this is done (the provider).
Idea: what a chat provider can do in one call is translated: text, images, function tools, streams. Everything that rests on state kept elsewhere, or on tools run elsewhere, is an error with its name."""

from __future__ import annotations

from hookline.providers.allowed_tools import read_allowed_tools
from hookline.providers.chat_models import output_limit_field
from hookline.providers.field_table import Field, refuse_by_table
from hookline.providers.responses_input import TARGET, write_input
from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_bool,
    read_choice,
    read_name,
    read_number,
    read_object,
    read_optional_list,
    read_positive_int,
    read_text,
    refuse_unknown,
    show,
)

_STATELESS = "nothing is kept between calls here; send the whole conversation as input"

FIELDS: dict[str, Field] = {
    "model": Field("model", "as it is"),
    "input": Field("messages", "text, messages, function calls and their outputs"),
    "instructions": Field("messages", "the first system message"),
    "max_output_tokens": Field("max_tokens, max_completion_tokens", "the one that the model knows"),
    "temperature": Field("temperature", "as it is"),
    "top_p": Field("top_p", "as it is"),
    "stream": Field("stream", "with stream_options.include_usage"),
    "tools": Field("tools", "function tools"),
    "tool_choice": Field(
        "tool_choice", "none, auto, required, one named function, or allowed_tools, which leaves the other tools out"
    ),
    "parallel_tool_calls": Field("parallel_tool_calls", "as it is"),
    "text": Field("response_format, verbosity", "text, json_object and json_schema"),
    "reasoning": Field("reasoning_effort", "effort; a summary is what the provider shows of its thinking"),
    "user": Field("user", "as it is"),
    "safety_identifier": Field("safety_identifier", "as it is"),
    "service_tier": Field("service_tier", "as it is"),
    "metadata": Field("", "echoed in the reply", is_ignored=True),
    "prompt_cache_key": Field("", "a routing hint, echoed in the reply", is_ignored=True),
    "max_tool_calls": Field("", "limits hosted tools, and there are none; echoed in the reply", is_ignored=True),
    "stream_options": Field("", "obfuscation cannot be asked for", is_ignored=True),
    "include": Field("", "reasoning.encrypted_content is always there; nothing else can be included", is_ignored=True),
    "store": Field("", f"{_STATELESS} and store = false (absent is taken as false, and the reply says so)", (False,)),
    "background": Field("", "wait for the answer; send background = false", (False,)),
    "truncation": Field("", "shorten the input yourself; send disabled", ("disabled",)),
    "top_logprobs": Field("", "ask /v1/chat/completions for logprobs", (0,)),
    "previous_response_id": Field("", _STATELESS),
    "conversation": Field("", _STATELESS),
    "prompt": Field("", "stored prompts live with their provider; send the text as input"),
    "context_management": Field("", _STATELESS),
    "moderation": Field("", "leave it out"),
    "prompt_cache_options": Field("", "leave it out"),
    "prompt_cache_retention": Field("", "leave it out", ("in_memory",)),
    "background_options": Field("", "leave it out"),
    "access_programs": Field("", "leave it out"),
    "image": Field("", "leave it out"),
}
"""Every known field of a Responses request; a field that is not in this table is an error too."""

CHAT_FIELDS: dict[str, str] = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    r"response_format(\.json_schema)?": "text.format",
    r"(tools\[\d+\])\.function": r"\1",
    r"tool_choice\.function": "tool_choice",
}
"""Chat field, as a pattern -> this route's, for a refusal of the chat call."""


def to_chat(payload: JsonObject, *, upstream_model: str | None = None) -> JsonObject:
    """The chat completion request.

    In: the Responses request as parsed; the model that will answer, if its name is not the one in the request.
    Raises `Untranslatable` naming the first field that cannot be sent. The payload is not changed."""
    _refuse_what_cannot_be_sent(payload)
    chat: JsonObject = {}
    if payload.get("model") is not None:
        chat["model"] = read_name(payload["model"], "model")
    write_input(payload, chat)
    if payload.get("max_output_tokens") is not None:
        limit = read_positive_int(payload["max_output_tokens"], "max_output_tokens")
        chat[output_limit_field(upstream_model or chat.get("model", ""))] = limit
    for field, read in _COPIED.items():
        if payload.get(field) is not None:
            chat[field] = read(payload[field], field)
    _write_tools(payload, chat)
    _write_text(payload.get("text"), chat)
    _write_reasoning(payload.get("reasoning"), chat)
    if payload.get("stream") is not None and read_bool(payload["stream"], "stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return chat


_COPIED = {
    "temperature": read_number,
    "top_p": read_number,
    "parallel_tool_calls": read_bool,
    "user": read_text,
    "safety_identifier": read_text,
    "service_tier": read_text,
}
"""Fields that mean the same on both routes, with their type. `parallel_tool_calls` goes only where there are tools."""


def _refuse_what_cannot_be_sent(payload: JsonObject) -> None:
    refuse_unknown(payload, FIELDS, "", target=TARGET)
    refuse_by_table(payload, FIELDS, target=TARGET)
    for number, wanted in enumerate(read_optional_list(payload.get("include"), "include")):
        read_choice(wanted, f"include[{number}]", ("reasoning.encrypted_content",))
    if payload.get("metadata") is not None:
        for key, value in read_object(payload["metadata"], "metadata").items():
            read_text(value, f"metadata.{key}")
    if payload.get("prompt_cache_key") is not None:
        read_text(payload["prompt_cache_key"], "prompt_cache_key")
    if payload.get("max_tool_calls") is not None:
        read_positive_int(payload["max_tool_calls"], "max_tool_calls")
    options = payload.get("stream_options")
    if options is not None and read_object(options, "stream_options").get("include_obfuscation"):
        param = "stream_options.include_obfuscation"
        raise Untranslatable(f'"{param}" cannot be sent to {TARGET}: leave it out', param=param)


def _write_tools(payload: JsonObject, chat: JsonObject) -> None:
    tools = [
        _read_tool(tool, f"tools[{number}]")
        for number, tool in enumerate(read_optional_list(payload.get("tools"), "tools"))
    ]
    choice = payload.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        refuse_unknown(choice, ("type", "mode", "tools"), "tool_choice", target=TARGET)
        known = [tool["function"]["name"] for tool in tools]
        choice, allowed = read_allowed_tools(choice, "tool_choice", known=known, read_function=_read_function_name)
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
    if choice is not None:
        choice = _read_tool_choice(choice)
    if tools:
        chat["tools"] = tools
        if choice is not None:
            chat["tool_choice"] = choice
        return
    chat.pop("parallel_tool_calls", None)
    if choice not in (None, "auto", "none"):
        raise Untranslatable('"tool_choice" asks for a tool call, but "tools" is empty', param="tool_choice")


def _read_tool(value: object, path: str) -> JsonObject:
    tool = read_object(value, path)
    if tool.get("type") != "function":
        raise Untranslatable(
            f'"{path}.type" = {show(tool.get("type"))} cannot be sent to {TARGET}: it runs no hosted tools; send functions',
            param=f"{path}.type",
        )
    wanted = {name: item for name, item in tool.items() if item is not False}  # async, defer_loading: false is absent
    refuse_unknown(wanted, ("type", "name", "description", "parameters", "strict"), path, target=TARGET)
    function: JsonObject = {"name": read_name(tool.get("name"), f"{path}.name")}
    if tool.get("description") is not None:
        function["description"] = read_text(tool["description"], f"{path}.description")
    if tool.get("parameters") is not None:
        function["parameters"] = read_object(tool["parameters"], f"{path}.parameters")
    if tool.get("strict") is not None:
        function["strict"] = read_bool(tool["strict"], f"{path}.strict")
    return {"type": "function", "function": function}


def _read_tool_choice(value: object) -> str | JsonObject:
    if isinstance(value, str):
        return read_choice(value, "tool_choice", ("none", "auto", "required"))
    choice = read_object(value, "tool_choice")
    if choice.get("type") != "function":
        raise Untranslatable(
            f'"tool_choice.type" = {show(choice.get("type"))} cannot be sent to {TARGET}: name functions, or send auto, required or none',
            param="tool_choice.type",
        )
    return {"type": "function", "function": {"name": _read_function_name(choice, "tool_choice")}}


def _read_function_name(value: JsonObject, path: str) -> str:
    """The name in `{"type": "function", "name": ...}`."""
    refuse_unknown(value, ("type", "name"), path, target=TARGET)
    read_choice(value.get("type"), f"{path}.type", ("function",))
    return read_name(value.get("name"), f"{path}.name")


def _write_text(value: object, chat: JsonObject) -> None:
    if value is None:
        return
    text = read_object(value, "text")
    refuse_unknown(text, ("format", "verbosity"), "text", target=TARGET)
    if text.get("verbosity") is not None:
        chat["verbosity"] = read_choice(text["verbosity"], "text.verbosity", ("low", "medium", "high"))
    if text.get("format") is None:
        return
    wanted = read_object(text["format"], "text.format")
    kind = read_choice(wanted.get("type"), "text.format.type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind == "json_schema":
        refuse_unknown(wanted, ("type", "name", "description", "schema", "strict"), "text.format", target=TARGET)
        read_name(wanted.get("name"), "text.format.name")
        read_object(wanted.get("schema"), "text.format.schema")
        named = {name: item for name, item in wanted.items() if name != "type" and item is not None}
        chat["response_format"] = {"type": kind, "json_schema": named}


def _write_reasoning(value: object, chat: JsonObject) -> None:
    if value is None:
        return
    reasoning = read_object(value, "reasoning")
    refuse_unknown(reasoning, ("effort", "summary", "generate_summary", "context", "mode"), "reasoning", target=TARGET)
    for name, harmless in (
        ("summary", "auto"),
        ("generate_summary", "auto"),
        ("context", "auto"),
        ("mode", "standard"),
    ):
        if reasoning.get(name) is not None:
            read_choice(reasoning[name], f"reasoning.{name}", (harmless,))
    if reasoning.get("effort") is not None:
        chat["reasoning_effort"] = read_name(reasoning["effort"], "reasoning.effort")
