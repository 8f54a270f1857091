"""JSON request bodies: bytes to the one parsed payload.

Lives here: what a JSON body must be (an object, no member twice), the default model of `/v1/completions`. Elsewhere: which bodies
are read as JSON (request_body.py), size limits (exchange.py, content_coding.py), what the members mean (the provider).
Idea: only `model` and `stream` are checked, because only they decide where the call goes; the rest is the provider's business."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, Final

import orjson

from hookline.call import Call
from hookline.errors import BadRequest

MEMBERS_MAX: Final = 1_024
"""Of a request object itself; no API has a tenth of it, and judging a million holds everybody up."""
COUNTED_NAMES_MAX: Final = 64
"""More members than this are not counted one by one: that would be quadratic."""
COUNTED_NAME_CHARS_MAX: Final = 128
"""Nor is a longer name: what is remembered of names must stay small."""
JUDGED_BYTES_MAX: Final = 16_384
DECISIVE: Final = frozenset(
    {"model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "tools", "store", "background",
     "previous_response_id", "conversation", "prompt", "input", "messages"}
)  # fmt: skip
_ESCAPED_ASCII: Final = re.compile(rb"\\u00[0-7]")
_COLON: Final = re.compile(rb"\s*:")


def set_json_body(call: Call, body: bytes, default_completion_model: str | None) -> None:
    """Parse, check and set. Raises BadRequest."""
    payload = parse_object(body)
    stream = payload.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest(f'"stream" must be true or false, not {name_json_type(stream)}', param="stream")
    if call.endpoint == "completions" and default_completion_model is not None and payload.get("model") is None:
        payload["model"] = default_completion_model
        body = orjson.dumps(payload)
    call.set_json(body, payload)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises BadRequest that says where it is broken and quotes nothing."""
    if not body:
        raise BadRequest("the request body is empty; send a JSON object", code="empty_body")
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"the request body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise BadRequest(message, code="invalid_json") from None  # the cause holds the whole body
    if not isinstance(payload, dict):
        raise BadRequest(f"the request body must be a JSON object, not {name_json_type(payload)}", code="invalid_json")
    if len(payload) > MEMBERS_MAX:
        raise BadRequest(
            f"the request body has {len(payload)} members; at most {MEMBERS_MAX} are read", code="too_many_members"
        )
    misspelt, spelled = (judge_names if len(body) <= JUDGED_BYTES_MAX else _judge_names)(tuple(payload))
    if misspelt is not None:
        raise BadRequest(f'write the member "{misspelt}" in lower case', code="misspelt_member", param=misspelt)
    twice = find_repeated_member(body, spelled)
    if twice is not None:
        raise BadRequest("the request body has a member twice; send each once", code="repeated_member", param=twice)
    return payload


Spelled = tuple[tuple[bytes, re.Pattern[bytes]], ...]


def _judge_names(names: tuple[str, ...]) -> tuple[str | None, Spelled | None]:
    """Of the names of an object's members: one that decides what a call may use or costs, in other letters' case; and how each stands in JSON, None if they
    are too many or too long to be counted.

    Readers written in Go take "MODEL" for "model", and the last one counts."""
    for name in names:
        if not (name.isascii() and name.islower()) and (folded := name.casefold()) in DECISIVE:
            return folded, None
    if len(names) > COUNTED_NAMES_MAX or any(len(name) > COUNTED_NAME_CHARS_MAX for name in names):
        return None, None
    return None, tuple(map(_spell, names))


judge_names = lru_cache(256)(_judge_names)
"""Clients send the same members again and again. Only for bodies up to JUDGED_BYTES_MAX, so that the cache holds no novels."""


def find_repeated_member(body: bytes, spelled: Spelled | None) -> str | None:
    """A member name that stands twice at the top of the object. Two readers could disagree which one counts: a key that may use one
    model must not reach another by naming both.

    Counting quoted names is cheap and clears nearly every body; what it can't clear is parsed again, slowly and exactly."""
    if spelled is not None and not _has_escaped_name(body):
        count = body.count
        for quoted, member in spelled:
            if count(quoted) > 1 and len(member.findall(body)) > 1:
                break
        else:
            return None
    repeated: list[str | None] = []
    try:
        json.loads(body, object_pairs_hook=lambda pairs: repeated.append(_find_repeated_name(pairs)))
    except RecursionError:
        raise BadRequest("the request body is nested too deeply", code="invalid_json") from None
    return repeated[-1]  # objects end in order, so the last one to end is the body's own


@lru_cache(512)
def _spell(name: str) -> tuple[bytes, re.Pattern[bytes]]:
    """A name as it stands in JSON, and a pattern for it standing before a colon."""
    quoted = b'"%b"' % name.encode()
    return quoted, re.compile(re.escape(quoted) + rb"\s*:")


def _has_escaped_name(body: bytes) -> bool:
    """A member name spelled with an escape that it does not need would hide from a count. Looks once at each string that holds such an escape."""
    if not body.count(b"\\u00"):  # a tenth of what the search costs
        return False
    escape = _ESCAPED_ASCII.search(body)
    while escape is not None:
        end = body.find(b'"', escape.end())
        if end < 0:
            return False
        if _COLON.match(body, end + 1) is not None:
            return True
        escape = _ESCAPED_ASCII.search(body, end)
    return False


def _find_repeated_name(pairs: list[tuple[str, Any]]) -> str | None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def name_json_type(value: object) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
