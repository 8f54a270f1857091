"""The vault of one call: what was masked, and how it is put back.

Lives here: finding e-mail addresses and card numbers, placeholders, restoring. Elsewhere: placeholders cut by a stream (stream.py).
Idea: placeholders are plain words in angle brackets, which models copy well; a number that the request already uses is left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}(?![\w-])"
)
CARD = re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])")
PLACEHOLDER = re.compile(r"<(?:EMAIL|CARD)_\d+>")
PLACEHOLDER_MAX = len("<EMAIL_999999>")
LEFT_ALONE = frozenset(
    {
        "role",
        "type",
        "id",
        "call_id",
        "tool_call_id",
        "item_id",
        "file_id",
        "url",
        "image_url",
        "file_url",
        "data",
        "file_data",
    }
)
"""Members whose strings are no text: a masked id or URL would break the call."""


class Vault:
    """Masks values and remembers them. `taken` is text whose own placeholders must not be given out again."""

    def __init__(self, kinds: Sequence[str], *, taken: str = "") -> None:
        self._kinds = frozenset(kinds)
        self._taken = frozenset(PLACEHOLDER.findall(taken))
        self._placeholders: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._count = {"EMAIL": 0, "CARD": 0}

    @property
    def is_empty(self) -> bool:
        return not self._values

    def mask(self, value: Any) -> Any:
        """A copy of a JSON value with every text in it masked."""
        return _map_text(value, self._mask_text)

    def restore(self, value: Any) -> Any:
        """A copy of a JSON value with every placeholder of this vault put back."""
        return _map_text(value, self.restore_text, skips=frozenset())

    def restore_text(self, text: str) -> str:
        if "<" not in text:
            return text
        return PLACEHOLDER.sub(lambda found: self._values.get(found[0], found[0]), text)

    def may_be_in(self, body: bytes) -> bool:
        """Whether a placeholder can be in these bytes; JSON may write `<` as `\\u003c`."""
        return b"<" in body or b"\\u003" in body

    def could_begin(self, text: str) -> bool:
        """Whether a placeholder of this vault starts with `text`."""
        return any(placeholder.startswith(text) for placeholder in self._values)

    def _mask_text(self, text: str) -> str:
        if text.startswith("data:"):
            return text
        if "email" in self._kinds and "@" in text:
            text = EMAIL.sub(lambda found: self._replace("EMAIL", found[0]), text)
        if "card" in self._kinds:
            text = CARD.sub(
                lambda found: self._replace("CARD", found[0]) if has_valid_check_digit(found[0]) else found[0], text
            )
        return text

    def _replace(self, kind: str, value: str) -> str:
        known = self._placeholders.get((kind, value))
        if known is not None:
            return known
        while True:
            self._count[kind] += 1
            placeholder = f"<{kind}_{self._count[kind]}>"
            if placeholder not in self._taken:
                break
        self._placeholders[kind, value] = placeholder
        self._values[placeholder] = value
        return placeholder


def has_valid_check_digit(number: str) -> bool:
    """The Luhn check of payment card numbers (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _map_text(value: Any, change: Callable[[str], str], *, skips: frozenset[str] = LEFT_ALONE) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change, skips=skips) for item in value]
    if isinstance(value, dict):
        return {k: v if k in skips else _map_text(v, change, skips=skips) for k, v in value.items()}
    return value
