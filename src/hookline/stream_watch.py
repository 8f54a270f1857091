"""The watch on a stream while it is relayed: where its end begins, what it tells of usage, tools and errors, and whether it can be read at all.

Lives here: `StreamWatch`. Elsewhere: what an event means (openai_wire.py), SSE framing (transport/sse.py), the beginning of a stream (peek.py), who drives a body (relay.py).
Idea: a stream is relayed as bytes, whole events at a time. One that differs from one before it in nothing but a piece of text costs three comparisons, a
text delta of a response is known by its shape; every other is parsed.

Rules of the end, by endpoint:
- chat, completions: the end begins with the event whose `usage` comes with empty `choices` or a finish_reason, else with `[DONE]`. Complete = a finish_reason
  of each choice seen, or `[DONE]` (some real servers send only the first).
- responses: the end is `response.completed`, `.incomplete`, `.failed` or `error`.
- any other event stream: the end of its HTTP framing; nothing is held.
An unfinished event waits for the rest of it (ADR 0028); one of more than EVENT_BYTES_MAX leaves as it comes, unread. An error event is an end too; nothing follows it.
Content after what looked like the end: it was none, what was held is let go.
An event whose data is no JSON object is unreadable: the stream is over there. Not so `[DONE]`, a comment, and in chat and completions what has a name (a vendor's ping)."""

from __future__ import annotations

import re
from typing import Any

import orjson

from hookline.call import Endpoint
from hookline.chat_view import EVENTS_OF_JSON
from hookline.money import Usage
from hookline.openai_wire import (
    UNREAD_CALLS,
    USAGE_OBJECT,
    error_of,
    parsed,
    said_in,
    sequence_number_after,
    usage_in,
    usage_of,
)
from hookline.transport.sse import SseEvent, SseSplitter, parse_event

EVENT_BYTES_MAX = 1 << 20
"""A larger event is not parsed: of a picture, or of a `response.completed` that holds one, only both ends are read."""
GIANT_END_BYTES = 64 * 1024
"""So much of either end of a giant event: its type stands at the start, its usage near the end."""
HELD_BYTES_MAX = 1 << 20
"""More than this after the end began is no end: it is let go."""

_RESPONSES_END = ("response.completed", "response.incomplete", "response.failed")
_TEXT, _QUOTE = re.compile(rb'"(?:content|reasoning_content|reasoning|text)": ?"'), ord('"')
_PADDING = b'"obfuscation":"'
"""OpenAI's, which makes events equally long."""
_BLANK_LINE = (b"\n\n", b"\r\n\r\n")
_DONE = b"data: [DONE]\n\n"
_DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta"'
"""How nearly every event of a response begins."""
_NEXT_DELTA = b"}\n\n" + _DELTA
_DELTA_TEXT = re.compile(rb',?"(?:delta|obfuscation)": ?"(?:[^"\\]|\\.)*"')
_END_TYPE = re.compile(rb'"type"\s*:\s*"(response\.(?:completed|incomplete|failed))"')
_FINISH_REASON = re.compile(rb'"finish_reason"\s*:\s*"')


