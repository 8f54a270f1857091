"""Continuing a stream that died half way: what the client has got so far, and how the next deployment is asked to go on.

Lives here: reading along, the messages of a continuation. Elsewhere: when it is done at all (the package's __init__), one stream out of two (the core's continuation.py).
Idea: bytes are kept while they pass and read only when the upstream dies, so a stream that ends well pays for a list.

There are two ways to ask. Some models go on from an assistant message at the end of the conversation as if they had written it; where an operator knows that
(`continues_prefix`), that is what is sent. All others would begin a new answer, and are asked in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from hookline import Call

KEPT_BYTES_MAX = 4 << 20
"""Of the events of one stream; a longer one is not continued. The events of 100,000 tokens are about 20 MB, those of 20,000 fit."""
PROMPT = (
    "Your last message was cut off by a technical fault. Continue it from exactly where it ends, beginning with the very next character. "
    "Do not repeat any of it, do not comment on the interruption."
)
MEMBERS = ("id", "created", "model")


class SoFar(NamedTuple):
    """What the client has got: the text, and the members by which it knows the reply."""

    text: str
    members: Mapping[str, Any]
    tokens: int
    """At least: no event with text holds less than one."""


class ReadAlong:
    """A tap that keeps a stream until it has ended."""

    __slots__ = ("_chunks", "_kept_bytes")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._kept_bytes = 0

    def feed(self, chunk: bytes) -> None:
        self._kept_bytes += len(chunk)
        if self._kept_bytes <= KEPT_BYTES_MAX:
            self._chunks.append(chunk)
        elif self._chunks:
            self._chunks.clear()

    def end(self, is_complete: bool) -> None:
        self._chunks.clear()

    def read(self) -> SoFar | None:
        """What has passed; None if it was too much, or holds what can't be said in words."""
        if self._kept_bytes > KEPT_BYTES_MAX:
            return None
        text: list[str] = []
        members: dict[str, Any] = {}
        for event in _events(b"".join(self._chunks)):
            members = members or {name: event[name] for name in MEMBERS if name in event}
            choices = event.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                delta = choice.get("delta") if isinstance(choice, dict) else None
                if not isinstance(delta, dict):
                    continue
                if any(delta.get(name) for name in ("tool_calls", "function_call", "audio", "refusal")):
                    return None
                if isinstance(delta.get("content"), str):
                    text.append(delta["content"])
        return SoFar("".join(text), members, sum(map(bool, text)))


def why_not(call: Call) -> str | None:
    """Why this call's stream can't be continued; None if it can."""
    if call.endpoint != "chat" or call.payload is None:
        return "only chat streams are continued"
    if call.chat.choices > 1:
        return "there are several answers in it"
    wanted = call.payload.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") not in (None, "text"):
        return "half a JSON text can't be continued in words"
    return None


def messages_going_on(call: Call, text: str, *, is_prefix: bool) -> Sequence[Mapping[str, Any]]:
    """The conversation so far, and the order to go on. Nothing said yet: the conversation as it was."""
    asked: list[Mapping[str, Any]] = list((call.payload or {}).get("messages") or ())
    if not text:
        return asked
    said = {"role": "assistant", "content": text}
    if is_prefix and not text[-1].isspace():  # Anthropic refuses a last message that ends in white space
        return [*asked, said]
    return [*asked, said, {"role": "user", "content": PROMPT}]


def tokens_left(call: Call, so_far: SoFar) -> int | None:
    """What is left of the client's own limit, at most; None: it has set none."""
    limit = call.chat.max_output_tokens
    return None if limit is None else max(limit - so_far.tokens, 1)


def _events(stream: bytes) -> Iterator[dict[str, Any]]:
    for line in stream.splitlines():
        if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
            try:
                event = orjson.loads(line[5:])
            except orjson.JSONDecodeError:
                continue
            if isinstance(event, dict):
                yield event
