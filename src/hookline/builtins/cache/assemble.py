"""A stream as the plain reply that the same call would have got.

Lives here: chat, completions and responses, from a kept stream. Elsewhere: the other way round (hookline.disassemble), the blocks (event_stream.py).
Idea: what is said in pieces is joined, what is said again must be the same, and whatever is neither raises `Inexact`: a miss is better than a wrong answer.

Members that no table here knows (other vendors' fields) are kept where each is said once, or always the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from hookline import Inexact
from hookline.builtins.cache.event_stream import chunks_of, joined_chunks_of

Json = dict[str, Any]

TEXTS = frozenset({"content", "refusal", "reasoning_content", "reasoning", "text", "arguments", "input", "thinking"})
"""Members that come in pieces."""
NOT_IN_REPLY = frozenset({"object", "choices", "usage", "obfuscation"})


def assemble(endpoint: str, events: bytes, usage: Any) -> bytes:
    """The plain reply's body. `usage`: what is known of it where the stream does not tell. Raises Inexact."""
    make = ASSEMBLERS.get(endpoint)
    if make is None:
        raise Inexact
    try:
        return orjson.dumps(make(events, usage))
    except (KeyError, TypeError, AttributeError, IndexError):  # a stream of another shape
        raise Inexact from None


def _assemble_choices(events: bytes, usage: Any, kind: str, add: Callable[[Json, Json], None]) -> Json:
    top: Json = {}
    said: Json = {}
    choices: dict[int, Json] = {}
    for chunk in joined_chunks_of(events):
        pieces, beside = chunk.pop("choices", None), chunk
        if beside != said:  # what stands beside the pieces is nearly always the same again
            said = beside
            usage = beside.get("usage") or usage
            for name, value in beside.items():
                if name in ("id", "model", "created"):  # some send them empty at first
                    top[name] = top.get(name) or value
                elif name not in NOT_IN_REPLY and value is not None:
                    _keep(top, name, value)
        for piece in pieces or ():
            index = piece.get("index") or 0
            choice = choices.get(index)
            if choice is None:
                choice = choices[index] = {"index": index}
            add(choice, piece)
    if not choices or any(choice.get("finish_reason") is None for choice in choices.values()):
        raise Inexact
    first = {"id": top.pop("id", None), "object": kind}
    told: Json = {**first, **top, "choices": [_closed(choices[i]) for i in sorted(choices)]}
    if usage:  # else its provider was asked for it, and does not tell
        told["usage"] = {name: value for name, value in usage.items() if name != "cost_usd"}  # what the first one paid
    return told


def _add_chat(choice: Json, piece: Json) -> None:
    message = choice.setdefault("message", {"role": "assistant", "content": None})
    for name, value in piece.items():
        if name == "delta":
            for member, said in (value or {}).items():
                if member == "content" and type(said) is str and type(message["content"]) is list:
                    message["content"].append(said)
                elif said is not None:
                    _add_said(message, member, said)
                elif member != "content":
                    message.setdefault(member, None)
        elif name != "index" and (value is not None or name not in choice):
            _add_beside(choice, name, value)


def _add_completion(choice: Json, piece: Json) -> None:
    choice.setdefault("text", [])
    for name, value in piece.items():
        if name == "text":
            choice["text"].append(_text(value or ""))
        elif name != "index":
            _add_beside(choice, name, value)


def _add_said(message: Json, name: str, said: Any) -> None:
    if name in TEXTS:
        _add_text(message, name, said)
    elif name in ("tool_calls", "thinking_blocks"):
        _add_listed(message, name, said)
    elif name == "function_call":
        _merge(message.setdefault(name, {}), said)
    elif name == "annotations":
        message.setdefault(name, []).extend(said)
    elif name == "audio":
        raise Inexact
    else:
        _keep(message, name, said)


def _add_listed(message: Json, name: str, said: Any) -> None:
    """Calls and blocks by their index; one without an index is whole."""
    listed = message.setdefault(name, [])
    for piece in said:
        index = piece.get("index")
        if index is None:
            listed.append({**piece})
            continue
        found = next((item for item in listed if item.get("index") == index), None)
        if found is None:
            listed.append(found := {"index": index})
        _merge(found, piece)


def _merge(into: Json, piece: Json) -> None:
    for name, value in piece.items():
        if value is None:
            continue
        if name in TEXTS:
            _add_text(into, name, value)
        elif isinstance(value, dict):
            _merge(into.setdefault(name, {}), value)
        else:
            _keep(into, name, value)


def _add_text(into: Json, name: str, value: Any) -> None:
    said = into.get(name)
    if isinstance(said, list):
        said.append(_text(value))
    else:
        into[name] = [_text(value)]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Inexact
    return value


def _add_beside(choice: Json, name: str, value: Any) -> None:
    """What stands beside the message or text."""
    if name == "logprobs":
        if value is None:
            choice.setdefault(name, None)
            return
        joined = choice.get(name)
        if joined is None:
            joined = choice[name] = {}
        for member, items in value.items():
            if items is None:
                joined.setdefault(member, None)
            elif not isinstance(items, list):
                raise Inexact
            else:
                joined[member] = [*(joined.get(member) or ()), *items]
    elif value is not None:
        _keep(choice, name, value)


def _keep(into: Json, name: str, value: Any) -> None:
    old = into.get(name)
    if old is None or old == {}:
        into[name] = value
    elif isinstance(old, dict) and isinstance(value, dict):
        into[name] = old = {**old}
        for member, said in value.items():
            _keep(old, member, said)
    elif old != value:
        raise Inexact


def _closed(of: Json) -> Json:
    """Pieces joined, and no index but a choice's own."""
    closed: Json = {}
    for name, value in of.items():
        if name in TEXTS and isinstance(value, list):
            closed[name] = "".join(value)
        elif name in ("tool_calls", "thinking_blocks"):
            whole = sorted(value, key=lambda item: item.get("index", 0))
            closed[name] = [_closed({k: v for k, v in item.items() if k != "index"}) for item in whole]
        elif name in ("message", "function", "custom", "function_call") and isinstance(value, dict):
            closed[name] = _closed(value)
        else:
            closed[name] = value
    return closed


def _assemble_response(events: bytes, usage: Any) -> Json:
    """A response's stream ends with the whole of it."""
    items = 0
    for chunk in chunks_of(events):
        kind = chunk["type"]
        items += kind == "response.output_item.done"
        if kind in ("response.completed", "response.incomplete"):
            response: Json = chunk["response"]
            if len(response["output"]) != items:
                raise Inexact
            if response.get("usage") is not None:
                response["usage"].pop("cost_usd", None)
            return response
    raise Inexact


ASSEMBLERS: Mapping[str, Callable[[bytes, Any], Json]] = {
    "chat": lambda events, usage: _assemble_choices(events, usage, "chat.completion", _add_chat),
    "completions": lambda events, usage: _assemble_choices(events, usage, "text_completion", _add_completion),
    "responses": _assemble_response,
}