class StreamWatch:
    """Reads a stream while it is relayed. `feed` returns what may leave now; `release` what was held."""

    __slots__ = (
        "_after", "_around", "_around_delta", "_before", "_between", "_endpoint", "_finished", "_giant_start", "_held", "_held_bytes", "_hides_usage", "_is_ending", "_is_opaque", "_is_skipping", "_last", "_reads_all",
        "_relayed_bytes", "_seen", "_splitter", "_tail_bytes", "_text", "error", "has_failed", "has_spoken", "has_tool_call", "is_complete", "is_over", "is_unreadable", "is_usage_final",
        "output_bytes", "usage",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, *, hides_usage: bool = False, choices: int = 1) -> None:
        self._endpoint = endpoint
        self._hides_usage = hides_usage
        self._is_opaque = endpoint not in EVENTS_OF_JSON
        self._reads_all = choices > 1
        self._splitter: SseSplitter | None = None  # made when an event is cut by a chunk, or must be looked at
        self._tail_bytes = 0
        self._relayed_bytes = 0  # of the unfinished event, if it is a giant
        self._is_skipping = False  # inside an event of more than EVENT_BYTES_MAX
        self._giant_start = b""
        self._is_ending = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._seen: set[Any] = set()
        self._finished: set[Any] = set()
        self._last = b""
        # Of the last event that said nothing but some text:
        self._before, self._text, self._between, self._after, self._around = b"", slice(0), b"", b"", 0
        self._around_delta = -1  # of a response's text delta
        self.usage: Usage | None = None
        self.is_usage_final = False
        """It was told at the end; what is told on the way is followed by more."""
        self.error: dict[str, Any] | None = None
        self.is_unreadable = False
        """Before its end came an event that is none."""
        self.is_over = False
        """Nothing that follows is of use: `error` or `is_unreadable`."""
        self.is_complete = False
        self.has_failed = False
        """It ended as it should, with a `response.failed`."""
        self.has_tool_call = False
        self.has_spoken = self._is_opaque
        """Something other than comments has left."""
        self.output_bytes = 0
        """Of what was said, never less: texts and arguments as they stand in JSON. Of streams that nobody reads, all bytes."""

    def feed(self, chunk: bytes) -> bytes:
        if self._tail_bytes or self._is_ending:
            return self._read(chunk)
        alike = 0
        if self._around and chunk.startswith(self._before):
            # The same as one before but for a text without quotes: it can't hold a member's name.
            if chunk.endswith(self._after) and _QUOTE not in chunk[self._text]:
                self.output_bytes += len(chunk) - self._around
                return chunk
            alike = self._pass_alike(chunk)
            if alike == len(chunk):
                return chunk
        elif self._is_opaque:
            self.output_bytes += len(chunk)
            self._relayed_bytes = 0 if chunk.endswith(_BLANK_LINE) else 1
            return chunk
        rest = chunk[alike:] if alike else chunk
        # What has the end in it is read event by event at once.
        if rest.endswith(_BLANK_LINE) and not rest.endswith(_DONE) and self._passes_plain(rest):
            return chunk
        return chunk[:alike] + self._read(rest)

    def finish(self) -> bytes:
        """The upstream's framing ended. Returns what may leave of an unfinished last event."""
        if self._is_opaque:
            self.is_complete = True
        return self.take_unfinished()

    def take_unfinished(self) -> bytes:
        """Nothing more comes. Returns what may leave of a last event that only lacks its blank line; half of one is nobody's."""
        tail = self._splitter.tail if self._splitter is not None else b""
        if not tail or self._is_skipping or self.is_over:
            return b""
        self._splitter, self._tail_bytes = None, 0
        if not self._is_whole(tail):
            self.output_bytes += len(tail)
            return b""
        self._relayed_bytes = len(tail)
        return self._pass(tail, tail)

    def release(self) -> bytes:
        """What was held since the end began."""
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held

    @property
    def is_inside_event(self) -> bool:
        """Bytes of an unfinished event have left: what follows needs a line break first."""
        return self._relayed_bytes > 0

    @property
    def next_sequence_number(self) -> int:
        return sequence_number_after(self._last)

    def _learn(self, chunk: bytes) -> None:
        """Remember what surrounds the texts of its first event, for the next ones: most differ in nothing else. Events of a response are numbered."""
        if self._endpoint == "responses":
            return
        block = chunk if chunk.count(b"data:") == 1 else chunk[: chunk.find(b"\n\n") + 2]
        begin = max([found.end() for found in _TEXT.finditer(block)], default=0)
        end = block.find(b'"', begin) if begin else -1
        if end < 0:
            return
        self._before, self._after = block[:begin], block[end:]
        at = self._after.find(_PADDING) + len(_PADDING)
        self._between = self._after[:at] if at >= len(_PADDING) else b""
        if self._between:
            self._after = self._after[self._after.find(b'"', at) :]
        self._text, self._around = slice(begin, -len(self._after)), begin + len(self._after)

    def _pass_alike(self, chunk: bytes) -> int:
        """How many bytes of it are events that differ from the learned one in nothing but such texts, which are counted."""
        before, between, after, at = self._before, self._between, self._after, 0
        while before and chunk.startswith(before, at):
            begin = at + len(before)
            said = end = chunk.find(b'"', begin)
            if between:
                if not chunk.startswith(between, end):
                    break
                end = chunk.find(b'"', end + len(between))
            if end < 0 or not chunk.startswith(after, end):
                break
            self.output_bytes += said - begin
            at = end + len(after)
        return at

    def _passes_plain(self, chunk: bytes) -> bool:
        """Whether these are whole events that are nothing but said; then they are counted, and the first is learned."""
        said = self._said_plain(chunk)
        if said < 0:
            return False
        self.output_bytes += said
        self._last, self.has_spoken = chunk, True
        self._learn(chunk)
        return True

    def _said_plain(self, chunk: bytes) -> int:
        """The bytes said by these events, if each is whole and a JSON object that is neither end, usage nor error, nor begins a tool call; else -1."""
        try:
            if chunk.startswith(_DELTA) and (count := self._count_deltas(chunk)):
                return self._said_by_deltas(chunk, count)
            if not chunk.startswith(b"data: "):
                every = [_data_of(block) for block in chunk.removesuffix(b"\n\n").split(b"\n\n")]
            elif (count := chunk.count(b"\n\n")) <= 1:
                return said_in(data) if self._says_little(data := orjson.loads(chunk[6:])) else -1
            else:
                every = orjson.loads(b"[%b]" % chunk[6:-2].replace(b"\n\ndata: ", b","))
                if len(every) != count:
                    return -1
        except orjson.JSONDecodeError:
            return -1
        return sum(map(said_in, every)) if all(map(self._says_little, every)) else -1

    def _count_deltas(self, chunk: bytes) -> int:
        """How many text deltas of a response these are, by their shape: half an object would hardly end so. 0: something else."""
        count = chunk.count(b"\n\n")
        is_all = chunk.endswith(b"}\n\n") and chunk.count(_NEXT_DELTA) == count - 1
        return count if is_all and self._endpoint == "responses" else 0

    def _said_by_deltas(self, chunk: bytes, count: int) -> int:
        """Not less than they say: what stood around the first one's text stands around each; its number gets no shorter."""
        if self._around_delta < 0:
            block = chunk[: chunk.find(b"\n\n") + 2]
            self._around_delta = len(_DELTA_TEXT.sub(b"", block))
        return len(chunk) - count * self._around_delta

    def _says_little(self, data: Any) -> bool:
        if type(data) is not dict or data.get("error") or self._reads_all:
            return False
        kind = data.get("type")
        if kind == "error":
            return False
        if self._endpoint == "responses":
            return kind not in _RESPONSES_END
        choices = data.get("choices")
        if type(choices) is not list or data.get("usage"):
            return False
        for choice in choices:
            if type(choice) is not dict or choice.get("finish_reason") is not None:
                return False
            delta = choice.get("delta")
            if not delta:
                continue
            if type(delta) is not dict:
                return False
            if not self.has_tool_call and ("tool_calls" in delta or "function_call" in delta):
                return False
        return True

    def _is_whole(self, tail: bytes) -> bool:
        """Whether it holds data that is JSON or `[DONE]`."""
        return parsed(tail) is not None or parse_event(tail).data.strip() == b"[DONE]"

    def _read(self, chunk: bytes) -> bytes:
        """The careful way: event by event."""
        splitter = self._splitter
        if splitter is None:
            splitter = self._splitter = SseSplitter()
        tail_bytes, relayed_bytes = self._tail_bytes + len(chunk), self._relayed_bytes
        out: list[bytes] = []
        blocks = splitter.feed(chunk)
        for block in blocks:
            if self.is_over:
                break
            tail_bytes -= len(block)
            rest, relayed_bytes = block[relayed_bytes:], 0
            if self._is_skipping:
                self._is_skipping = False
                self.output_bytes += len(rest)
                out.append(self._pass(_digest(self._giant_start, block), rest))
                continue
            self._last = block
            if not self._is_ending and (self._pass_alike(block) == len(block) or self._passes_plain(block)):
                out.append(rest)
            elif said := self._pass(block, rest):
                self.has_spoken = self.has_spoken or not parse_event(block).is_comment_only
                out.append(said)
        if tail_bytes > EVENT_BYTES_MAX and not self.is_over:
            seen = splitter.tail
            self.output_bytes += len(seen) - relayed_bytes
            out += [self.release(), seen[relayed_bytes:]]
            self.has_spoken = True
            if not self._is_skipping:
                self._is_skipping = True
                self._last = self._giant_start = seen[:GIANT_END_BYTES]
                self.has_tool_call = self.has_tool_call or b'"tool_calls"' in seen
            splitter = self._splitter = SseSplitter()
            end = (
                b"x" + seen[-GIANT_END_BYTES:]
            )  # the x: a line end that is cut off here must not pass for a blank line
            splitter.feed(end)
            tail_bytes = relayed_bytes = len(end)
        elif self._is_skipping:  # the rest of a giant leaves as it comes
            out.append(chunk)
            self.output_bytes += len(chunk)
            relayed_bytes = tail_bytes
        self._tail_bytes, self._relayed_bytes = tail_bytes, relayed_bytes
        return b"".join(out)

    def _pass(self, block: bytes, rest: bytes) -> bytes:
        """What of this event may leave now: `rest` are its bytes that have not left yet."""
        if self.is_over:
            return b""
        is_end, is_hidden = self._judge(block)
        if self.is_unreadable:
            self.is_over = True
            return b""
        if self.error is not None:
            is_end = self.is_over = True
        if not (is_end or self._is_ending):
            return self.release() + (b"" if is_hidden else rest)
        self._is_ending = True
        if not is_hidden or len(rest) < len(block):  # half of it has left: the rest must follow
            self._held.append(rest)
            self._held_bytes += len(rest)
        return self.release() if self._held_bytes > HELD_BYTES_MAX else b""

    def _judge(self, block: bytes) -> tuple[bool, bool]:
        """(the end begins here, the client did not ask for this) of one event; notes usage, completeness, error."""
        data = parsed(block)
        self.output_bytes += said_in(data)
        if not isinstance(data, dict):
            event = parse_event(block)
            text = event.data.strip()
            if text == b"[DONE]":
                is_end = self._endpoint != "responses"
                self.is_complete = self.is_complete or is_end
                return is_end, False
            # After its end it does no harm, but is not passed on.
            is_none = bool(text) and self._must_be_object(event)
            self.output_bytes += len(text)
            self.is_unreadable = is_none and not self.is_complete
            return False, is_none
        self.error = error_of(data)
        if self._endpoint == "responses":
            return self._judge_response(data)
        choices = data.get("choices")
        choices = choices if isinstance(choices, list) else []
        is_finish = False
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index", 0)
            self._seen.add(index if isinstance(index, int) else 0)
            if choice.get("finish_reason") is not None:
                is_finish = True
                self._finished.add(index if isinstance(index, int) else 0)
            delta = choice.get("delta")
            if isinstance(delta, dict) and (delta.get("tool_calls") or delta.get("function_call")):
                self.has_tool_call = True
        if is_finish and self._seen <= self._finished:
            self.is_complete = True
        elif choices and not is_finish:
            self._is_ending = self.is_usage_final = False
            self.is_complete = self.is_complete and self._seen <= self._finished
        told = data.get("usage")
        if not told:
            return False, False
        usage = usage_of(told)
        is_last = not choices or is_finish
        self.is_usage_final = is_last and usage is not None
        if usage is not None:
            self.usage = usage if self.usage is None else _most(usage, self.usage)
        is_hidden = not choices and self._hides_usage
        return (is_last and (usage is not None or is_hidden)), is_hidden

    def _must_be_object(self, event: SseEvent) -> bool:
        return event.event in (None, "error") or self._endpoint == "responses"

    def _judge_response(self, data: dict[str, Any]) -> tuple[bool, bool]:
        kind = data.get("type")
        if kind not in _RESPONSES_END:
            self.is_complete = self.is_complete or kind == "error"
            return False, False
        self.is_complete = True
        self.has_failed = kind == "response.failed"
        response = data.get("response")
        if isinstance(response, dict):
            self.usage = usage_in(response)
            self.is_usage_final = self.usage is not None
            if self.usage is not None and "output" not in response:  # too large to be read
                self.usage = self.usage._replace(tool_calls=UNREAD_CALLS)
        return True, False


