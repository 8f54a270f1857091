"""A configured sentence as the answer of each endpoint that answers in text.

Lives here: the objects, and when a sentence is no answer. Elsewhere: the same as a stream (hookline.disassemble), who asks (the package).
Idea: an SDK must not notice, and a program must not be misled: where something else than a sentence was asked for (JSON, a tool, a vector), there is no static answer."""

from __future__ import annotations

from typing import Any

import orjson

from hookline import Call, Reply, disassemble

CHOICES_MAX = 128
"""As OpenAI's API has it."""


def may_answer(call: Call) -> bool:
    """Whether a sentence is an answer to this call."""
    payload = call.payload or {}
    if call.endpoint == "completions":
        return isinstance(payload.get("prompt"), str)
    if call.endpoint not in ("chat", "responses"):
        return False
    text = payload.get("text")
    formats = (payload.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    if any(isinstance(asked, dict) and asked.get("type") not in (None, "text") for asked in formats):
        return False
    modalities = payload.get("modalities")
    if payload.get("tool_choice") not in (None, "auto", "none") or payload.get("background"):
        return False
    return not isinstance(modalities, list) or modalities == ["text"]


def static_reply(call: Call, text: str, *, now: float) -> Reply:
    """The sentence as this call's reply. It costs nothing and says that no token was used."""
    value = _MAKERS[call.endpoint](call, text, int(now))
    body = orjson.dumps(value)
    if not call.is_stream:
        return Reply(200, {"content-type": "application/json"}, body, source="rescue")
    events = disassemble(call.endpoint, body, wants_usage=call.chat.wants_usage)
    return Reply(200, {"content-type": "text/event-stream; charset=utf-8"}, b"".join(events), source="rescue")


def _chat(call: Call, text: str, now: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": f"chatcmpl-{call.id}",
        "object": "chat.completion",
        "created": now,
        "model": call.model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}
            for index in range(min(call.chat.choices, CHOICES_MAX))
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def _completion(call: Call, text: str, now: int) -> dict[str, Any]:
    return {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": now,
        "model": call.model,
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"}
            for index in range(min(call.chat.choices, CHOICES_MAX))
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def _response(call: Call, text: str, now: int) -> dict[str, Any]:
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    message = {
        "id": f"msg_{call.id}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }
    payload = call.payload or {}
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": now,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": payload.get("instructions"),
        "metadata": payload.get("metadata") or {},
        "model": call.model,
        "output": [message],
        "parallel_tool_calls": payload.get("parallel_tool_calls", True),
        "previous_response_id": payload.get("previous_response_id"),
        "store": False,
        "temperature": payload.get("temperature", 1.0),
        "text": payload.get("text") or {"format": {"type": "text"}},
        "tool_choice": payload.get("tool_choice", "auto"),
        "tools": payload.get("tools") or [],
        "top_p": payload.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
    }


_MAKERS = {"chat": _chat, "completions": _completion, "responses": _response}
