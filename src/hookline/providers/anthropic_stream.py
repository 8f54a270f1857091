"""Anthropic stream: the events of a streamed message as OpenAI's chat completion chunks.

Lives here: one event in, the chunks it becomes out; usage and completeness seen so far.
Elsewhere: bytes to events and back (transport, the provider); the tables of reasons and errors (anthropic_reply.py).
Idea: nothing is held back and nothing is collected: each delta leaves as a delta. What is remembered is one small record per open content block, and usage.

    message_start                     -> role chunk
    content_block_delta text          -> delta.content
    content_block_delta thinking      -> delta.reasoning_content, and delta.thinking_blocks with the block's index
    content_block_delta signature     -> delta.thinking_blocks (the same index: clients that merge deltas get the signed block)
    content_block_start tool_use      -> delta.tool_calls with id and name;  input_json -> its arguments
    message_delta with a stop_reason  -> finish chunk
    message_stop                      -> usage chunk (choices empty), [DONE]
    error                             -> OpenAI error object, and nothing after it"""

from __future__ import annotations

from hookline.providers.anthropic_reply import (
    SERVICE_TIERS,
    as_text,
    error_from_anthropic,
    find_refusal,
    finish_reason,
    translate_usage,
    write_arguments,
)
from hookline.providers.untranslatable import JsonObject

DONE = b"data: [DONE]\n\n"
"""The end of a stream on OpenAI's wire, ready to be written."""

MAX_OPEN_BLOCKS = 64
"""The API opens one content block after the other; what a broken upstream opens beyond this is not followed."""


class _Block:
    """An open content block: the place of its deltas on OpenAI's wire."""

    __slots__ = ("has_deltas", "input", "kind", "place")

    def __init__(self, kind: str, place: int, block_input: object) -> None:
        self.kind = kind
        self.place = place
        self.input = block_input
        self.has_deltas = False


