"""Bounds: how many tokens a call can be at most, before anybody has counted.

Lives here: the input bound from the request's bytes, the output bound from its limits. Elsewhere: what they cost (money.py), who holds them (builtins/rate_limit,
builtins/budget).
Idea: a byte-level BPE never makes more tokens than UTF-8 bytes, so bytes plus a constant per message bound any text. What the request only refers to (a URL, a
file id, a stored conversation), and what is no text, has no such bound: then the model's context window is the bound, and the field is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hookline.call import Call
from hookline.slots import Slot

MESSAGE_TOKENS = 8
"""What a chat format adds to each message: 3 to 4 tokens at OpenAI (their cookbook on counting tokens), doubled."""
TOOLS_TOKENS = 700
"""What a request with tools is given beside them: 264 to 530 tokens at Anthropic (their table in "tool use", system prompt tokens)."""
INLINE_IMAGE_TOKENS = 48_169
"""The most that one image costs at OpenAI: gpt-4o-mini, high detail, 8 tiles (2,833 + 8 x 5,667; their guide to images and vision)."""
ENDPOINTS_WITH_OUTPUT = frozenset({"chat", "completions", "responses"})
REFERRING_MEMBERS = ("conversation", "previous_response_id")
UNUSUAL_MEMBERS = frozenset({*REFERRING_MEMBERS, "prompt", "audio", "tools", "functions"})
TEXT_PARTS = frozenset(
    {"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text", "thinking", "redacted_thinking"}
)
IMAGE_PARTS = frozenset({"image_url", "input_image", "computer_screenshot"})
BOUNDED_AUDIO = frozenset({"wav", "mp3", "pcm16"})
"""Formats of which a second is never fewer bytes than tokens: an MP3 has at least 8 kbit/s, and nobody counts 1,000 tokens a second."""
_LISTS = frozenset({"embeddings", "completions", "moderations"})


class InputBound(NamedTuple):
    """`tokens` bounds what is in the request's bytes; `open_field` names what has no bound there, None if nothing does."""

    tokens: int
    open_field: str | None
    inputs: int = 1
    """How many texts are read apart from each other: each may fill the context window."""
    has_audio: bool = False
    """Audio is sent or asked for: its tokens have prices of their own."""


INPUT_BOUND: Slot[InputBound] = Slot("input bound")


def bound_input(call: Call) -> InputBound:
    """The input bound of a call, worked out once. Uploads are bounded by nothing: their field is "file"."""
    bound = call.slots.get(INPUT_BOUND)
    if bound is None:
        bound = call.slots[INPUT_BOUND] = measure_input(call)
    return bound


def bound_output(call: Call, *, default_tokens: int, model_max_tokens: int | None = None) -> int:
    """Tokens of one answer at most, times the answers asked for; 0 for endpoints that answer with no text of their own."""
    if call.endpoint not in ENDPOINTS_WITH_OUTPUT:
        return 0
    view = call.chat
    limit = view.max_output_tokens
    tokens = default_tokens if limit is None else limit
    if model_max_tokens is not None and tokens > model_max_tokens:
        tokens = model_max_tokens
    if call.payload is not None and call.payload.get("prediction"):
        tokens += len(call.body)  # what was predicted and not taken is charged as output
    return tokens * view.choices if tokens > 0 else 0


def measure_input(call: Call) -> InputBound:
    """The same as `bound_input`, without remembering."""
    payload = call.payload
    if payload is None:
        return InputBound(0, "file" if call.upload is not None else None)
    tokens, inputs = len(call.body) + MESSAGE_TOKENS, 1
    open_field, has_audio, prompt = None, False, None
    if not UNUSUAL_MEMBERS.isdisjoint(payload):
        open_field = next((name for name in REFERRING_MEMBERS if payload.get(name)), None)
        has_audio = payload.get("audio") is not None
        prompt = payload.get("prompt")
        if type(prompt) is dict:
            open_field = open_field or "prompt"
        if payload.get("tools") or payload.get("functions"):
            tokens += TOOLS_TOKENS
    items = payload.get("messages")
    if items is None:
        items = payload.get("input")
    if type(items) is list:
        tokens += MESSAGE_TOKENS * len(items)
        reading: _Reading | None = None
        for item in items:
            if type(item) is dict and not (len(item) == 2 and "role" in item and type(item.get("content")) is str):
                reading = reading or _Reading()
                reading.read_item(item)
        if reading is not None:
            tokens += reading.extra_tokens
            open_field = open_field or reading.open_field
            has_audio = has_audio or reading.has_audio
    if call.endpoint in _LISTS:
        listed = prompt if call.endpoint == "completions" else items
        if type(listed) is list and listed and type(listed[0]) is not int:
            inputs = len(listed)
            tokens += MESSAGE_TOKENS * inputs if listed is prompt else 0
    return InputBound(tokens, open_field, inputs, has_audio)


class _Reading:
    """What the messages of a request hold beside text."""

    __slots__ = ("extra_tokens", "has_audio", "open_field")

    def __init__(self) -> None:
        self.extra_tokens = 0
        """Of inline images, less the bytes that were counted for them; never below 0 per image."""
        self.open_field: str | None = None
        self.has_audio = False

    def read_item(self, item: Mapping[str, Any]) -> None:
        for name in ("content", "output"):
            parts = item.get(name)
            if isinstance(parts, dict):
                parts = [parts]
            if isinstance(parts, list):
                for part in parts:
                    if isinstance(part, dict):
                        self._read_part(part)
        if item.get("type") == "item_reference":
            self._leave_open("input.item_reference")
        if item.get("audio"):  # an answer of before, by its id
            self._leave_open("audio")
            self.has_audio = True

    def _read_part(self, part: Mapping[str, Any]) -> None:
        kind = part.get("type")
        if kind in TEXT_PARTS:
            return
        image = part.get("image_url")
        if image is not None:
            self._read_image(image.get("url") if isinstance(image, dict) else image)
        elif kind == "input_audio":
            self.has_audio = True
            audio = part.get("input_audio")
            if not isinstance(audio, dict) or audio.get("format") not in BOUNDED_AUDIO:
                self._leave_open("input_audio")
        elif kind in IMAGE_PARTS and not part.get("file_id"):
            self._leave_open("image_url")
        elif kind is not None or not part.keys() <= {"text"}:
            self._leave_open(_named(part, kind))

    def _read_image(self, url: Any) -> None:
        if not isinstance(url, str) or not url.startswith("data:"):
            self._leave_open("image_url")
        elif url.startswith("data:image/"):
            self.extra_tokens += INLINE_IMAGE_TOKENS - len(url)
        else:
            self.extra_tokens += INLINE_IMAGE_TOKENS

    def _leave_open(self, field: str) -> None:
        self.open_field = self.open_field or field


def _named(part: Mapping[str, Any], kind: Any) -> str:
    """The field of a part that refers outside, or is of a kind nobody has a bound for."""
    inner = part.get("file") if isinstance(part.get("file"), dict) else part
    for name in ("file_id", "file_url", "file_data"):
        if isinstance(inner, dict) and inner.get(name):
            return name
    return kind if isinstance(kind, str) and len(kind) <= 40 else "content"
