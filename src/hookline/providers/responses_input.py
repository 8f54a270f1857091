"""Responses input: instructions and input items as the messages of a chat completion.

Lives here: messages, function calls and their outputs, reasoning items, content parts.
Elsewhere: every other field of the request (responses_request.py).
Idea: one answer of a model is several items there (reasoning, message, function calls) and one assistant message here, so neighbours of that kind are joined again.
Reasoning goes back only where it holds what its provider signed (responses_reasoning.py): a chat message has no other place for it."""

from __future__ import annotations

from hookline.providers.responses_reasoning import unpack_thinking
from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_choice,
    read_list,
    read_name,
    read_object,
    read_text,
    refuse_unknown,
    show,
)

TARGET = "a provider that only chats"
"""How error messages call the other side."""

_BOOKKEEPING = ("id", "status", "type")
_ITEM_FIELDS: dict[str, tuple[str, ...]] = {
    # phase labels what a model answered; it does not change what was said.
    "message": (*_BOOKKEEPING, "role", "content", "phase"),
    "function_call": (*_BOOKKEEPING, "call_id", "name", "arguments"),
    "function_call_output": (*_BOOKKEEPING, "call_id", "output", "name"),
    "reasoning": (*_BOOKKEEPING, "summary", "content", "encrypted_content"),
}


def write_input(payload: JsonObject, chat: JsonObject) -> None:
    """Put `messages` into `chat`. Raises `Untranslatable` naming the first item that cannot be sent."""
    conversation = _Conversation()
    if payload.get("instructions") is not None:
        conversation.say("system", read_text(payload["instructions"], "instructions"))
    given = payload.get("input")
    if isinstance(given, str):
        conversation.say("user", given)
    else:
        if not isinstance(given, list):
            read_text(given, "input")
        for number, item in enumerate(read_list(given, "input")):
            _write_item(conversation, read_object(item, f"input[{number}]"), f"input[{number}]")
    if not conversation.messages:
        raise Untranslatable('"input" is empty: there is nothing to answer', param="input")
    chat["messages"] = conversation.messages


class _Conversation:
    """The messages so far, and the thinking that belongs to the next assistant message."""

    def __init__(self) -> None:
        self.messages: list[JsonObject] = []
        self._thinking: list[JsonObject] = []

    def say(self, role: str, content: object, **fields: object) -> None:
        self._thinking = []
        self.messages.append({"role": role, "content": content, **fields})

    def think(self, blocks: list[JsonObject]) -> None:
        self._thinking += blocks

    def answer(self, text: str) -> None:
        """An assistant message. Behind tool calls it belongs to them: nothing may stand between calls and their results."""
        last = self._last_answer()
        if last is not None and "tool_calls" in last:
            last["content"] = (last["content"] or "") + text
        else:
            self.messages.append({"role": "assistant", "content": text})
        self._attach_thinking()

    def call(self, call: JsonObject) -> None:
        last = self._last_answer()
        if last is None:
            last = {"role": "assistant", "content": None}
            self.messages.append(last)
        last.setdefault("tool_calls", []).append(call)
        self._attach_thinking()

    def _last_answer(self) -> JsonObject | None:
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last["role"] == "assistant" else None

    def _attach_thinking(self) -> None:
        if self._thinking:
            self.messages[-1].setdefault("thinking_blocks", []).extend(self._thinking)
            self._thinking = []


def _write_item(conversation: _Conversation, item: JsonObject, path: str) -> None:
    kind = item.get("type", "message")
    if kind == "item_reference":
        raise Untranslatable(
            f'"{path}.type" = "item_reference" cannot be sent to {TARGET}: nothing is kept between calls here; send the whole items (clients do so with store = false)',
            param=f"{path}.type",
        )
    if not isinstance(kind, str) or kind not in _ITEM_FIELDS:
        raise Untranslatable(
            f'"{path}.type" = {show(kind)} cannot be sent to {TARGET}; send messages, function calls and their outputs',
            param=f"{path}.type",
        )
    refuse_unknown(item, _ITEM_FIELDS[kind], path, target=TARGET)
    if kind == "message":
        _write_message(conversation, item, path)
    elif kind == "function_call":
        arguments = read_text(item.get("arguments"), f"{path}.arguments")
        function = {"name": read_name(item.get("name"), f"{path}.name"), "arguments": arguments}
        call_id = read_name(item.get("call_id"), f"{path}.call_id")
        conversation.call({"id": call_id, "type": "function", "function": function})
    elif kind == "function_call_output":
        call_id = read_name(item.get("call_id"), f"{path}.call_id")
        conversation.say("tool", _content(item.get("output"), f"{path}.output"), tool_call_id=call_id)
    else:
        conversation.think(unpack_thinking(item.get("encrypted_content")))


def _write_message(conversation: _Conversation, item: JsonObject, path: str) -> None:
    role = read_choice(item.get("role"), f"{path}.role", ("user", "assistant", "system", "developer"))
    where = f"{path}.content"
    if role == "assistant":
        conversation.answer(_answer_text(item.get("content"), where))
    elif role == "user":
        conversation.say("user", _content(item.get("content"), where))
    else:
        # Servers that only chat often do not know the developer role, and it means the same.
        conversation.say("system", _content(item.get("content"), where, kinds=("input_text",)))


def _answer_text(content: object, path: str) -> str:
    """What the assistant said, refusals included: one string, which every chat server takes."""
    if isinstance(content, str):
        return content
    texts = []
    for number, part in _parts(content, path, ("output_text", "refusal", "input_text")):
        field = "refusal" if part["type"] == "refusal" else "text"
        texts.append(read_text(part.get(field), f"{path}[{number}].{field}"))
    return "".join(texts)


def _content(
    content: object, path: str, *, kinds: tuple[str, ...] = ("input_text", "input_image", "input_file")
) -> str | list[JsonObject]:
    if isinstance(content, str):
        return content
    parts = [_PARTS[part["type"]](part, f"{path}[{number}]") for number, part in _parts(content, path, kinds)]
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _parts(content: object, path: str, kinds: tuple[str, ...]) -> list[tuple[int, JsonObject]]:
    if not isinstance(content, list):
        read_text(content, path)
    parts = []
    for number, item in enumerate(read_list(content, path)):
        part = read_object(item, f"{path}[{number}]")
        if part.get("type") not in kinds:
            raise Untranslatable(
                f'"{path}[{number}].type" = {show(part.get("type"))} cannot be sent to {TARGET} here; send {" or ".join(kinds)}',
                param=f"{path}[{number}].type",
            )
        parts.append((number, part))
    return parts


def _text_part(part: JsonObject, path: str) -> JsonObject:
    refuse_unknown(part, ("type", "text"), path, target=TARGET)
    return {"type": "text", "text": read_text(part.get("text"), f"{path}.text")}


def _image_part(part: JsonObject, path: str) -> JsonObject:
    refuse_unknown(part, ("type", "image_url", "detail"), path, target=TARGET)
    image = {"url": read_name(part.get("image_url"), f"{path}.image_url")}
    if part.get("detail") is not None:
        image["detail"] = read_text(part["detail"], f"{path}.detail")
    return {"type": "image_url", "image_url": image}


def _file_part(part: JsonObject, path: str) -> JsonObject:
    refuse_unknown(part, ("type", "file_data", "filename"), path, target=TARGET)
    file = {"file_data": read_name(part.get("file_data"), f"{path}.file_data")}
    if part.get("filename") is not None:
        file["filename"] = read_text(part["filename"], f"{path}.filename")
    return {"type": "file", "file": file}


_PARTS = {"input_text": _text_part, "input_image": _image_part, "input_file": _file_part}
