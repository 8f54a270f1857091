"""Restoring in a stream, where a placeholder may be cut by any event.

Lives here: what is held back of a text until it is known to be no placeholder. Elsewhere: the vault (vault.py).
Idea: each running text (a choice's content, a tool call's arguments, a part of a response) holds back at most the beginning of one placeholder.
It is let go with the next piece of the same text, or in an event of its own when that text or the stream ends."""

from __future__ import annotations

import copy
from typing import Any

from hookline import Event
from hookline_mask.vault import PLACEHOLDER_MAX, Vault

Key = tuple[Any, ...]
TEXT_DELTAS = ("content", "reasoning_content", "refusal")
TEXTS_MAX = 1_024
"""Running texts of one stream; more are relayed as they are."""


class StreamRestorer:
    """Edits the events of one stream, in order."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._held: dict[Key, str] = {}
        self._carriers: dict[Key, dict[str, Any]] = {}
        """For each text with something held: an event that can carry it alone."""

    def edit(self, event: Event) -> Event | list[Event] | None:
        data = event.json()
        if not isinstance(data, dict):
            return [*self._let_go(list(self._held)), event]  # [DONE]
        if isinstance(data.get("choices"), list):
            return self._edit_choices(event, data)
        return self._edit_response(event, data)

    def _edit_choices(self, event: Event, data: dict[str, Any]) -> Event | list[Event]:
        data = copy.deepcopy(data)
        ended: list[Key] = []
        for choice in data["choices"]:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index", 0)
            for key, holder, name in _texts_of(choice, index):
                holder[name] = self._feed(key, holder[name], lambda key=key: _chunk_with(data, key))
            if choice.get("finish_reason") is not None:
                ended += [key for key in self._held if key[0] == index]
        before = self._let_go(ended)
        event.replace_json(data)
        return [*before, event] if before else event

    def _edit_response(self, event: Event, data: dict[str, Any]) -> Event | list[Event]:
        kind = str(data.get("type", ""))
        key = (data.get("item_id"), data.get("output_index"), data.get("content_index"), kind.rsplit(".", 1)[0])
        if kind.endswith(".delta") and isinstance(data.get("delta"), str):
            data = dict(data)
            data["delta"] = self._feed(key, data["delta"], lambda: {**data, "delta": ""})
            event.replace_json(data)
            return event
        before = self._let_go(
            [k for k in self._held if k == key or kind.startswith(("response.completed", "response.incomplete"))]
        )
        event.replace_json(self._vault.restore(data))
        return [*before, event] if before else event

    def _feed(self, key: Key, text: str, carrier: Any) -> str:
        """What of a running text may leave now."""
        text = self._held.pop(key, "") + text
        text = self._vault.restore_text(text)
        start = text.rfind("<", max(0, len(text) - PLACEHOLDER_MAX))
        if start >= 0 and len(self._held) < TEXTS_MAX and self._vault.could_begin(text[start:]):
            self._held[key], self._carriers[key] = text[start:], carrier()
            return text[:start]
        return text

    def _let_go(self, keys: list[Key]) -> list[Event]:
        """What is held of these texts, as events."""
        events = []
        for key in keys:
            text, data = self._held.pop(key), copy.deepcopy(self._carriers.pop(key))
            if "choices" in data:
                for _, holder, name in _texts_of(data["choices"][0], key[0]):
                    holder[name] = text
            else:
                data["delta"] = text
            event = Event(data.get("type") if "choices" not in data else None, b"")
            event.replace_json(data)
            events.append(event)
        return events


def _texts_of(choice: dict[str, Any], index: Any) -> list[tuple[Key, dict[str, Any], str]]:
    """(key, where it is, its name) of every running text in a choice."""
    found: list[tuple[Key, dict[str, Any], str]] = []
    if isinstance(choice.get("text"), str):
        found.append(((index, "text"), choice, "text"))
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return found
    found += [((index, name), delta, name) for name in TEXT_DELTAS if isinstance(delta.get(name), str)]
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            found.append(((index, "tool", call.get("index", 0)), function, "arguments"))
    return found


def _chunk_with(data: dict[str, Any], key: Key) -> dict[str, Any]:
    """A chunk like this one that holds nothing but the text of `key`, empty."""
    choice: dict[str, Any] = {"index": key[0], "finish_reason": None}
    if key[1] == "text":
        choice["text"] = ""
    elif key[1] == "tool":
        choice["delta"] = {"tool_calls": [{"index": key[2], "function": {"arguments": ""}}]}
    else:
        choice["delta"] = {key[1]: ""}
    return {**{k: v for k, v in data.items() if k not in ("choices", "usage")}, "choices": [choice]}
