"""Complexity: how hard a request is: simple, medium or complex.

Lives here: the three classes, and the offline estimate for requests that don't say. Elsewhere: the words it knows (words.py), requests that say (wishes.py), plugins that know better (the slot
`COMPLEXITY`), which deployment serves which class (policies.py).
Idea: a score anybody can add up by hand from `score`; no model, no network. Every point is named in the note that explains a choice.

It reads at most `READ_CHARS` of the last question, words and formulas at most in `WORDS_CHARS` of it, so its cost does not grow with the request. Words of sixteen languages are known; all other signals need
no language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

from hookline import Call
from hookline.builtins.model_selection import words
from hookline.builtins.model_selection.needs import listed, wants_json_schema

Complexity = Literal["simple", "medium", "complex"]
CLASSES: tuple[Complexity, ...] = get_args(Complexity)

READ_CHARS = 20_000
WORDS_CHARS = 2_000
"""What is wanted stands at the beginning or the end; in between is what it is wanted for, whose words say nothing."""
MEDIUM_FROM, COMPLEX_FROM = 2, 5
"""Scores; they tell the questions of tests/builtins/test_complexity.py apart as their authors would."""

CODE = re.compile(
    r"```|^[ \t]*(?:def|class|import|from|func|fn|public|private|const|let|var|SELECT|#include)\b|\{[ \t]*$|^[ \t]*\}[;,)]{0,3}[ \t]*$|[)\]}\"'A-Za-z0-9_];[ \t]*$|Traceback",
    re.MULTILINE,
)
FORMULA = re.compile(
    r"\\(?:frac|sqrt|sum|int|lim|forall|exists|begin)\b|[\u2200-\u22ff]|\b(?:sqrt|log|ln|sin|cos|tan|exp|lim)\(|[\w)]\^[\w({]"
)
"""LaTeX, mathematical operators, functions, powers."""
QUESTIONS = re.compile(r"[?\uff1f\u061f]+")
TASKS = re.compile(
    r"^[ \t]*(?:(?:\d{1,4}[.)]|[-*\u2022])[ \t]+|\d{1,4}[\u3001\uff0e\uff09]|\uff08\d{1,4}\uff09|[\u2460-\u2473])[ \t]*\S",
    re.MULTILINE,
)
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
SYLLABLES = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
"""Kana and Hangul."""
PROOF, WORK, THOUGHT = words.Words(words.PROOF), words.Words(words.WORK), words.Words(words.THOUGHT)


class Reading(NamedTuple):
    """What the estimate looks at."""

    question: str
    """The last thing a user said: at most its first and last `READ_CHARS` / 2."""
    text_chars: int
    """Of all messages, as many as it would be in letters."""
    turns: int


class Estimate(NamedTuple):
    complexity: Complexity
    score: int
    points: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.complexity}: score {self.score}{''.join(f', {name} +{n}' for name, n in self.points)}"


def estimate(call: Call) -> Estimate:
    """The class of a request, and how it came to it."""
    payload = call.payload or {}
    points = tuple((name, n) for name, n in score(read(payload), payload) if n)
    total = sum(n for _, n in points)
    return Estimate(class_of(total), total, points)


def class_of(total: int) -> Complexity:
    return CLASSES[(total >= MEDIUM_FROM) + (total >= COMPLEX_FROM)]


def score(reading: Reading, payload: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The signals and their points. This is the documented table: docs/howto/choose-a-model.md."""
    question = reading.question
    text = _ends(question, WORDS_CHARS).lower()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    yield "length", _steps(reading.text_chars, (1_500, 6_000, 24_000))
    yield "code", 2 if CODE.search(question) else 0
    yield "formula", 1 if FORMULA.search(text) else 0
    yield "proof", 5 if PROOF.find(text) else 0
    yield "work in steps", min(2 * len(WORK.find(text)), 4)
    yield "thought", min(len(THOUGHT.find(text)), 3)
    yield "questions and tasks", _steps(len(QUESTIONS.findall(question)) + len(TASKS.findall(question)), (3, 8))
    tools = (*listed(payload.get("tools")), *listed(payload.get("functions")))
    yield "tools", _steps(sum(1 for tool in tools if isinstance(tool, dict)), (1, 5))
    yield "JSON schema", 1 if wants_json_schema(payload) else 0
    yield "turns", _steps(reading.turns, (6, 20))
    yield "reasoning effort", {"medium": 1, "high": 5, "xhigh": 5}.get(_effort(payload), 0)


def read(payload: dict[str, Any]) -> Reading:
    """One pass over the messages, whatever their shape."""
    question, chars, turns = "", 0, 0
    for top in (payload.get("messages"), payload.get("input"), payload.get("prompt")):
        for item in [top] if isinstance(top, str) else listed(top):
            message = item if isinstance(item, dict) else {"content": item}
            content = message.get("content")
            texts = [content] if isinstance(content, str) else [_text(part) for part in listed(content)]
            chars += sum(map(len, texts))
            role = message.get("role", "user")
            turns += role in ("user", "assistant")
            if role == "user" and any(texts):
                question = "\n".join(texts)
    instructions = payload.get("instructions")
    chars += len(instructions) if isinstance(instructions, str) else 0
    question = _ends(question, READ_CHARS)
    return Reading(question, int(chars * _letters_per_char(question)), turns)


def _ends(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[: chars // 2]}\n{text[-chars // 2 :]}"


def _letters_per_char(text: str) -> float:
    """How much a character says, in letters: a Chinese one three, a Japanese or Korean syllable two."""
    text = _ends(text, WORDS_CHARS)
    if text.isascii():
        return 1.0
    return 1.0 + (2 * len(HAN.findall(text)) + len(SYLLABLES.findall(text))) / len(text)


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _steps(value: int, limits: tuple[int, ...]) -> int:
    """How many of the limits are reached."""
    return sum(value >= limit for limit in limits)


def _effort(payload: dict[str, Any]) -> str:
    """Chat: `reasoning_effort`; responses: `reasoning.effort`."""
    reasoning = payload.get("reasoning")
    effort = payload.get("reasoning_effort") or (reasoning.get("effort") if isinstance(reasoning, dict) else None)
    return effort if isinstance(effort, str) else ""
