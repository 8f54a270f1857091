"""A plain reply as the stream that the same call would have got.

Lives here: chat, completions and responses. Elsewhere: the other way round, and how fast it is told (builtins/cache: assemble.py, replay.py), who needs it (attempts.py, for an upstream that
answers a stream with JSON; cache; degradation).
Idea: what assemble.py makes of the stream is the reply again; whatever has no known form in a stream raises `Inexact`. Text comes in pieces only where that is asked for: at once, one delta is as
good as a hundred."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from hookline.attempt import Attempt
from hookline.call import Call
from hookline.errors import UpstreamError
from hookline.reply import Reply

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
_SPOKEN = ("reasoning_content", "reasoning", "content", "refusal")
"""Texts of a message in the order in which they are said."""


class Inexact(Exception):
    """This answer can't be told exactly in the other form."""


def tell_as_stream(call: Call, attempt: Attempt, reply: Reply) -> AsyncIterator[bytes]:
    """Make the upstream's whole answer the stream that was asked for; returns its body. Raises UpstreamError if it can't be told in events."""
    body = reply.body
    assert isinstance(body, bytes)
    try:
        events = disassemble(call.endpoint, body, wants_usage=True)
    except Inexact:
        told = f"{attempt.deployment.id} answered a stream with JSON that can't be told as one"
        raise UpstreamError(told, kind="garbage") from None
    stream = _at_once(b"".join(events))
    reply.replace_body(stream)
    reply.headers["content-type"] = "text/event-stream; charset=utf-8"
    attempt.has_hidden_usage = call.endpoint != "responses" and not call.chat.wants_usage
    attempt.is_complete = False  # until the relay has seen its end
    return stream


async def _at_once(events: bytes) -> AsyncIterator[bytes]:
    yield events


def disassemble(endpoint: str, body: bytes, *, wants_usage: bool, piece_chars: int | None = None) -> list[bytes]:
    """The events, `[DONE]` included. Raises Inexact."""
    make = DISASSEMBLERS.get(endpoint)
    if make is None:
        raise Inexact
    try:
        return [*make(orjson.loads(body), wants_usage, piece_chars)]
    except (KeyError, TypeError, AttributeError, ValueError):  # a reply of another shape
        raise Inexact from None


def _chat(reply: Json, wants_usage: bool, piece_chars: int | None) -> Iterator[bytes]:
    yield from _choices(reply, "chat.completion.chunk", wants_usage, lambda choice: _chat_pieces(choice, piece_chars))


def _completion(reply: Json, wants_usage: bool, piece_chars: int | None) -> Iterator[bytes]:
    yield from _choices(reply, "text_completion", wants_usage, lambda choice: _completion_pieces(choice, piece_chars))


def _choices(reply: Json, kind: str, wants_usage: bool, pieces: Callable[[Json], Iterator[Json]]) -> Iterator[bytes]:
    usage, choices = reply.get("usage"), reply["choices"]
    if not choices:
        raise Inexact
    others = {name: value for name, value in reply.items() if name not in ("object", "choices", "usage")}
    every = {name: value for name, value in others.items() if not isinstance(value, dict | list)}
    once = {name: value for name, value in others.items() if name not in every}
    head = {"id": every.pop("id", None), "object": kind, **every}
    for number, choice in enumerate(choices):
        if choice["finish_reason"] is None:
            raise Inexact
        for piece in pieces(choice):
            yield _event({**head, **once, "choices": [{"index": choice.get("index", number), **piece}]})
            once = {}
    if wants_usage and usage is not None:
        yield _event({**head, "choices": [], "usage": usage})
    yield DONE


def _chat_pieces(choice: Json, piece_chars: int | None) -> Iterator[Json]:
    message, logprobs = choice["message"], choice.get("logprobs") or {}
    content = message.get("content")
    if message.get("audio") is not None or not isinstance(content, str | None):
        raise Inexact

    def piece(delta: Json, said: Any = None) -> Json:
        return {"delta": delta, "logprobs": said, "finish_reason": None}

    known = ("role", *_SPOKEN, "tool_calls", "thinking_blocks", "audio")
    others = {name: value for name, value in message.items() if name not in known}
    empty = {name: None for name in ("content", "refusal") if name in message and message[name] is None}
    yield piece(
        {
            "role": message.get("role", "assistant"),
            **empty,
            **others,
            **({"content": ""} if content is not None else {}),
        }
    )
    if message.get("thinking_blocks"):
        yield piece({"thinking_blocks": _numbered(message["thinking_blocks"])})
    for name in _SPOKEN:
        if (text := message.get(name)) is not None:
            said = logprobs.get(name)
            told = {"content": None, "refusal": None, name: said} if said is not None else None
            for part in [text] if told is not None else _parts(text, piece_chars):
                yield piece({name: part}, told)
    if message.get("tool_calls"):
        yield piece({"tool_calls": _numbered(message["tool_calls"])})
    beside = {name: value for name, value in choice.items() if name not in ("index", "message", "logprobs")}
    yield {"delta": {}, "logprobs": None, **beside}


