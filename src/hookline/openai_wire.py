"""What the pipeline knows of the OpenAI wire: usage, what was said, errors.

Lives here: what a `usage` object counts, how many bytes of text an event says, which object is an error, how one is said inside a stream. Elsewhere: where a stream's end begins (stream_watch.py), SSE framing
(transport/sse.py), other dialects (providers/).
Idea: functions of data; what no table here knows passes as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson

from hookline.call import Endpoint
from hookline.money import Usage
from hookline.transport.sse import parse_event

OWN_CALLS = frozenset({"function_call", "custom_tool_call", "local_shell_call", "apply_patch_call"})
"""Output items of tools that the client runs itself."""
UNREAD_CALLS = (("unread", 0),)
"""In a usage whose reply was too large to look for hosted tools in it."""
TOKENS_MAX = 1 << 30
"""No call has so many: such a count is none. Its cost is still exact in a ledger and in Redis."""
_BEING_MADE = ("queued", "in_progress")
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d+)')
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
    return error_of(parsed(block)) if b"error" in block else None


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


def _says_something(data: dict[str, Any]) -> bool:
    """Whether a chunk has choices other than those that an error ended."""
    choices = data.get("choices")
    return (
        any(member_of(choice, "finish_reason") != "error" for choice in choices) if isinstance(choices, list) else False
    )


_SPOKEN = ("delta", "text", "message")


def said_in(event: Any) -> int:
    """How many bytes of text an event of a stream says, as JSON has them: contents, reasoning, arguments, whatever stands in a delta. No token is shorter than a byte."""
    if type(event) is not dict:
        return 0
    kind = event.get("type")
    if type(kind) is str:  # a whole item repeats its deltas, if it had any
        return _text_bytes(event.get("item") if kind == "response.output_item.done" else event.get("delta"))
    choices = event.get("choices")
    if type(choices) is not list:
        return 0
    return sum(_text_bytes(choice.get(name)) for choice in choices if type(choice) is dict for name in _SPOKEN)


def _text_bytes(value: Any) -> int:
    kind = type(value)
    if kind is str:
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if kind is dict:
        return sum(_text_bytes(part) for name, part in value.items() if name != "role")
    return sum(map(_text_bytes, value)) if kind is list else 0


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


def parsed(block: bytes) -> Any:
    """The JSON in an event block; None if it holds none."""
    data = parse_event(block).data
    if not data or data == b"[DONE]":
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
