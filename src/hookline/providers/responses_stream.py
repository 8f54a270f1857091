"""Responses stream: chat completion chunks as the events of a streamed Response.

Lives here: one chunk in, the events it becomes out, in the order and with the numbers OpenAI gives them.
Elsewhere: the objects inside the events (responses_reply.py), bytes to chunks and events to bytes (the provider).
Idea: output items open one after the other; text and thinking close when something else begins, function calls when the answer ends, because some servers interleave the arguments of parallel calls.
The protocol repeats the whole answer in its last events, so the text is kept until then, up to `MAX_HELD_CHARS`.

    first chunk        -> response.created, response.in_progress
    reasoning_content  -> output_item.added, reasoning_summary_part.added, reasoning_summary_text.delta ... done, part.done, output_item.done
    content, refusal   -> output_item.added, content_part.added, output_text.delta or refusal.delta ... done, content_part.done, output_item.done
    tool_calls         -> output_item.added, function_call_arguments.delta ... done, output_item.done
    [DONE] or EOF      -> response.completed, or response.incomplete after finish_reason length or content_filter
    error              -> response.failed, and nothing after it"""

from __future__ import annotations

from hookline.providers import responses_reply as reply
from hookline.providers.untranslatable import JsonObject

MAX_HELD_CHARS = 32 * 1024 * 1024
"""As much text as a request may have; a longer answer fails instead of filling the memory."""

_ERROR_CODES = {"rate_limit_exceeded": "rate_limit_exceeded"}


class _Item:
    """An output item that is still growing. `pieces` is the text of its thinking or open content part, or the arguments of a call."""

    __slots__ = ("blocks", "call_id", "id", "kind", "name", "part_kind", "parts", "pieces", "place")

    def __init__(self, kind: str, item_id: str, place: int) -> None:
        self.kind = kind
        self.id = item_id
        self.place = place
        self.pieces: list[str] = []
        self.parts: list[JsonObject] = []
        self.part_kind = ""
        self.blocks: dict[int, JsonObject] = {}
        self.call_id = ""
        self.name = ""