def _data_of(block: bytes) -> Any:
    """The JSON of an event that is one line of data behind others. Raises orjson.JSONDecodeError."""
    begin = block.find(b"\ndata: ") + 7
    return orjson.loads(block[begin:] if begin > 6 else b"")


def _most(usage: Usage, before: Usage) -> Usage:
    """The later one; not less than what was told before it."""
    if usage.input_tokens >= before.input_tokens and usage.output_tokens >= before.output_tokens:
        return usage
    inputs, outputs = max(usage.input_tokens, before.input_tokens), max(usage.output_tokens, before.output_tokens)
    return usage._replace(input_tokens=inputs, output_tokens=outputs)


def _digest(start: bytes, end: bytes) -> bytes:
    """What an event too large to parse says of the stream's end, as a small event."""
    usages = USAGE_OBJECT.findall(end) or USAGE_OBJECT.findall(start)
    usage = parsed(b"data: %b" % usages[-1]) if usages else None
    if kind := _END_TYPE.search(start) or _END_TYPE.search(end):
        return b"data: %b" % orjson.dumps({"type": kind[1].decode(), "response": {"usage": usage}})
    is_finish = _FINISH_REASON.search(end) or _FINISH_REASON.search(start)
    choice = {"index": 0, "finish_reason": "stop" if is_finish else None}
    return b"data: %b" % orjson.dumps({"choices": [choice], "usage": usage})