class AnthropicStream:
    """Translates one stream. A dict that comes out is the JSON of one `data:` event, bytes are written as they are."""

    def __init__(self, *, model: str, created: int) -> None:
        """In: the model name until the stream tells one, the time of the reply in Unix seconds."""
        self.is_complete = False
        """The model's answer has ended: a stop reason was seen. What comes after it is only bookkeeping."""
        self.error_status: int | None = None
        """The HTTP status that fits the error the upstream sent inside the stream, None without one."""
        self._model = model
        self._created = created
        self._id = "msg_unknown"
        self._has_begun = False
        self._is_over = False
        self._usage: JsonObject = {}
        self._blocks: dict[int, _Block] = {}
        self._tool_count = 0
        self._thinking_count = 0

    @property
    def usage(self) -> JsonObject | None:
        """OpenAI's usage as far as it was told: early in a stream, the input and the first output tokens."""
        return translate_usage(self._usage)

    def feed(self, event_name: str | None, data: JsonObject) -> list[JsonObject | bytes]:
        """The chunks that one event becomes, in order; none for pings and for what is not known here."""
        if self._is_over:
            return []
        handler = _HANDLERS.get(as_text(data.get("type")) or event_name or "")
        return handler(self, data) if handler else []

    def end(self) -> list[JsonObject | bytes]:
        """What is still owed when the upstream closed: usage and [DONE] after a complete answer, nothing after a cut one or after `message_stop`."""
        if self._is_over or not self.is_complete:
            return []
        self._is_over = True
        usage = self.usage
        usage_chunk: list[JsonObject | bytes] = [{**self._chunk([]), "usage": usage}] if usage else []
        return [*usage_chunk, DONE]

    def _message_start(self, data: JsonObject) -> list[JsonObject | bytes]:
        message = data.get("message")
        if isinstance(message, dict):
            self._id = as_text(message.get("id")) or self._id
            self._model = as_text(message.get("model")) or self._model
            self._see_usage(message.get("usage"))
        return self._begin()

    def _block_start(self, data: JsonObject) -> list[JsonObject | bytes]:
        block = data.get("content_block")
        if not isinstance(block, dict) or len(self._blocks) >= MAX_OPEN_BLOCKS:
            return []
        kind = as_text(block.get("type"))
        number = _number(data)
        if kind == "tool_use":
            self._blocks[number] = _Block(kind, self._tool_count, block.get("input"))
            self._tool_count += 1
            call = {"id": as_text(block.get("id")), "type": "function"}
            function = {"name": as_text(block.get("name")), "arguments": ""}
            return self._delta(tool_calls=[{"index": self._blocks[number].place, **call, "function": function}])
        if kind in ("thinking", "redacted_thinking"):
            self._blocks[number] = _Block(kind, self._thinking_count, None)
            self._thinking_count += 1
            fields = {name: block[name] for name in ("thinking", "signature", "data") if as_text(block.get(name))}
            return self._thinking(self._blocks[number], fields) if fields else []
        return self._delta(content=block["text"]) if kind == "text" and as_text(block.get("text")) else []

    def _block_delta(self, data: JsonObject) -> list[JsonObject | bytes]:
        delta = data.get("delta")
        if not isinstance(delta, dict):
            return []
        kind = delta.get("type")
        if kind == "text_delta" and as_text(delta.get("text")):
            return self._delta(content=delta["text"])
        block = self._blocks.get(_number(data))
        if block is None:
            return []
        if kind == "input_json_delta" and block.kind == "tool_use" and as_text(delta.get("partial_json")):
            block.has_deltas = True
            return self._delta(tool_calls=[{"index": block.place, "function": {"arguments": delta["partial_json"]}}])
        for name in ("thinking", "signature"):
            if kind == f"{name}_delta" and block.kind == "thinking" and as_text(delta.get(name)):
                return self._thinking(block, {name: delta[name]})
        return []

    def _block_stop(self, data: JsonObject) -> list[JsonObject | bytes]:
        block = self._blocks.pop(_number(data), None)
        if block is None or block.kind != "tool_use" or block.has_deltas:
            return []
        # A call without arguments has no delta at all, and an empty string is not JSON to the client.
        arguments = write_arguments(block.input)
        return self._delta(tool_calls=[{"index": block.place, "function": {"arguments": arguments}}])

    def _message_delta(self, data: JsonObject) -> list[JsonObject | bytes]:
        self._see_usage(data.get("usage"))
        delta = data.get("delta")
        if self.is_complete or not isinstance(delta, dict) or not as_text(delta.get("stop_reason")):
            return []
        refusal = find_refusal(delta.get("stop_details"))
        return self._finish(finish_reason(delta["stop_reason"]), {"refusal": refusal} if refusal else {})

    def _message_stop(self, data: JsonObject) -> list[JsonObject | bytes]:
        # A server that ends properly without a stop reason has still ended properly.
        finish = [] if self.is_complete else self._finish("tool_calls" if self._tool_count else "stop", {})
        return [*finish, *self.end()]

    def _error(self, data: JsonObject) -> list[JsonObject | bytes]:
        self._is_over = True
        self.is_complete = False
        self.error_status, body = error_from_anthropic(200, data)
        return [body]

    def _see_usage(self, usage: object) -> None:
        """Later counts replace earlier ones: they are totals."""
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}

    def _begin(self) -> list[JsonObject | bytes]:
        if self._has_begun:
            return []
        self._has_begun = True
        return self._delta(role="assistant", content="")

    def _finish(self, reason: str, delta: JsonObject) -> list[JsonObject | bytes]:
        self.is_complete = True
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return [*self._begin(), self._chunk([choice])]

    def _thinking(self, block: _Block, fields: JsonObject) -> list[JsonObject | bytes]:
        delta: JsonObject = {"thinking_blocks": [{"index": block.place, "type": block.kind, **fields}]}
        if "thinking" in fields:
            delta = {"reasoning_content": fields["thinking"], **delta}
        return self._delta(**delta)

    def _delta(self, **delta: object) -> list[JsonObject | bytes]:
        return [*self._begin(), self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])]

    def _chunk(self, choices: list[JsonObject]) -> JsonObject:
        chunk: JsonObject = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if tier := SERVICE_TIERS.get(as_text(self._usage.get("service_tier"))):
            chunk["service_tier"] = tier
        return chunk


_HANDLERS = {
    "message_start": AnthropicStream._message_start,
    "content_block_start": AnthropicStream._block_start,
    "content_block_delta": AnthropicStream._block_delta,
    "content_block_stop": AnthropicStream._block_stop,
    "message_delta": AnthropicStream._message_delta,
    "message_stop": AnthropicStream._message_stop,
    "error": AnthropicStream._error,
}


def _number(data: JsonObject) -> int:
    index = data.get("index")
    return index if isinstance(index, int) else 0