class ResponsesStream:
    """Translates one stream. Each event that comes out has its `type` and `sequence_number`; the SSE event name is the type."""

    def __init__(self, request: JsonObject) -> None:
        """In: the Responses request that `to_chat` accepted."""
        self.is_complete = False
        """The model's answer has ended: a finish reason (or [DONE]) was seen."""
        self.next_sequence_number = 0
        self._request = request
        self._response: JsonObject | None = None
        self._base_id = "unknown"
        self._output: dict[int, JsonObject] = {}
        self._open: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._place = 0
        self._has_answered = False
        self._finish_reason: str | None = None
        self._held_chars = 0
        self._is_over = False

    @property
    def has_begun(self) -> bool:
        """`response.created` was written."""
        return self._response is not None

    def feed(self, chunk: JsonObject) -> list[JsonObject]:
        """The events one chat chunk becomes, in order."""
        if self._is_over:
            return []
        if error := chunk.get("error"):
            return self.fail(error if isinstance(error, dict) else {"message": str(error)[:500]})
        # Azure's first chunk is about the prompt's filters, and has neither id nor choices: the answer begins after it.
        events = self._begin(chunk) if chunk.get("id") or chunk.get("choices") else []
        if isinstance(chunk.get("usage"), dict) and self._response is not None:
            self._response["usage"] = reply.translate_usage(chunk["usage"])
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                events += self._choice(choice)
        if self._held_chars > MAX_HELD_CHARS:
            message = f"the answer is longer than {MAX_HELD_CHARS} characters; lower max_output_tokens"
            return [*events, *self.fail({"message": message})]
        return events

    def done(self) -> list[JsonObject]:
        """The last events, for the upstream's [DONE]."""
        self.is_complete = True
        return self.end()

    def end(self) -> list[JsonObject]:
        """The last events, for the upstream's EOF: nothing if the answer was cut before its end, or if they were given already."""
        if self._is_over or not self.is_complete:
            return []
        self._is_over = True
        events = [*self._begin({}), *self._close_all()]
        response = reply.finish_response(self._begun(), self._finished_output(), self._finish_reason)
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def fail(self, error: JsonObject) -> list[JsonObject]:
        """`response.failed` for an OpenAI error (the inner object). The stream is over with it."""
        self._is_over = True
        self.is_complete = False
        code, message = error.get("code"), error.get("message")
        told = {
            "code": _ERROR_CODES.get(code, "server_error") if isinstance(code, str) else "server_error",
            "message": message if isinstance(message, str) else "the upstream failed in the middle of its answer",
        }
        failed = {**self._begun(), "status": "failed", "error": told, "output": self._finished_output()}
        return [self._event("response.failed", response=failed)]

    def write_error(self, *, code: str | None, message: str) -> JsonObject:
        """The `error` event that ends a stream whose upstream died, with the number it has here."""
        self._is_over = True
        return self._event("error", code=code, message=message, param=None)

    def _event(self, kind: str, **fields: object) -> JsonObject:
        event = {"type": kind, "sequence_number": self.next_sequence_number, **fields}
        self.next_sequence_number += 1
        return event

    def _begun(self) -> JsonObject:
        if self._response is None:
            self._response = reply.begin_response({}, self._request)
        return self._response

    def _begin(self, chunk: JsonObject) -> list[JsonObject]:
        if self._response is not None:
            return []
        self._base_id = reply.bare_id(chunk.get("id"))
        self._response = reply.begin_response(chunk, self._request)
        snapshot = dict(self._response)
        return [self._event(f"response.{step}", response=snapshot) for step in ("created", "in_progress")]

    def _choice(self, choice: JsonObject) -> list[JsonObject]:
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        events: list[JsonObject] = []
        reasoning, blocks = reply.find_reasoning(delta), reply.find_thinking_blocks(delta)
        if reasoning or blocks:
            events += self._reasoning(reasoning, blocks)
        for field, kind in (("content", "output_text"), ("refusal", "refusal")):
            if isinstance(delta.get(field), str) and delta[field]:
                events += self._text(kind, delta[field])
        for call in reply.find_tool_calls(delta):
            events += self._call(call)
        if choice.get("finish_reason") is not None:
            self._finish_reason = str(choice["finish_reason"])
            self.is_complete = True
        return events

    def _add_item(self, kind: str) -> _Item:
        item = _Item(kind, reply.item_id(kind, self._base_id, self._place), self._place)
        self._place += 1
        self._has_answered = self._has_answered or kind != "rs"
        return item

    def _hold(self, pieces: list[str], text: str) -> None:
        pieces.append(text)
        self._held_chars += len(text)

    def _item_event(self, kind: str, item: _Item, **fields: object) -> JsonObject:
        return self._event(kind, item_id=item.id, output_index=item.place, **fields)

    def _added(self, item: _Item, shown: JsonObject) -> JsonObject:
        return self._event("response.output_item.added", output_index=item.place, item=shown)

    def _item_done(self, item: _Item, shown: JsonObject) -> JsonObject:
        self._output[item.place] = shown
        return self._event("response.output_item.done", output_index=item.place, item=shown)

    def _reasoning(self, text: str, blocks: list[JsonObject]) -> list[JsonObject]:
        events: list[JsonObject] = []
        if self._open is None or self._open.kind != "rs":
            fresh = self._add_item("rs")
            events += self._close_open()
            self._open = fresh
            shown = reply.reasoning_item(self._open.id, "", [], status="in_progress")
            events.append(self._added(self._open, shown))
        item = self._open
        for block in blocks:
            self._merge_block(item, block)
        if not text:
            return events
        if not item.pieces:
            part = {"type": "summary_text", "text": ""}
            events.append(self._item_event("response.reasoning_summary_part.added", item, summary_index=0, part=part))
        self._hold(item.pieces, text)
        delta = self._item_event("response.reasoning_summary_text.delta", item, summary_index=0, delta=text)
        return [*events, delta]

    def _merge_block(self, item: _Item, block: JsonObject) -> None:
        """Deltas of one thinking block share an index; their strings add up, but for the type."""
        index = block.get("index")
        known = item.blocks.setdefault(index if isinstance(index, int) else len(item.blocks), {})
        for name, value in block.items():
            if isinstance(value, str):
                known[name] = value if name == "type" else known.get(name, "") + value
                self._held_chars += len(value)

    def _close_reasoning(self, item: _Item) -> list[JsonObject]:
        events: list[JsonObject] = []
        text = "".join(item.pieces)
        if text:
            part = {"type": "summary_text", "text": text}
            events = [
                self._item_event("response.reasoning_summary_text.done", item, summary_index=0, text=text),
                self._item_event("response.reasoning_summary_part.done", item, summary_index=0, part=part),
            ]
        blocks = [item.blocks[index] for index in sorted(item.blocks)]
        shown = reply.reasoning_item(item.id, text, blocks, status=self._status(item))
        return [*events, self._item_done(item, shown)]

    def _text(self, kind: str, text: str) -> list[JsonObject]:
        events: list[JsonObject] = []
        if self._open is None or self._open.kind != "msg":
            fresh = self._add_item("msg")
            events += self._close_open()
            self._open = fresh
            events.append(self._added(self._open, reply.message_item(self._open.id, [], status="in_progress")))
        item = self._open
        if item.pieces and item.part_kind != kind:
            events += self._close_part(item)
        if not item.pieces:
            item.part_kind = kind
            place = len(item.parts)
            part = _part(kind, "")
            events.append(self._item_event("response.content_part.added", item, content_index=place, part=part))
        self._hold(item.pieces, text)
        logprobs: JsonObject = {"logprobs": []} if kind == "output_text" else {}
        place = len(item.parts)
        delta = self._item_event(f"response.{kind}.delta", item, content_index=place, delta=text, **logprobs)
        return [*events, delta]

    def _close_part(self, item: _Item) -> list[JsonObject]:
        if not item.pieces:
            return []
        kind, text, place = item.part_kind, "".join(item.pieces), len(item.parts)
        said = {"text": text, "logprobs": []} if kind == "output_text" else {"refusal": text}
        part = _part(kind, text)
        item.pieces = []
        item.parts.append(part)
        return [
            self._item_event(f"response.{kind}.done", item, content_index=place, **said),
            self._item_event("response.content_part.done", item, content_index=place, part=part),
        ]

    def _call(self, call: JsonObject) -> list[JsonObject]:
        function = reply.find_function(call)
        index = call.get("index")
        index = index if isinstance(index, int) else 0
        events: list[JsonObject] = []
        item = self._calls.get(index)
        if item is None:
            item = self._calls[index] = self._add_item("fc")
            events += self._close_open()
            item.call_id = call["id"] if isinstance(call.get("id"), str) else ""
            item.name = function["name"] if isinstance(function.get("name"), str) else ""
            shown = reply.call_item(item.id, item.call_id, item.name, "", status="in_progress")
            events.append(self._added(item, shown))
            self._held_chars += len(item.name) + len(item.call_id) + len(item.id)
        if not item.name and isinstance(function.get("name"), str):
            item.name = function["name"]
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            self._hold(item.pieces, arguments)
            events.append(self._item_event("response.function_call_arguments.delta", item, delta=arguments))
        return events

    def _close_call(self, item: _Item) -> list[JsonObject]:
        arguments = "".join(item.pieces)
        said = {"name": item.name, "arguments": arguments}
        shown = reply.call_item(item.id, item.call_id, item.name, arguments, status=self._status(item))
        return [
            self._item_event("response.function_call_arguments.done", item, **said),
            self._item_done(item, shown),
        ]

    def _close_open(self) -> list[JsonObject]:
        item, self._open = self._open, None
        if item is None:
            return []
        if item.kind == "rs":
            return self._close_reasoning(item)
        events = self._close_part(item)
        return [*events, self._item_done(item, reply.message_item(item.id, item.parts, status=self._status(item)))]

    def _close_all(self) -> list[JsonObject]:
        events: list[JsonObject] = []
        if not self._has_answered:  # an answer without a word is still a message
            events += self._text("output_text", "")
        events += self._close_open()
        for item in self._calls.values():
            events += self._close_call(item)
        return events

    def _status(self, item: _Item) -> str:
        """Where the answer was cut, its last item is incomplete."""
        is_cut = self._finish_reason in reply.INCOMPLETE_REASONS and item.place == self._place - 1
        return "incomplete" if is_cut else "completed"

    def _finished_output(self) -> list[JsonObject]:
        return [self._output[place] for place in sorted(self._output)]


def _part(kind: str, text: str) -> JsonObject:
    return reply.text_part(text) if kind == "output_text" else reply.refusal_part(text)
