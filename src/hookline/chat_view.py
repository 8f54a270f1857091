"""A typed view of a chat-like payload: messages, tools, limits.

Lives here: reads that never raise on odd shapes. Elsewhere: the payload itself and its editing (call.py).
Idea: plugins ask questions in the field's words; which of the wire's names holds the answer is known in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVENTS_OF_JSON = frozenset({"chat", "completions", "responses"})
"""Endpoints whose streams hold JSON objects."""
_LIMITS = frozenset({"max_completion_tokens", "max_output_tokens", "max_tokens"})
_MULTIPLIERS = frozenset({"n", "best_of", "prompt"})


class ChatView:
    """Reads of a chat, completions or responses payload that never raise on odd shapes."""

    __slots__ = ("_payload", "choices", "max_output_tokens")

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._payload = payload
        # Read at once: they are asked for several times a call, and a property costs five times as much as an attribute.
        self.max_output_tokens = _limit_of(payload)
        """The client's own completion limit. Of several names the largest: which one counts is the upstream's choice. A negative one is none: some
        servers write on and on for -1."""
        self.choices = _choices_of(payload)
        """How many answers may be made: `n` times `best_of`, for each prompt of a list; at least 1."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        value = self._payload.get("messages")
        return [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []

    @property
    def tools(self) -> list[dict[str, Any]]:
        value = self._payload.get("tools")
        return [t for t in value if isinstance(t, dict)] if isinstance(value, list) else []

    @property
    def wants_usage(self) -> bool:
        """The client asked for the usage event of a stream."""
        options = self._payload.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True


def _limit_of(payload: Mapping[str, Any]) -> int | None:
    largest = -1
    for name in _LIMITS.intersection(payload):
        limit = payload[name]
        if type(limit) is int and limit > largest:
            largest = limit
    return None if largest < 0 else largest


def _choices_of(payload: Mapping[str, Any]) -> int:
    if _MULTIPLIERS.isdisjoint(payload):
        return 1
    prompt = payload.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    for count in (payload.get("n"), payload.get("best_of")):
        if type(count) is int and count > 1:
            prompts *= count
    return prompts
