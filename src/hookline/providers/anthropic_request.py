"""Anthropic request: an OpenAI chat completion request as a request to the Messages API.

Lives here: `FIELDS`, what becomes of every field of a chat completion (the docs table is made from it), and `to_anthropic`, which obeys it.
Elsewhere: messages (anthropic_messages.py), tools (anthropic_tools.py), thinking and sampling (anthropic_thinking.py), the way back (anthropic_reply.py, anthropic_stream.py).
Idea: a field is translated, or it asks for nothing and may be absent, or it is an error with its name. Nothing that asks for something is dropped; null is absent."""

from __future__ import annotations

from hookline.providers.anthropic_content import TARGET, read_cache_control
from hookline.providers.anthropic_messages import find_lost_thinking, write_messages
from hookline.providers.anthropic_thinking import thinks_by_budget, write_sampling, write_thinking
from hookline.providers.anthropic_tools import write_tools
from hookline.providers.field_table import Field, refuse_by_table
from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_bool,
    read_choice,
    read_list,
    read_object,
    read_positive_int,
    read_text,
    refuse_unknown,
)

FIELDS: dict[str, Field] = {
    "model": Field("model", "the deployment's own model name"),
    "messages": Field("system, messages", "system and developer messages are collected into system, in order"),
    "max_completion_tokens": Field("max_tokens", "the smaller of the two limits, if both are sent"),
    "max_tokens": Field("max_tokens", "the smaller of the two limits, if both are sent"),
    "stream": Field("stream", "as it is"),
    "stop": Field("stop_sequences", "a string or a list; not only white space"),
    "temperature": Field("temperature", "0 to 1; 1 is the default and not sent; Claude up to 4.6 only"),
    "top_p": Field("top_p", "0 to 1; 1 is the default and not sent; Claude up to 4.6 only"),
    "tools": Field("tools", "function tools"),
    "tool_choice": Field(
        "tool_choice", "auto, none, required, one named function, or allowed_tools, which leaves the other tools out"
    ),
    "parallel_tool_calls": Field("tool_choice.disable_parallel_tool_use", "false only"),
    "response_format": Field("output_config.format", "text or json_schema; json_object is an error"),
    "reasoning_effort": Field("thinking, output_config.effort", "a token budget up to Claude 4.5, adaptive from 4.6"),
    "thinking": Field("thinking", "Anthropic's own field, as it is"),
    "cache_control": Field(
        "cache_control", "Anthropic's own field, as it is; also on messages, content parts and tools"
    ),
    "user": Field("metadata.user_id", "as it is"),
    "safety_identifier": Field("metadata.user_id", "wins over user"),
    "service_tier": Field("service_tier", "auto as it is, default as standard_only"),
    "stream_options": Field("", "usage is always known; obfuscation is an error", is_ignored=True),
    "metadata": Field("", "labels of stored completions, and nothing is stored", is_ignored=True),
    "prompt_cache_key": Field("", "a routing hint; mark what to cache with cache_control", is_ignored=True),
    "n": Field("", "it answers once; send n = 1 or call it several times", (1,)),
    "store": Field("", "it stores nothing; send false", (False,)),
    "logprobs": Field("", "it gives no token probabilities; leave it out", (False,)),
    "top_logprobs": Field("", "it gives no token probabilities; leave it out", (0,)),
    "logit_bias": Field("", "it has no token biases; leave it out", ({},)),
    "presence_penalty": Field("", "it has no penalties; leave it out", (0,)),
    "frequency_penalty": Field("", "it has no penalties; leave it out", (0,)),
    "seed": Field("", "it cannot repeat itself on purpose; leave it out"),
    "modalities": Field("", "it answers in text; leave it out", (["text"],)),
    "audio": Field("", "it answers in text; leave it out"),
    "verbosity": Field("", "it has no such setting; say it in a system message", ("medium",)),
    "prediction": Field("", "it takes no predicted output; leave it out"),
    "web_search_options": Field("", "it searches only with tools of its own; leave it out"),
    "functions": Field("", "send tools", ([],)),
    "function_call": Field("", "send tool_choice"),
    "moderation": Field("", "it has no such setting; leave it out"),
    "prompt_cache_options": Field("", "mark what to cache with cache_control"),
    "prompt_cache_retention": Field("", "mark what to cache with cache_control", ("in_memory",)),
}
"""Every known field of a chat completion request; a field that is not in this table is an error too."""

_TIERS = {"auto": "auto", "default": "standard_only"}


