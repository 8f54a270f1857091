"""What the pipeline knows of the OpenAI wire: usage, and where a stream's end begins.

Lives here: `usage_of`, `StreamWatch`, `error_event`. Elsewhere: SSE framing (transport/sse.py), who drives a body (relay.py), other dialects (providers/).
Idea: a stream is relayed as bytes and only its end is read. A chunk whose bytes can't hold an end, a usage or an error costs a few substring
searches; only candidates are parsed.

Rules of the end, by endpoint:
- chat, completions: the end begins with the event whose `usage` comes with empty `choices` or a finish_reason, else with `[DONE]`. Complete = a finish_reason
  of each choice seen, or `[DONE]` (some real servers send only the first).
- responses: the end is `response.completed`, `.incomplete`, `.failed` or `error`.
- any other event stream: the end of its HTTP framing; nothing is held.
Bytes of an unfinished event leave at once, except after a finish_reason, where they may be the end. An error event is an end too; nothing follows it.
Content after what looked like the end: it was none, what was held is let go."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson

from hookline.call import Endpoint
from hookline.money import Usage
from hookline.transport.sse import SseSplitter, parse_event

EVENT_BYTES_MAX = 1 << 20
"""A larger event is not parsed: of a picture, or of a `response.completed` that holds one, only both ends are read."""
GIANT_END_BYTES = 64 * 1024
"""So much of either end of a giant event: its type stands at the start, its usage near the end."""
HELD_BYTES_MAX = 1 << 20
"""More than this after the end began is no end: it is let go."""

OWN_CALLS = frozenset({"function_call", "custom_tool_call", "local_shell_call", "apply_patch_call"})
"""Output items of tools that the client runs itself."""
UNREAD_CALLS = (("unread", 0),)
"""In a usage whose reply was too large to look for hosted tools in it."""
TOKENS_MAX = 1 << 30
"""No call has so many: such a count is none. Its cost is still exact in a ledger and in Redis."""
_BEING_MADE = ("queued", "in_progress")
_RESPONSES_END = ("response.completed", "response.incomplete", "response.failed")
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d+)')
_TEXT, _QUOTE = b'"content":"', ord('"')
_BLANK_LINE = (b"\n\n", b"\r\n\r\n")
_END_TYPE = re.compile(rb'"type"\s*:\s*"(response\.(?:completed|incomplete|failed))"')
_FINISH_REASON = re.compile(rb'"finish_reason"\s*:\s*"')
USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*(\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\})')
_CHUNK_OBJECTS = (None, "error", "chat.completion.chunk", "text_completion")


def usage_of(usage: Any, *, has_output: bool = True) -> Usage | None:
    """A `usage` object of chat, completions, embeddings or responses; None if it is none, or if no one can say what it counts.

    `has_output` False: of a reply that holds no text of a model's, whose only count may be its total. Tokens that only the total has were made unseen
    (xAI and Gemini leave reasoning out of `completion_tokens`), so they are output."""
    if not isinstance(usage, dict):
        return None
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        inputs, outputs = usage.get("prompt_tokens"), usage.get("completion_tokens")
        of_inputs, of_outputs = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    else:
        inputs, outputs = usage.get("input_tokens"), usage.get("output_tokens")
        of_inputs, of_outputs = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    total = usage.get("total_tokens")
    if (
        type(inputs) is not int
        or type(outputs) is not int
        or total != inputs + outputs
        or not 0 <= inputs | outputs < TOKENS_MAX
    ):
        counts = _odd_counts(inputs, outputs, total, has_output)
        if counts is None:
            return None
        inputs, outputs = counts
    if not of_inputs and not of_outputs:
        return Usage(inputs, outputs)
    count = _count
    return Usage(
        inputs,
        outputs,
        count(of_inputs, "cached_tokens"),
        count(of_inputs, "cache_write_tokens"),
        count(of_outputs, "reasoning_tokens"),
        False,
        count(of_inputs, "audio_tokens"),
        count(of_outputs, "audio_tokens"),
    )


def usage_in(reply: Any) -> Usage | None:
    """The usage of a whole reply or response object, hosted tools that ran included; None while it is being made."""
    told = member_of(reply, "usage")
    if told is None:
        return None
    output = reply.get("output")
    usage = usage_of(told, has_output=output is not None or "choices" in reply)
    if usage is None or not isinstance(output, list):
        return usage
    if reply.get("status") in _BEING_MADE:
        return None
    kinds = [kind for item in output if isinstance(kind := member_of(item, "type"), str)]
    ran = Counter(kind[:-5] for kind in kinds if kind.endswith("_call") and kind not in OWN_CALLS)
    return usage._replace(tool_calls=tuple(ran.items())) if ran else usage


def error_event(endpoint: Endpoint, told: Mapping[str, Any], sequence_number: int) -> bytes:
    """The event that says, inside a stream, what an error status would have said before it. `told`: the error object."""
    if endpoint == "responses":
        data = {"type": "error", "code": told.get("code"), "message": told.get("message"), "param": None}
        return b"event: error\ndata: %b\n\n" % orjson.dumps({**data, "sequence_number": sequence_number})
    return b"data: %b\n\n" % orjson.dumps({"error": told})


def sequence_number_after(events: bytes) -> int:
    """The `sequence_number` of what follows these events of a responses stream."""
    found = _SEQUENCE.findall(events)
    return int(found[-1]) + 1 if found else 0


def error_in(block: bytes) -> dict[str, Any] | None:
    """The error object in an event block, or None."""
    return error_of(_parsed(block)) if b"error" in block else None


def error_of(data: Any) -> dict[str, Any] | None:
    """The error object that an event or a whole reply is, whatever its status says; or None."""
    if not isinstance(data, dict):
        return None
    told = data.get("error")
    if told and "response" not in data and data.get("object") in _CHUNK_OBJECTS and not _says_something(data):
        if isinstance(told, dict):
            return told
        if isinstance(told, str):  # text-generation-inference
            return {"message": told, "type": data.get("error_type")}
    return data if data.get("type") == "error" else None


class StreamWatch:
    """Reads a stream while it is relayed. `feed` returns what may leave now; `release` what was held."""

    __slots__ = (
        "_after", "_before", "_endpoint", "_finished", "_giant_start", "_held", "_held_bytes", "_hides_usage", "_is_ending", "_is_opaque", "_is_skipping", "_last", "_reads_all",
        "_relayed_bytes", "_seen", "_splitter", "_tail_bytes", "_text", "error", "has_failed", "has_tool_call", "is_complete", "is_usage_final", "output_bytes", "usage",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, *, hides_usage: bool = False, choices: int = 1) -> None:
        self._endpoint = endpoint
        self._hides_usage = hides_usage
        self._is_opaque = endpoint not in ("chat", "completions", "responses")
        self._reads_all = choices > 1
        self._splitter: SseSplitter | None = None  # made when an event is cut by a chunk, or must be looked at
        self._tail_bytes = 0
        self._relayed_bytes = 0  # of the unfinished event
        self._is_skipping = False  # inside an event of more than EVENT_BYTES_MAX
        self._giant_start = b""
        self._is_ending = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._seen: set[Any] = set()
        self._finished: set[Any] = set()
        self._last = b""
        self._before, self._text, self._after = b"-", slice(0), b""  # of the last event that said nothing but some text
        self.usage: Usage | None = None
        self.is_usage_final = False
        """It was told at the end; what is told on the way is followed by more."""
        self.error: dict[str, Any] | None = None
        self.is_complete = False
        self.has_failed = False
        """It ended as it should, with a `response.failed`."""
        self.has_tool_call = False
        self.output_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        self.output_bytes += len(chunk)
        if not self._tail_bytes and not self._is_ending:
            # The same as one before but for a text without quotes: it can't hold a member's name.
            if (
                chunk.startswith(self._before)
                and chunk.endswith(self._after)
                and (_QUOTE not in chunk[self._text] or self._are_alike(chunk))
            ):
                return chunk
            if chunk.endswith(_BLANK_LINE):
                self._last = chunk
                if not self._may_matter(chunk):
                    self._learn(chunk)
                    return chunk
        if self._is_opaque:
            self._relayed_bytes = 0 if chunk.endswith(_BLANK_LINE) else 1
            return chunk
        return self._read(chunk)

    def finish(self) -> bytes:
        """The upstream's framing ended. Returns what may leave of an unfinished last event."""
        if self._is_opaque:
            self.is_complete = True
        return self.take_unfinished()

    def take_unfinished(self) -> bytes:
        """Nothing more comes. Looks at an unfinished last event; returns what of it may leave."""
        tail = self._splitter.tail if self._splitter is not None else b""
        if not tail or self._is_skipping:
            return b""
        rest = tail[self._relayed_bytes :]
        self._splitter, self._tail_bytes, self._relayed_bytes = None, 0, len(tail)
        return self._pass(tail, rest) if self._is_ending or self._may_matter(tail) else rest

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
        """Remember what surrounds the text of an event that does not matter, for the next ones: most differ in nothing else."""
        begin = chunk.find(_TEXT) + len(_TEXT)
        end = chunk.find(b'"', begin) if begin >= len(_TEXT) else -1
        if end >= 0 and chunk.count(b"data:") == 1:
            self._before, self._text, self._after = chunk[:begin], slice(begin, end - len(chunk)), chunk[end:]

    def _are_alike(self, chunk: bytes) -> bool:
        """Whether these are several events that differ in nothing but such texts."""
        before, after, at = self._before, self._after, 0
        while chunk.startswith(before, at):
            begin = at + len(before)
            end = chunk.find(after, begin)
            if end < 0 or _QUOTE in chunk[begin:end]:
                return False
            at = end + len(after)
            if at == len(chunk):
                return True
        return False

    def _may_matter(self, chunk: bytes) -> bool:
        """Whether these bytes can hold an end, a usage or an error. `count` costs 80-120 ns; `in` on bytes twice as much: it makes and drops a TypeError."""
        count = chunk.count
        if self._endpoint == "responses":
            return bool(
                count(b"response.completed")
                or count(b"response.incomplete")
                or count(b"response.failed")
                or count(b"error")
            )
        if self._is_opaque:
            return False
        reasons = count(b'"finish_reason"')
        if reasons and reasons != count(b'"finish_reason":null') + count(b'"finish_reason": null'):
            return True
        usages = count(b'"usage"')
        if usages and usages != count(b'"usage":null') + count(b'"usage": null'):
            return True
        if not self.has_tool_call and count(b'"tool_calls"'):
            return True
        return self._reads_all or bool(count(b"[DONE]") or count(b'"error"'))

    def _read(self, chunk: bytes) -> bytes:
        """The careful way: event by event."""
        splitter = self._splitter
        if splitter is None:
            splitter = self._splitter = SseSplitter()
        tail_bytes, relayed_bytes = self._tail_bytes + len(chunk), self._relayed_bytes
        out: list[bytes] = []
        blocks = splitter.feed(chunk)
        for block in blocks:
            tail_bytes -= len(block)
            rest, relayed_bytes = block[relayed_bytes:], 0
            if self._is_skipping:
                self._is_skipping = False
                out.append(self._pass(_digest(self._giant_start, block), rest))
                continue
            self._last = block
            out.append(self._pass(block, rest) if self._is_ending or self._may_matter(block) else rest)
        is_giant = tail_bytes > EVENT_BYTES_MAX
        if is_giant or (tail_bytes and not self._is_ending and not self._finished):
            # Nothing was held back before in this state, so what is new of the unfinished event is the end of this chunk.
            out += [self.release(), splitter.tail[relayed_bytes:]] if is_giant else [chunk[-tail_bytes:]]
            relayed_bytes = tail_bytes
        if is_giant:
            seen = splitter.tail
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
        self._tail_bytes, self._relayed_bytes = tail_bytes, relayed_bytes
        return b"".join(out)

    def _pass(self, block: bytes, rest: bytes) -> bytes:
        """What of this event may leave now: `rest` are its bytes that have not left yet."""
        if self.error is not None:
            return b""
        is_end, is_hidden = self._judge(block)
        if self.error is not None:
            is_end = True
        if not (is_end or self._is_ending):
            return self.release() + rest
        self._is_ending = True
        if not is_hidden or len(rest) < len(block):  # half of it has left: the rest must follow
            self._held.append(rest)
            self._held_bytes += len(rest)
        return self.release() if self._held_bytes > HELD_BYTES_MAX else b""

    def _judge(self, block: bytes) -> tuple[bool, bool]:
        """(the end begins here, the client did not ask for this) of one event; notes usage, completeness, error."""
        data = _parsed(block)
        if data is None:
            is_done = parse_event(block).data.strip() == b"[DONE]"
            self.is_complete = self.is_complete or is_done
            return is_done, False
        if not isinstance(data, dict):
            return False, False
        self.error = error_in(block)
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


