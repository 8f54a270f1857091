"""Completions as chat: the legacy `/v1/completions` served by a deployment that only chats.

Lives here: a legacy request as chat completion requests (one per prompt), their replies joined as one legacy object, their streams as legacy chunks.
Elsewhere: when this is done (the provider), who sends the calls and joins the streams (the provider); which names are chat models (chat_models.py).
Idea: a prompt is a user message. What speaks of the prompt's own tokens has no counterpart and is an error; every other field means the same on both routes and goes on as it is."""

from __future__ import annotations

from collections.abc import Sequence

from hookline.providers.chat_models import is_known_chat_model, output_limit_field
from hookline.providers.field_table import Field, refuse_by_table
from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_name,
    read_positive_int,
    read_text,
    show,
)

__all__ = ["CompletionsStream", "from_chat", "is_known_chat_model", "sum_usage", "to_chat"]

MAX_PROMPTS = 128
"""Prompts in one request: each is a call of its own to the upstream."""

REFUSED: dict[str, Field] = {
    "echo": Field("", "put the prompt before the answer yourself", (False,)),
    "suffix": Field("", "a chat model only continues; leave it out", ("",)),
    "logprobs": Field("", "ask /v1/chat/completions for logprobs", (False,)),
    "top_logprobs": Field("", "ask /v1/chat/completions for logprobs", (0,)),
    "tools": Field("", "call /v1/chat/completions", ([],)),
    "tool_choice": Field("", "call /v1/chat/completions"),
    "functions": Field("", "call /v1/chat/completions", ([],)),
    "function_call": Field("", "call /v1/chat/completions"),
    "messages": Field("", "call /v1/chat/completions"),
    "modalities": Field("", "call /v1/chat/completions", (["text"],)),
    "audio": Field("", "call /v1/chat/completions"),
}
"""What a legacy answer cannot show or a chat cannot do. Fields that are not here go to the chat call as they are."""

CHAT_FIELDS: dict[str, str] = {"messages": "prompt", "max_completion_tokens": "max_tokens"}
"""Chat field -> this route's, for a refusal of the chat call."""

_TARGET = "a chat model"
_FINISH_REASONS = ("stop", "length", "content_filter")


def to_chat(payload: JsonObject, *, upstream_model: str | None = None) -> list[JsonObject]:
    """One chat completion request per prompt, in order.

    In: the legacy request as parsed; the model that will answer, if its name is not the one in the request. Raises `Untranslatable`."""
    refuse_by_table(payload, REFUSED, target=_TARGET)
    own = {"prompt", "best_of", "max_tokens", *REFUSED}
    shared = {field: value for field, value in payload.items() if field not in own and value is not None}
    _check_best_of(payload)
    if payload.get("max_tokens") is not None:
        model = upstream_model or read_name(payload.get("model"), "model")
        shared.setdefault(output_limit_field(model), read_positive_int(payload["max_tokens"], "max_tokens"))
    return [{**shared, "messages": [{"role": "user", "content": prompt}]} for prompt in _prompts(payload.get("prompt"))]


def _check_best_of(payload: JsonObject) -> None:
    n = 1 if payload.get("n") is None else read_positive_int(payload["n"], "n")
    best_of = payload.get("best_of")
    if best_of is not None and read_positive_int(best_of, "best_of") != n:
        raise Untranslatable(
            f'"best_of" = {show(best_of)} cannot be sent to {_TARGET}: it does not rank its answers; leave it out',
            param="best_of",
        )


def _prompts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        read_text(value, "prompt")
    prompts: list[str] = []
    for number, item in enumerate(value if isinstance(value, list) else []):
        path = f"prompt[{number}]"
        if isinstance(item, list) or (isinstance(item, int) and not isinstance(item, bool)):
            raise Untranslatable(f'"prompt" as tokens cannot be sent to {_TARGET}; send text', param="prompt")
        prompts.append(read_text(item, path))
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise Untranslatable(f'"prompt" must hold 1 to {MAX_PROMPTS} texts, got {len(prompts)}', param="prompt")
    return prompts