def to_anthropic(
    payload: JsonObject, *, model: str, default_max_tokens: int, output_cap: int | None = None
) -> JsonObject:
    """The body for `POST /v1/messages`.

    In: a chat completion request as parsed; the upstream's model name; the limit where the client gave none, as the API insists on one; and a cap the limit never exceeds.
    Raises `Untranslatable` naming the first field that cannot be sent. The payload is not changed."""
    _refuse_what_cannot_be_sent(payload)
    request: JsonObject = {"model": model, "max_tokens": _max_tokens(payload, default_max_tokens, output_cap)}
    write_messages(payload.get("messages"), request)
    write_tools(payload, request)
    _write_format(payload.get("response_format"), request)
    write_thinking(payload, request, model=model)
    write_sampling(payload, request, model=model)
    _check_thinking(payload, request)
    if stop := _stop_sequences(payload.get("stop")):
        request["stop_sequences"] = stop
    if user := _user(payload):
        request["metadata"] = {"user_id": user}
    if payload.get("service_tier") is not None:
        request["service_tier"] = _TIERS[read_choice(payload["service_tier"], "service_tier", _TIERS)]
    if payload.get("cache_control") is not None:
        request["cache_control"] = read_cache_control(payload["cache_control"], "cache_control")
    if payload.get("stream") is not None and read_bool(payload["stream"], "stream"):
        request["stream"] = True
    return request


def _refuse_what_cannot_be_sent(payload: JsonObject) -> None:
    refuse_unknown(payload, FIELDS, "", target=TARGET)
    refuse_by_table(payload, FIELDS, target=TARGET)
    options = payload.get("stream_options")
    if options is not None and read_object(options, "stream_options").get("include_obfuscation"):
        param = "stream_options.include_obfuscation"
        raise Untranslatable(
            f'"{param}" cannot be sent to {TARGET}: its streams are not padded; leave it out', param=param
        )


def _max_tokens(payload: JsonObject, default: int, cap: int | None) -> int:
    limits = [
        read_positive_int(payload[name], name)
        for name in ("max_completion_tokens", "max_tokens")
        if payload.get(name) is not None
    ]
    limit = min(limits, default=default)
    return limit if cap is None else min(limit, cap)


def _write_format(value: object, request: JsonObject) -> None:
    if value is None:
        return
    wanted = read_object(value, "response_format")
    if wanted.get("type") == "json_object":
        raise Untranslatable(
            f'"response_format.type" = "json_object" cannot be sent to {TARGET}: it has no free JSON mode; send a json_schema',
            param="response_format.type",
        )
    if read_choice(wanted.get("type"), "response_format.type", ("text", "json_schema")) == "text":
        return
    path = "response_format.json_schema"
    named = read_object(wanted.get("json_schema"), path)
    # A name is only a label, and the API is always strict. A description is meant for the model, and a schema has a place for it.
    refuse_unknown(named, ("name", "description", "schema", "strict"), path, target=TARGET)
    if named.get("strict") is not None:
        read_bool(named["strict"], f"{path}.strict")
    schema = read_object(named.get("schema"), f"{path}.schema")
    if named.get("description") is not None:
        schema = {"description": read_text(named["description"], f"{path}.description"), **schema}
    request.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}


def _check_thinking(payload: JsonObject, request: JsonObject) -> None:
    """What the API would refuse about thinking by budget, said with the client's own field names."""
    if not thinks_by_budget(request):
        return
    if request.get("tool_choice", {}).get("type") in ("any", "tool"):
        raise Untranslatable(
            '"tool_choice" cannot force a tool call on an Anthropic model that thinks; send auto, or leave reasoning_effort out',
            param="tool_choice",
        )
    if (lost := find_lost_thinking(payload["messages"])) is not None:
        path = f"messages[{lost}].thinking_blocks"
        raise Untranslatable(
            f'"{path}" is missing: send the assistant message back as it was received, or leave reasoning_effort out',
            param=path,
        )


def _stop_sequences(value: object) -> list[str]:
    if value is None:
        return []
    sequences = [value] if isinstance(value, str) else read_list(value, "stop")
    for number, sequence in enumerate(sequences):
        path = "stop" if isinstance(value, str) else f"stop[{number}]"
        if not read_text(sequence, path).strip():
            raise Untranslatable(
                f'"{path}" is only white space, which cannot be sent to {TARGET}; leave it out', param=path
            )
    return sequences


def _user(payload: JsonObject) -> str | None:
    for name in ("safety_identifier", "user"):
        if payload.get(name) is not None:
            return read_text(payload[name], name) or None
    return None
