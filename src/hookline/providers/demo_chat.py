"""Demo chat: what a demo model says, whole or as a stream.

Lives here: composing an answer to a chat completion request, and writing it as an object or as events. Elsewhere: which model does what (demo_behaviours.py), which tools it calls (demo_tools.py), pace and
faults (demo.py), answers that fit a schema (demo_schema.py).
Idea: an answer is composed once, as pieces; the object joins them and the stream sends them one by one, so both say the same and count the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any

import orjson

from hookline.chat_view import ChatView
from hookline.providers.demo_behaviours import Answer
from hookline.providers.demo_schema import example_of, find_schema
from hookline.providers.demo_tools import call_tool, choose_tools, tool_results

LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna aliqua. "
    "Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat. "
)
LOREM_WORDS = 60
MAX_PIECES = 16_384
"""Without a limit in the request an answer ends here with finish_reason "length", as a model's would."""
MAX_CHOICES = 128
CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 3

_PIECE = re.compile(r"\s*\S{1,6}|\s+")
"""A token of the demo: never more of them than bytes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: text in pieces, or tool calls."""

    pieces: tuple[str, ...] = ()
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str = "stop"
    top_logprobs: int | None = None
    """How many of the likeliest tokens are shown at each place; None: no logprobs were asked for."""

    @property
    def tokens(self) -> int:
        calls = sum(1 + len(call["function"]["arguments"]) // CHARS_PER_TOKEN for call in self.tool_calls)
        return len(self.pieces) + calls


@dataclass(frozen=True, slots=True)
class Completion:
    """A composed answer; `seed` makes its ids the same for the same request."""

    seed: str
    model: str
    created: int
    prompt_tokens: int
    choices: tuple[Choice, ...] = field(default=())

    @property
    def usage(self) -> dict[str, Any]:
        output = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output,
            "total_tokens": self.prompt_tokens + output,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def compose(
    payload: dict[str, Any], answer: Answer, *, model: str, created: int, cap: int | None = None
) -> Completion | str:
    """The answer to a chat completion request, or a sentence about what is wrong with the request."""
    view = ChatView(payload)
    if not view.messages:
        return '"messages" must be a list with at least one message'
    limits = [n for n in (view.max_output_tokens, cap) if n is not None and n > 0]
    limit = min(limits, default=MAX_PIECES)
    seed = seed_of(payload)
    tools = choose_tools(view, payload.get("tool_choice"), answer)
    if tools:
        calls = tuple(call_tool(tool, seed, number) for number, tool in enumerate(tools))
        choice = Choice(tool_calls=calls, finish_reason="tool_calls")
    else:
        choice = _speak(_say(view, payload, answer, has_limit=bool(limits)), limit, _stops(payload.get("stop")))
        if payload.get("logprobs") is True:
            choice = replace(choice, top_logprobs=_count(payload.get("top_logprobs")))
    return Completion(seed, model, created, _prompt_tokens(view), (choice,) * min(view.choices, MAX_CHOICES))


def to_object(completion: Completion) -> dict[str, Any]:
    """The chat completion object."""
    choices = [
        {
            "index": index,
            "message": _message(choice),
            "logprobs": _logprobs(choice, choice.pieces),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(completion.choices)
    ]
    return {**_head(completion, "chat.completion"), "choices": choices, "usage": completion.usage}


def to_events(completion: Completion) -> list[bytes]:
    """The stream: role, pieces, finish reasons, usage, `[DONE]`."""
    head = _head(completion, "chat.completion.chunk")

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: %b\n\n" % orjson.dumps({**head, "choices": choices, **more})

    events: list[bytes] = []
    for index, choice in enumerate(completion.choices):
        for delta in _deltas(choice):
            said = delta.get("content")
            logprobs = _logprobs(choice, [said]) if said else None
            events.append(event([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}]))
        finish = {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}
        events.append(event([finish]))
    return [*events, event([], usage=completion.usage), b"data: [DONE]\n\n"]


def seed_of(value: object) -> str:
    """The same for the same request: what ids are made from."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def count_tokens(text: str) -> int:
    """A plausible count for an input; never more than its bytes."""
    return -(-len(text) // CHARS_PER_TOKEN)


def text_of(content: Any) -> str:
    """The text of a message's content, as a string or as parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", f"[{part.get('type')}]")) for part in parts if isinstance(part, dict))


def _say(view: ChatView, payload: dict[str, Any], answer: Answer, *, has_limit: bool) -> Iterator[str]:
    """The text, piece by piece, so that a limit never makes more than it lets through."""
    wanted = payload.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    results = tool_results(view.messages)
    if kind == "json_schema" and isinstance(wanted, dict) and isinstance(wanted.get("json_schema"), dict):
        text = orjson.dumps(example_of(wanted["json_schema"].get("schema"))).decode()
    elif kind == "json_object" or answer == "json":
        schema = find_schema([text_of(message.get("content")) for message in reversed(view.messages)])
        shown = {"echo": _last_user_text(view)} if schema is None else example_of(schema)
        text = orjson.dumps(shown).decode()
    elif results:
        text = f"The tool answered: {', '.join(text_of(result) for result in results)}"
    elif answer == "lorem":
        if has_limit:  # as much as may be said
            return cycle(_PIECE.findall(LOREM))
        text = " ".join(islice(cycle(LOREM.split()), LOREM_WORDS))
    elif answer in ("tools", "tools-parallel") and not view.tools:
        text = "This model calls tools: send some."
    else:
        text = _last_user_text(view)
    return (found.group() for found in _PIECE.finditer(text))


def _last_user_text(view: ChatView) -> str:
    for message in reversed(view.messages):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return text_of(view.messages[-1].get("content"))


def _speak(pieces: Iterator[str], limit: int, stops: list[str]) -> Choice:
    said = tuple(islice(pieces, limit))
    is_cut = next(pieces, None) is not None
    text = "".join(said) if stops else ""
    end = min((found for stop in stops if (found := text.find(stop)) >= 0), default=-1)
    if end >= 0:
        return Choice(pieces=tuple(found.group() for found in _PIECE.finditer(text[:end])))
    return Choice(pieces=said, finish_reason="length" if is_cut else "stop")


def _stops(value: Any) -> list[str]:
    """The stop sequences of a request: one, or a list."""
    given = value if isinstance(value, list) else [value]
    return [stop for stop in given if isinstance(stop, str) and stop]


def _logprobs(choice: Choice, pieces: Sequence[str]) -> dict[str, Any] | None:
    """The demo is sure of what it says: every token has the probability 1, and the likeliest one is itself."""
    if choice.top_logprobs is None:
        return None
    tokens = [{"token": piece, "logprob": 0.0, "bytes": list(piece.encode())} for piece in pieces]
    shown = min(choice.top_logprobs, 1)
    return {"content": [{**token, "top_logprobs": [token] * shown} for token in tokens], "refusal": None}


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _prompt_tokens(view: ChatView) -> int:
    of_messages = sum(TOKENS_PER_MESSAGE + count_tokens(text_of(message.get("content"))) for message in view.messages)
    return of_messages + (len(orjson.dumps(view.tools)) // CHARS_PER_TOKEN if view.tools else 0)


def _head(completion: Completion, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{completion.seed[:29]}",
        "object": kind,
        "created": completion.created,
        "model": completion.model,
        "service_tier": "default",
        "system_fingerprint": "fp_demo",
    }


def _message(choice: Choice) -> dict[str, Any]:
    text = None if choice.tool_calls else "".join(choice.pieces)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {**message, "tool_calls": list(choice.tool_calls)} if choice.tool_calls else message


def _deltas(choice: Choice) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None if choice.tool_calls else "", "refusal": None}
    for piece in choice.pieces:
        yield {"content": piece}
    for index, call in enumerate(choice.tool_calls):
        yield {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]}
        arguments = call["function"]["arguments"]
        for at in range(0, len(arguments), 8):
            yield {"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 8]}}]}