def from_chat(replies: Sequence[JsonObject], *, model: str) -> JsonObject:
    """The legacy object for the chat completions of all prompts, in the order of the prompts.

    `content`, which OpenAI has not, is the first answer's text, for callers that only want that. `usage` is the sum, null unless every reply has one."""
    per_prompt = [_choices(reply) for reply in replies]
    n = max(map(len, per_prompt), default=1)
    choices = [
        {**_legacy_choice(choice, "message"), "index": number * n + place}
        for number, chat_choices in enumerate(per_prompt)
        for place, choice in enumerate(chat_choices)
    ]
    usages = [usage for reply in replies if isinstance(usage := reply.get("usage"), dict) and usage]
    completion = _envelope(replies[0] if replies else {}, model)
    completion["choices"] = choices
    completion["usage"] = sum_usage(usages) if usages and len(usages) == len(replies) else None
    completion["content"] = choices[0]["text"] if choices else ""
    return completion


class CompletionsStream:
    """Chat completion chunks of one prompt as legacy chunks; with several prompts, one of these for each."""

    def __init__(self, *, model: str, index_offset: int = 0) -> None:
        """In: the model's name for the client, and the index of this prompt's first choice (its number x n)."""
        self._model = model
        self._index_offset = index_offset

    def feed(self, chunk: JsonObject) -> list[JsonObject]:
        """The legacy chunks for one chat chunk: none if it says nothing a text can show (a role, a tool call). An error object passes as it is."""
        if chunk.get("error"):
            return [chunk]
        choices = []
        for place, choice in enumerate(_choices(chunk)):
            legacy = _legacy_choice(choice, "delta")
            index = choice.get("index")
            legacy["index"] = self._index_offset + (index if isinstance(index, int) else place)
            if legacy["text"] or legacy["finish_reason"]:
                choices.append(legacy)
        usage = chunk.get("usage")
        if not choices and not isinstance(usage, dict):
            return []
        legacy_chunk = {**_envelope(chunk, self._model), "choices": choices}
        return [{**legacy_chunk, "usage": usage} if isinstance(usage, dict) else legacy_chunk]


def sum_usage(usages: Sequence[JsonObject]) -> JsonObject:
    """Usages of several calls as one, member by member, details too."""
    total: JsonObject = {}
    for usage in usages:
        for name, value in usage.items():
            if isinstance(value, dict):
                known = total.get(name)
                total[name] = sum_usage([known, value] if isinstance(known, dict) else [value])
            elif isinstance(value, int | float) and not isinstance(value, bool):
                known = total.get(name)
                total[name] = value + known if isinstance(known, int | float) else value
    return total


def _envelope(reply: JsonObject, model: str) -> JsonObject:
    created = reply.get("created")
    envelope: JsonObject = {
        "id": reply["id"] if isinstance(reply.get("id"), str) else "cmpl-unknown",
        "object": "text_completion",
        "created": created if isinstance(created, int) else 0,
        "model": model,
    }
    if isinstance(reply.get("system_fingerprint"), str):
        envelope["system_fingerprint"] = reply["system_fingerprint"]
    return envelope


def _choices(reply: JsonObject) -> list[JsonObject]:
    choices = reply.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _legacy_choice(choice: JsonObject, source: str) -> JsonObject:
    """Text and finish reason of a `message` (always finished) or a `delta`. A refusal is text too: this object has no other place for it."""
    said = choice.get(source)
    said = said if isinstance(said, dict) else {}
    text = said.get("content") or said.get("refusal")
    reason = choice.get("finish_reason")
    if source == "message" or reason is not None:
        reason = reason if reason in _FINISH_REASONS else "stop"
    return {"text": text if isinstance(text, str) else "", "index": 0, "logprobs": None, "finish_reason": reason}
