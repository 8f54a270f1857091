"""Demo behaviours: what each demo model does, by its name.

Lives here: the table of names and what they mean. Elsewhere: who obeys it (demo.py), what an answer says (demo_chat.py).
Idea: a behaviour is data: how to answer, how long to wait, where to break. So the docs table is this table, and any route can fail in any of these ways."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

MAX_WAIT_S = 3600.0

Answer = Literal["echo", "lorem", "tools", "tools-parallel", "json"]
Break = Literal["cut", "stall", "error", "no-done"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a demo model does. `fails_with`: an HTTP status, or a kind of transport failure, instead of an answer."""

    doc: str
    answer: Answer = "echo"
    is_slow: bool = False
    waits_s: float | None = None
    """Before the first byte; more than the target's timeout is a timeout. `is_slow`: what the option says."""
    fails_with: int | str | None = None
    is_flaky: bool = False
    """Every second call fails, beginning with the first."""
    breaks: Break | None = None
    """In the middle of a stream; an answer that is no stream fails as a whole."""


BEHAVIOURS: dict[str, Behaviour] = {
    "echo": Behaviour("repeats the last user message"),
    "lorem": Behaviour("writes Latin, 60 words or up to the limit in the request", answer="lorem"),
    "tools": Behaviour(
        "calls the first tool with arguments that fit its schema, then repeats the result; made to call again, the next",
        answer="tools",
    ),
    "tools-parallel": Behaviour("calls every tool at once", answer="tools-parallel"),
    "json": Behaviour(
        "answers JSON, by the schema in `response_format` or in a message if there is one", answer="json"
    ),
    "slow": Behaviour("begins after `slow_s` seconds; `demo/slow-2` after 2", is_slow=True),
    "stall": Behaviour("never answers: the first-byte timeout ends it", waits_s=float("inf")),
    "flaky": Behaviour("every second call is a 500, beginning with the first", is_flaky=True),
    "unreachable": Behaviour("fails as if nothing listened there", fails_with="connect"),
    "reset": Behaviour("fails as if the connection broke before an answer", fails_with="reset"),
    "cut-mid-stream": Behaviour("the connection breaks in the middle of the answer", breaks="cut"),
    "stall-mid-stream": Behaviour("falls silent in the middle of the answer: the idle timeout ends it", breaks="stall"),
    "error-mid-stream": Behaviour("an error event in the middle of the stream", breaks="error"),
    "no-done": Behaviour("a stream that ends with a finish_reason and without `[DONE]`", breaks="no-done"),
}
"""Beside these: `error-NNN` answers with that status (`error-429` says retry-after 1), `slow-SECONDS` waits."""

LISTED = (*BEHAVIOURS, "error-429", "error-500")
"""What `GET /v1/models` shows."""

_ERROR = re.compile(r"error-([45]\d\d)")
_SLOW = re.compile(r"slow-(\d{1,4}(?:\.\d{1,3})?)")


def find_behaviour(model: str) -> Behaviour:
    """What the model of this name does. A name that is none of ours is answered like `echo`, so that any program can be tried."""
    name = model.removeprefix("demo/")
    known = BEHAVIOURS.get(name)
    if known is not None:
        return known
    if error := _ERROR.fullmatch(name):
        return Behaviour("answers with that status", fails_with=int(error.group(1)))
    if slow := _SLOW.fullmatch(name):
        return Behaviour("begins after that many seconds", waits_s=min(float(slow.group(1)), MAX_WAIT_S))
    return BEHAVIOURS["echo"]


def error_object(
    status: int, message: str | None = None, *, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """The OpenAI error object for a status."""
    kinds = {
        400: "invalid_request_error",
        401: "invalid_request_error",
        404: "invalid_request_error",
        429: "rate_limit_error",
    }
    codes = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "an error"
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    text = message or f"the demo answers {status} {phrase}, as the model's name asks for"
    return {"error": {"message": text, "type": kind, "param": param, "code": code or codes.get(status)}}
