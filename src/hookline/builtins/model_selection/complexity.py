"""Complexity: how hard a request is: simple, medium or complex.

Lives here: the three classes, and the offline estimate for requests that don't say. Elsewhere: requests that say (wishes.py), plugins that know better (the slot `COMPLEXITY`), which
deployment serves which class (policies.py).
Idea: a score anybody can add up by hand from `SIGNALS`; no model, no network. Every point is named in the note that explains a choice.

It reads at most `READ_CHARS` of the last question, so its cost does not grow with the request. Words are English; a question in another language is judged by its other signals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

from hookline import Call
from hookline.builtins.model_selection.needs import listed, wants_json_schema

Complexity = Literal["simple", "medium", "complex"]
CLASSES: tuple[Complexity, ...] = get_args(Complexity)

READ_CHARS = 20_000
MEDIUM_FROM, COMPLEX_FROM = 2, 5
"""Scores; they tell the questions of tests/builtins/test_complexity.py apart as their authors would."""

CODE = re.compile(
    r"```|^[ \t]*(?:def|class|import|from|func|fn|public|private|const|let|var|SELECT|#include)\b|[;{}][ \t]*$|Traceback",
    re.MULTILINE,
)
REASONING = re.compile(
    r"\b(?:prove|derive|theorem|step[- ]by[- ]step|trade-?offs?|compare|contrast|evaluate|analy[sz]e|architect\w*|design|refactor\w*|optimi[sz]e|debug|diagnose|"
    r"root cause|implement|algorithm|complexity|plan|strategy|justify|why|explain how|pros and cons|edge cases?)\b",
    re.IGNORECASE,
)
TASKS = re.compile(r"^[ \t]*(?:\d{1,4}[.)]|[-*])[ \t]+\S", re.MULTILINE)


class Reading(NamedTuple):
    """What the estimate looks at."""

    question: str
    """The last thing a user said: at most its first and last `READ_CHARS` / 2."""
    text_chars: int
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
    yield "length", _steps(reading.text_chars, (1_500, 6_000, 24_000))
    yield "code", 2 if CODE.search(question) else 0
    words = {word.lower() for word in REASONING.findall(question)}
    yield "reasoning", min(len(words), 3)
    asked = question.count("?") + question.count("\uff1f") + len(TASKS.findall(question))
    yield "questions and tasks", _steps(asked, (3, 8))
    yield "tools", _steps(sum(1 for tool in listed(payload.get("tools")) if isinstance(tool, dict)), (1, 5))
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
    if len(question) > READ_CHARS:
        question = f"{question[: READ_CHARS // 2]}\n{question[-READ_CHARS // 2 :]}"
    return Reading(question, chars, turns)


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