def _numbered(items: Sequence[Json]) -> list[Json]:
    return [{"index": index, **item} for index, item in enumerate(items)]


def _completion_pieces(choice: Json, piece_chars: int | None) -> Iterator[Json]:
    logprobs, text = choice.get("logprobs"), choice["text"]
    for part in [text] if logprobs is not None else _parts(text, piece_chars):
        yield {"text": part, "logprobs": logprobs, "finish_reason": None}
    beside = {name: value for name, value in choice.items() if name not in ("index", "text", "logprobs")}
    yield {"text": "", "logprobs": None, **beside}


def _parts(text: str, chars: int | None) -> list[str]:
    if not isinstance(text, str):
        raise Inexact
    return [text] if chars is None or not text else [text[i : i + chars] for i in range(0, len(text), chars)]


def _response(reply: Json, wants_usage: bool, piece_chars: int | None) -> Iterator[bytes]:
    ends = {"completed": "response.completed", "incomplete": "response.incomplete"}
    number = 0

    def say(kind: str, **members: Any) -> bytes:
        nonlocal number
        number += 1
        return _event({"type": kind, "sequence_number": number - 1, **members}, kind)

    begun = {**reply, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    if "completed_at" in reply:
        begun["completed_at"] = None
    yield say("response.created", response=begun)
    yield say("response.in_progress", response=begun)
    for index, item in enumerate(reply["output"]):
        tell = _ITEMS.get(item["type"])
        if tell is None:
            raise Inexact
        place = {"item_id": item.get("id"), "output_index": index}
        yield from tell(say, item, place, piece_chars)
        yield say("response.output_item.done", output_index=index, item=item)
    yield say(ends[reply["status"]], response=reply)


Say = Callable[..., bytes]


def _added(say: Say, item: Json, place: Json, empty: Json) -> bytes:
    begun = {**item, **empty, **({"status": "in_progress"} if "status" in item else {})}
    return say("response.output_item.added", output_index=place["output_index"], item=begun)


def _message(say: Say, item: Json, place: Json, piece_chars: int | None) -> Iterator[bytes]:
    yield _added(say, item, place, {"content": []})
    for number, part in enumerate(item["content"]):
        at, kind = {**place, "content_index": number}, part["type"]
        if kind not in ("output_text", "refusal"):
            raise Inexact
        name, what = ("text", "response.output_text") if kind == "output_text" else ("refusal", "response.refusal")
        lists: Json = {member: [] for member in ("annotations", "logprobs") if isinstance(part.get(member), list)}
        yield say("response.content_part.added", **at, part={**part, name: "", **lists})
        logprobs = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
        for piece in [part[name]] if part.get("logprobs") else _parts(part[name], piece_chars):
            yield say(f"{what}.delta", **at, delta=piece, **logprobs)
        for n, annotation in enumerate(part.get("annotations") or ()):
            yield say("response.output_text.annotation.added", **at, annotation_index=n, annotation=annotation)
        yield say(f"{what}.done", **at, **{name: part[name]}, **logprobs)
        yield say("response.content_part.done", **at, part=part)


def _function_call(say: Say, item: Json, place: Json, piece_chars: int | None) -> Iterator[bytes]:
    yield _added(say, item, place, {"arguments": ""})
    yield say("response.function_call_arguments.delta", **place, delta=item["arguments"])
    yield say("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])


def _custom_tool_call(say: Say, item: Json, place: Json, piece_chars: int | None) -> Iterator[bytes]:
    yield _added(say, item, place, {"input": ""})
    yield say("response.custom_tool_call_input.delta", **place, delta=item["input"])
    yield say("response.custom_tool_call_input.done", **place, input=item["input"])


def _reasoning(say: Say, item: Json, place: Json, piece_chars: int | None) -> Iterator[bytes]:
    if item.get("content"):
        raise Inexact
    yield _added(say, item, place, {"summary": []})
    for number, part in enumerate(item.get("summary") or ()):
        at = {**place, "summary_index": number}
        yield say("response.reasoning_summary_part.added", **at, part={**part, "text": ""})
        for piece in _parts(part["text"], piece_chars):
            yield say("response.reasoning_summary_text.delta", **at, delta=piece)
        yield say("response.reasoning_summary_text.done", **at, text=part["text"])
        yield say("response.reasoning_summary_part.done", **at, part=part)


_ITEMS: Mapping[str, Callable[[Say, Json, Json, int | None], Iterator[bytes]]] = {
    "message": _message,
    "function_call": _function_call,
    "custom_tool_call": _custom_tool_call,
    "reasoning": _reasoning,
}


def _event(data: Json, name: str | None = None) -> bytes:
    said = orjson.dumps(data)
    return b"data: %b\n\n" % said if name is None else b"event: %b\ndata: %b\n\n" % (name.encode(), said)


DISASSEMBLERS: Mapping[str, Callable[[Json, bool, int | None], Iterator[bytes]]] = {
    "chat": _chat,
    "completions": _completion,
    "responses": _response,
}