def _most(usage: Usage, before: Usage) -> Usage:
    """The later one; not less than what was told before it."""
    if usage.input_tokens >= before.input_tokens and usage.output_tokens >= before.output_tokens:
        return usage
    inputs, outputs = max(usage.input_tokens, before.input_tokens), max(usage.output_tokens, before.output_tokens)
    return usage._replace(input_tokens=inputs, output_tokens=outputs)


def _says_something(data: dict[str, Any]) -> bool:
    """Whether a chunk has choices other than those that an error ended."""
    choices = data.get("choices")
    return (
        any(member_of(choice, "finish_reason") != "error" for choice in choices) if isinstance(choices, list) else False
    )


def _digest(start: bytes, end: bytes) -> bytes:
    """What an event too large to parse says of the stream's end, as a small event."""
    usages = USAGE_OBJECT.findall(end) or USAGE_OBJECT.findall(start)
    usage = _parsed(b"data: %b" % usages[-1]) if usages else None
    if kind := _END_TYPE.search(start) or _END_TYPE.search(end):
        return b"data: %b" % orjson.dumps({"type": kind[1].decode(), "response": {"usage": usage}})
    is_finish = _FINISH_REASON.search(end) or _FINISH_REASON.search(start)
    choice = {"index": 0, "finish_reason": "stop" if is_finish else None}
    return b"data: %b" % orjson.dumps({"choices": [choice], "usage": usage})


