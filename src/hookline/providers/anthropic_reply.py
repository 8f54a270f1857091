"""Anthropic reply: a message or an error of the Messages API as OpenAI's chat completion or error object.

Lives here: content, tool calls, thinking, stop reasons, usage, and the table of error types.
Elsewhere: streams (anthropic_stream.py, on the same tables), requests (anthropic_request.py).
Idea: an upstream's reply is read tolerantly: a missing or odd field becomes its neutral value, an unknown block says nothing to a chat client and is left out; only a client's request is read strictly.
Thinking has no field on OpenAI's wire. `reasoning_content` shows it, as other providers do; `thinking_blocks` holds the signed originals, which a client sends back for a tool loop to go on."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from hookline.providers.untranslatable import JsonObject

FINISH_REASONS: dict[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    # Server tools paused the turn: it is not at its end, and this wire has no other word for that.
    "pause_turn": "length",
    "refusal": "content_filter",
}
"""`stop_reason` -> `finish_reason`; one that is not here is `stop`."""

SERVICE_TIERS: dict[str, str] = {"standard": "default", "priority": "priority"}


class ErrorKind(NamedTuple):
    """What an Anthropic error type is on OpenAI's wire."""

    status: int
    type: str
    code: str | None


ERROR_KINDS: dict[str, ErrorKind] = {
    "invalid_request_error": ErrorKind(400, "invalid_request_error", None),
    "authentication_error": ErrorKind(401, "invalid_request_error", "invalid_api_key"),
    "billing_error": ErrorKind(402, "insufficient_quota", "insufficient_quota"),
    "permission_error": ErrorKind(403, "invalid_request_error", "permission_denied"),
    "not_found_error": ErrorKind(404, "invalid_request_error", "not_found"),
    "conflict_error": ErrorKind(409, "invalid_request_error", "conflict"),
    "request_too_large": ErrorKind(413, "invalid_request_error", "request_too_large"),
    "rate_limit_error": ErrorKind(429, "rate_limit_error", "rate_limit_exceeded"),
    "api_error": ErrorKind(500, "server_error", None),
    "timeout_error": ErrorKind(504, "server_error", "upstream_timeout"),
    # 529 is Anthropic's own number; 503 says the same to every client, cache and load balancer.
    "overloaded_error": ErrorKind(503, "server_error", "overloaded"),
}
"""Anthropic's error types; `status` is used where the HTTP status does not say it: inside a stream, and for 529."""

_TOO_LONG = ("prompt is too long", "exceed context limit", "exceeds the context window")


def from_anthropic(message: JsonObject, *, model: str, created: int) -> JsonObject:
    """The chat completion of a complete message. `model` is the name where the message has none, `created` in Unix seconds."""
    blocks = [block for block in as_list(message.get("content")) if isinstance(block, dict)]
    text = "".join(as_text(block.get("text")) for block in blocks if block.get("type") == "text")
    thinking_blocks = [block for block in blocks if block.get("type") in ("thinking", "redacted_thinking")]
    tool_calls = [_tool_call(block) for block in blocks if block.get("type") == "tool_use"]
    reply: JsonObject = {
        "role": "assistant",
        "content": text if text or not tool_calls else None,
        "refusal": find_refusal(message.get("stop_details")),
    }
    if tool_calls:
        reply["tool_calls"] = tool_calls
    if thinking_blocks:
        reply["reasoning_content"] = "".join(as_text(block.get("thinking")) for block in thinking_blocks)
        reply["thinking_blocks"] = thinking_blocks
    choice = {
        "index": 0,
        "message": reply,
        "logprobs": None,
        "finish_reason": finish_reason(message.get("stop_reason")),
    }
    completion: JsonObject = {
        "id": as_text(message.get("id")) or "msg_unknown",
        "object": "chat.completion",
        "created": created,
        "model": as_text(message.get("model")) or model,
        "choices": [choice],
    }
    usage = message.get("usage")
    if isinstance(usage, dict) and (translated := translate_usage(usage)):
        completion["usage"] = translated
        if tier := SERVICE_TIERS.get(as_text(usage.get("service_tier"))):
            completion["service_tier"] = tier
    return completion


_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def translate_usage(usage: object) -> JsonObject | None:
    """OpenAI's usage, None if there is none to read, or if one of its counts is none: zeros would say that the answer was free.

    Anthropic counts cached input apart; OpenAI's `prompt_tokens` holds all of it: read from the cache (`cached_tokens`) and written to it (`cache_write_tokens`)."""
    if not isinstance(usage, dict) or "input_tokens" not in usage or "output_tokens" not in usage:
        return None
    if any(usage.get(name) is not None and not is_count(usage[name]) for name in _COUNTS):
        return None
    cached = as_count(usage.get("cache_read_input_tokens"))
    written = as_count(usage.get("cache_creation_input_tokens"))
    prompt = as_count(usage.get("input_tokens")) + cached + written
    output = as_count(usage.get("output_tokens"))
    details = usage.get("output_tokens_details")
    reasoning = as_count(details.get("thinking_tokens")) if isinstance(details, dict) else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def finish_reason(stop_reason: object) -> str:
    return FINISH_REASONS.get(as_text(stop_reason), "stop")


def find_refusal(stop_details: object) -> str | None:
    """Why the model refused, where the API says so."""
    return as_text(stop_details.get("explanation")) or None if isinstance(stop_details, dict) else None


def error_from_anthropic(status: int, body: object) -> tuple[int, JsonObject]:
    """The HTTP status and the OpenAI error object (`{"error": {...}}`) for an error reply.

    `body` is the parsed reply, or anything else if it was not JSON; then it is not quoted. Inside a stream `status` is the 200 the reply began with."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    kind = ERROR_KINDS.get(as_text(error.get("type"))) or _kind_of_status(status)
    message = as_text(error.get("message"))
    code = kind.code
    if kind.status == 400 and any(sign in message.lower() for sign in _TOO_LONG):
        code = "context_length_exceeded"
    if not message:
        message = f"the Anthropic upstream answered {status} without a message; try again, or look at its status page"
    reply_status = kind.status if status == 529 or not 400 <= status <= 599 else status
    return reply_status, {"error": {"message": message, "type": kind.type, "param": None, "code": code}}


def _kind_of_status(status: int) -> ErrorKind:
    for kind in ERROR_KINDS.values():
        if kind.status == status:
            return kind
    if status == 529:
        return ERROR_KINDS["overloaded_error"]
    return ERROR_KINDS["invalid_request_error" if 400 <= status < 500 else "api_error"]


def _tool_call(block: JsonObject) -> JsonObject:
    arguments = block.get("input")
    return {
        "id": as_text(block.get("id")),
        "type": "function",
        "function": {"name": as_text(block.get("name")), "arguments": write_arguments(arguments)},
    }


def write_arguments(arguments: object) -> str:
    """A tool call's input as the JSON string OpenAI's clients parse."""
    return orjson.dumps(arguments).decode() if isinstance(arguments, dict) else "{}"


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def as_count(value: object) -> int:
    return value if isinstance(value, int) and is_count(value) else 0


def as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
