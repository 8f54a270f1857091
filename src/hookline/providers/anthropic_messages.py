"""Anthropic messages: the conversation of a chat completion as the turns of the Messages API.

Lives here: who speaks; system prompt, turns, tool results, thinking blocks given back.
Elsewhere: what a message contains (anthropic_content.py), tool calls (anthropic_tools.py), every other field of the request (anthropic_request.py).
Idea: the Messages API has two alternating speakers and one system prompt, so three rules do it.
System and developer messages, wherever they stand, become `system` in their order, one block each.
A tool result is something the user says; neighbours of one speaker become one turn, in order, so the results of parallel calls share a turn as the API demands.
In an assistant turn thinking blocks come first, exactly as they were received, then text, then tool calls."""

from __future__ import annotations

from hookline.providers.anthropic_content import TARGET, read_cache_control, write_blocks
from hookline.providers.anthropic_tools import read_tool_call, write_tool_id
from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_choice,
    read_list,
    read_name,
    read_object,
    read_optional_list,
    read_text,
    refuse_unknown,
)

_MESSAGE_FIELDS: dict[str, frozenset[str]] = {
    "system": frozenset({"role", "content", "cache_control"}),
    "user": frozenset({"role", "content", "cache_control"}),
    # annotations and reasoning_content only describe what was answered: the signed original of the thinking is in thinking_blocks.
    # parsed is the content once more, added by the openai package.
    "assistant": frozenset(
        {
            "role",
            "content",
            "cache_control",
            "refusal",
            "tool_calls",
            "thinking_blocks",
            "reasoning_content",
            "annotations",
            "parsed",
        }
    ),
    # name repeats the function's name, which the tool_call_id already tells.
    "tool": frozenset({"role", "content", "cache_control", "tool_call_id", "name"}),
}


def write_messages(value: object, request: JsonObject) -> None:
    """Put `system` and `messages` into `request`. Raises `Untranslatable` naming the first message part that cannot be sent."""
    system: list[JsonObject] = []
    turns: list[JsonObject] = []
    for number, item in enumerate(read_list(value, "messages")):
        path = f"messages[{number}]"
        message = read_object(item, path)
        role = read_choice(message.get("role"), f"{path}.role", ("system", "developer", "user", "assistant", "tool"))
        role = "system" if role == "developer" else role
        refuse_unknown(message, _MESSAGE_FIELDS[role], path, target=TARGET)
        blocks = _BLOCKS[role](message, path)
        _mark_last(blocks, message.get("cache_control"), f"{path}.cache_control")
        if role == "system":
            system += blocks
        elif blocks:
            _say(turns, "assistant" if role == "assistant" else "user", blocks)
    if not turns:
        raise Untranslatable('"messages" has no user message: an Anthropic model needs one to answer', param="messages")
    if system:
        request["system"] = _plain(system)
    request["messages"] = [{"role": turn["role"], "content": _plain(turn["content"])} for turn in turns]


def find_lost_thinking(messages: list[JsonObject]) -> int | None:
    """The index of the assistant message of a running tool loop that was sent back without its thinking blocks, if there is one.

    `messages` are the client's, already translated once, so their shape is known."""
    number = len(messages) - 1
    while number >= 0 and messages[number]["role"] == "tool":
        number -= 1
    is_loop = 0 <= number < len(messages) - 1 and messages[number].get("tool_calls")
    return number if is_loop and not messages[number].get("thinking_blocks") else None


def _say(turns: list[JsonObject], role: str, blocks: list[JsonObject]) -> None:
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _plain(blocks: list[JsonObject]) -> str | list[JsonObject]:
    """One bare text block is a string on this wire."""
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        text: str = blocks[0]["text"]
        return text
    return blocks


def _mark_last(blocks: list[JsonObject], cache_control: object, path: str) -> None:
    if cache_control is not None and blocks:
        blocks[-1]["cache_control"] = read_cache_control(cache_control, path)


def _system_blocks(message: JsonObject, path: str) -> list[JsonObject]:
    return write_blocks(message.get("content"), f"{path}.content", ("text",))


def _user_blocks(message: JsonObject, path: str) -> list[JsonObject]:
    blocks = write_blocks(message.get("content"), f"{path}.content", ("text", "image_url", "file"))
    if not blocks:
        raise Untranslatable(
            f'"{path}.content" is empty: an Anthropic model takes no empty user message; leave the message out',
            param=f"{path}.content",
        )
    return blocks


def _assistant_blocks(message: JsonObject, path: str) -> list[JsonObject]:
    blocks = [
        _thinking_block(read_object(block, f"{path}.thinking_blocks[{number}]"), f"{path}.thinking_blocks[{number}]")
        for number, block in enumerate(read_optional_list(message.get("thinking_blocks"), f"{path}.thinking_blocks"))
    ]
    if message.get("content") is not None:
        blocks += write_blocks(message["content"], f"{path}.content", ("text", "refusal"))
    if message.get("refusal") is not None and (refusal := read_text(message["refusal"], f"{path}.refusal")):
        blocks.append({"type": "text", "text": refusal})
    for number, call in enumerate(read_optional_list(message.get("tool_calls"), f"{path}.tool_calls")):
        blocks.append(read_tool_call(call, f"{path}.tool_calls[{number}]"))
    return blocks


def _tool_blocks(message: JsonObject, path: str) -> list[JsonObject]:
    result: JsonObject = {
        "type": "tool_result",
        "tool_use_id": write_tool_id(read_name(message.get("tool_call_id"), f"{path}.tool_call_id")),
    }
    if content := write_blocks(message.get("content"), f"{path}.content", ("text", "image_url", "file")):
        result["content"] = _plain(content)
    return [result]


_BLOCKS = {"system": _system_blocks, "user": _user_blocks, "assistant": _assistant_blocks, "tool": _tool_blocks}


def _thinking_block(block: JsonObject, path: str) -> JsonObject:
    """A block exactly as the API gave it; `index` is what our stream adds for clients that merge deltas."""
    kind = read_choice(block.get("type"), f"{path}.type", ("thinking", "redacted_thinking"))
    if kind == "redacted_thinking":
        return {"type": kind, "data": read_name(block.get("data"), f"{path}.data")}
    return {
        "type": kind,
        "thinking": read_text(block.get("thinking", ""), f"{path}.thinking"),
        "signature": read_name(block.get("signature"), f"{path}.signature"),
    }