def member_of(of: Any, name: str) -> Any:
    """A member of what may be no object."""
    return of.get(name) if isinstance(of, dict) else None


def _odd_counts(inputs: Any, outputs: Any, total: Any, has_output: bool) -> tuple[int, int] | None:
    """(input, output tokens) of counts that don't simply add up; None where one that matters is missing or is no count."""
    told = [_as_count(value) for value in (inputs, outputs)]
    if any(count is None and value is not None for count, value in zip(told, (inputs, outputs), strict=True)):
        return None
    read, made = told
    both = _as_count(total)
    if not has_output and made is None:
        return None if read is None and both is None else (max(read or 0, both or 0), 0)
    if both is not None and read is not None:
        made = max(made or 0, both - read)
    elif both is not None and made is not None:
        read = max(both - made, 0)
    return None if read is None or made is None else (read, made)


def _as_count(value: Any) -> int | None:
    """A number of tokens, as it may be written (20, 20.0); None if it is none."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < TOKENS_MAX else None


def _count(of: Any, name: str) -> int:
    value = of.get(name) if type(of) is dict else None
    return value if type(value) is int and 0 <= value < TOKENS_MAX else _as_count(value) or 0


def _parsed(block: bytes) -> Any:
    data = parse_event(block).data
    if not data or data == b"[DONE]":
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
