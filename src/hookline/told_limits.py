"""Told limits: what an upstream says in its headers about the limits it keeps for us.

Lives here: which headers say it, and how times are written in them. Elsewhere: what is made of it: whom to ask (model_selection's loads.py), when to come again after a 429 (attempt_errors.py).
Idea: the names of each dialect are a table; a value that can't be read says nothing.

OpenAI, Azure, Groq, Mistral and most servers of that wire: `x-ratelimit-remaining-requests`, reset as "6m0s" or "120ms". Anthropic: `anthropic-ratelimit-requests-remaining`, reset as an
RFC 3339 time. Others: `x-ratelimit-remaining` with seconds or a Unix time (OpenRouter's in milliseconds), and `ratelimit-remaining` of the IETF draft."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from multidict import istr

LimitKind = Literal["requests", "tokens", "input_tokens", "output_tokens"]
"""What is limited; "tokens" are both together."""

NAMES: tuple[tuple[LimitKind, istr, istr], ...] = (
    ("requests", istr("x-ratelimit-remaining-requests"), istr("x-ratelimit-reset-requests")),
    ("tokens", istr("x-ratelimit-remaining-tokens"), istr("x-ratelimit-reset-tokens")),
    ("requests", istr("anthropic-ratelimit-requests-remaining"), istr("anthropic-ratelimit-requests-reset")),
    ("tokens", istr("anthropic-ratelimit-tokens-remaining"), istr("anthropic-ratelimit-tokens-reset")),
    ("input_tokens", istr("anthropic-ratelimit-input-tokens-remaining"), istr("anthropic-ratelimit-input-tokens-reset")),
    ("output_tokens", istr("anthropic-ratelimit-output-tokens-remaining"), istr("anthropic-ratelimit-output-tokens-reset")),
    ("requests", istr("x-ratelimit-remaining"), istr("x-ratelimit-reset")),
    ("requests", istr("ratelimit-remaining"), istr("ratelimit-reset")),
)  # fmt: skip
UNSAID_RESET_S = 5.0
"""Azure often leaves the reset out; its windows are 1 or 10 s."""
UNIX_FROM, UNIX_MS_FROM = 1e9, 1e11
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


class Told(NamedTuple):
    """What is left, and in how many seconds there is more."""

    kind: LimitKind
    remaining: int
    reset_s: float


def read_told(headers: Mapping[str, str], now: float) -> Sequence[Told]:
    """What these headers say; `now` is Unix time."""
    told: list[Told] | None = None
    find = headers.get
    for kind, remaining_name, reset_name in NAMES:
        remaining = find(remaining_name)
        if remaining is not None and remaining.isascii() and remaining.isdigit() and len(remaining) < 16:
            told = told or []
            told.append(Told(kind, int(remaining), seconds_until(find(reset_name, ""), now)))
    return told or ()


def wait_for_more(headers: Mapping[str, str], now: float) -> float | None:
    """In how many seconds there is more of everything that is used up; None where that is not said."""
    resets = [headers.get(reset) for _, remaining, reset in NAMES if headers.get(remaining) == "0"]
    return max((seconds_until(reset, now) for reset in resets if reset), default=None)


def seconds_until(text: str, now: float) -> float:
    """A reset as seconds from now, never below 0: "6m0s", "120ms", "1.5", Unix seconds or milliseconds, RFC 3339."""
    text = text.strip()
    if not text or len(text) > 40:
        return UNSAID_RESET_S
    try:
        number = float(text)
    except ValueError:
        found = _DURATION.fullmatch(text)
        if found is not None:
            days, hours, minutes, seconds, ms = (float(group or 0) for group in found.groups())
            return days * 86_400 + hours * 3_600 + minutes * 60 + seconds + ms / 1_000
        try:
            return max(datetime.fromisoformat(text).timestamp() - now, 0.0)
        except (ValueError, OverflowError):
            return UNSAID_RESET_S
    if not 0 <= number < 1e15:  # NaN too
        return UNSAID_RESET_S
    if number >= UNIX_FROM:
        number = (number / 1_000 if number >= UNIX_MS_FROM else number) - now
    return max(number, 0.0)
