"""Responses reply: a chat completion as the Response object of `/v1/responses`.

Lives here: the Response with what it echoes of the request, its output items, usage, status.
Elsewhere: streams (responses_stream.py, with the same pieces), requests (responses_request.py).
Idea: one assistant message becomes up to three kinds of output items, in the order in which a model makes them: reasoning, message, function calls. Ids are made from the chat reply's id and the item's place, so that a reply translates the same way each time."""

from __future__ import annotations

import re

from hookline.providers.responses_reasoning import pack_thinking
from hookline.providers.untranslatable import JsonObject

_CHAT_ID = re.compile(r"^(?:chatcmpl-|cmpl-|msg_)")
INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""finish_reason -> `incomplete_details.reason`; every other reason is a completed response."""


def from_chat(reply: JsonObject, request: JsonObject) -> JsonObject:
    """The Response for a complete chat completion. `request` is the Responses request that `to_chat` accepted."""
    base_id = bare_id(reply.get("id"))
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    output = _output(message if isinstance(message, dict) else {}, base_id)
    response = begin_response(reply, request)
    response["usage"] = translate_usage(reply.get("usage"))
    return finish_response(response, output, choice.get("finish_reason"))


def begin_response(reply: JsonObject, request: JsonObject) -> JsonObject:
    """A Response in progress, with an id, time and model from a chat reply or chunk."""
    created, model = reply.get("created"), reply.get("model")
    reasoning = request.get("reasoning") or {}
    return {
        "id": f"resp_{bare_id(reply.get('id'))}",
        "object": "response",
        "created_at": created if isinstance(created, int) else 0,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": request.get("max_tool_calls"),
        "metadata": request.get("metadata") or {},
        "model": model if isinstance(model, str) and model else request.get("model") or "",
        "output": [],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": request.get("safety_identifier"),
        "service_tier": request.get("service_tier"),
        "store": False,
        "temperature": request.get("temperature"),
        "text": request.get("text") or {"format": {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in request.get("tools") or []],
        "top_logprobs": 0,
        "top_p": request.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": request.get("user"),
    }


def finish_response(response: JsonObject, output: list[JsonObject], finish_reason: object) -> JsonObject:
    """The Response with its output and status. Cut short, its last item is incomplete too."""
    reason = INCOMPLETE_REASONS.get(finish_reason) if isinstance(finish_reason, str) else None
    if reason and output:
        output = [*output[:-1], {**output[-1], "status": "incomplete"}]
    details = {"reason": reason} if reason else None
    status = "incomplete" if reason else "completed"
    return {**response, "status": status, "incomplete_details": details, "output": output}


def translate_usage(usage: object) -> JsonObject | None:
    """Responses usage from chat usage, None if there is none, or if one of its counts is none: zeros would say that the answer was free."""
    if not isinstance(usage, dict) or any(
        _as_count(usage.get(name)) is None for name in ("prompt_tokens", "completion_tokens")
    ):
        return None
    input_tokens, output_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    prompt_details, output_details = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {
            "cached_tokens": _count(prompt_details, "cached_tokens"),
            "cache_write_tokens": _count(prompt_details, "cache_write_tokens"),
        },
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": _count(output_details, "reasoning_tokens")},
        "total_tokens": _count(usage, "total_tokens") or input_tokens + output_tokens,
    }


def message_item(item_id: str, parts: list[JsonObject], *, status: str = "completed") -> JsonObject:
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": parts}


def text_part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def refusal_part(refusal: str) -> JsonObject:
    return {"type": "refusal", "refusal": refusal}


def call_item(item_id: str, call_id: str, name: str, arguments: str, *, status: str = "completed") -> JsonObject:
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call_id or item_id,
        "name": name,
        "arguments": arguments,
    }


def reasoning_item(
    item_id: str, text: str, thinking_blocks: list[JsonObject], *, status: str = "completed"
) -> JsonObject:
    item: JsonObject = {"id": item_id, "type": "reasoning", "status": status, "summary": []}
    if text:
        item["summary"] = [{"type": "summary_text", "text": text}]
    if thinking_blocks:
        item["encrypted_content"] = pack_thinking(thinking_blocks)
    return item


def item_id(kind: str, base_id: str, place: int) -> str:
    """The id of an output item: `kind` is msg, fc or rs."""
    return f"{kind}_{base_id}_{place}"


def bare_id(chat_id: object) -> str:
    """A chat reply's id without what says that it is one."""
    return _CHAT_ID.sub("", chat_id) if isinstance(chat_id, str) and chat_id else "unknown"


def find_reasoning(said: JsonObject) -> str:
    """The visible thinking of a message or delta: `reasoning_content` with most servers, `reasoning` with some."""
    return _text(said, "reasoning_content") or _text(said, "reasoning")


def find_thinking_blocks(said: JsonObject) -> list[JsonObject]:
    blocks = said.get("thinking_blocks")
    return [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []


def find_tool_calls(said: JsonObject) -> list[JsonObject]:
    calls = said.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def find_function(call: JsonObject) -> JsonObject:
    function = call.get("function")
    return function if isinstance(function, dict) else {}


def _output(message: JsonObject, base_id: str) -> list[JsonObject]:
    output: list[JsonObject] = []
    reasoning, blocks = find_reasoning(message), find_thinking_blocks(message)
    if reasoning or blocks:
        output.append(reasoning_item(item_id("rs", base_id, 0), reasoning, blocks))
    text, refusal, calls = _text(message, "content"), _text(message, "refusal"), find_tool_calls(message)
    parts = [text_part(text)] if text or not (refusal or calls) else []
    if refusal:
        parts.append(refusal_part(refusal))
    if parts:
        output.append(message_item(item_id("msg", base_id, len(output)), parts))
    for call in calls:
        function, place = find_function(call), item_id("fc", base_id, len(output))
        output.append(call_item(place, _text(call, "id"), _text(function, "name"), _text(function, "arguments")))
    return output


def _text(said: JsonObject, field: str) -> str:
    value = said.get(field)
    return value if isinstance(value, str) else ""


def _count(counts: object, name: str) -> int:
    return (_as_count(counts.get(name)) or 0) if isinstance(counts, dict) else 0


def _as_count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
