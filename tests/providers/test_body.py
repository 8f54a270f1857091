"""The bytes of an attempt: what differs is exchanged, every other byte stays."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hookline.providers.body import limit_changes, splice

NAMES = ("model", "stream_options", "max_tokens", "max_completion_tokens")
SPACES = st.text(" \t\r\n", max_size=3)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(['"model"', "model", '\\"model', "}", "{", "\\", '"', "model\\"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES, "messages"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(NAMES) | st.text(max_size=6)
CHANGES = st.dictionaries(
    st.sampled_from(NAMES), st.text(max_size=8) | st.integers(0, 99) | st.just({"a": [1]}), min_size=1
)


def _escaped(name: str) -> str:
    """The same JSON string, each letter as an escape."""
    return '"' + "".join(f"\\u{ord(letter):04x}" for letter in name) + '"'


@st.composite
def objects(draw: Any) -> list[tuple[str, str]]:
    """A JSON object as written by somebody else: (key as text, all of the member's text), duplicates and odd spacing included."""
    members = []
    for key in draw(st.lists(KEYS, max_size=5)):
        is_escaped = draw(st.booleans()) and all(ord(letter) < 0x10000 for letter in key)
        written = _escaped(key) if is_escaped else json.dumps(key, ensure_ascii=draw(st.booleans()))
        value = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
        spaces = [draw(SPACES) for _ in range(4)]
        members.append((key, spaces[0] + written + spaces[1] + ":" + spaces[2], value, spaces[3]))
    return members


@given(objects(), CHANGES, SPACES, SPACES)
@example([("model", ' "model" :', '"a"', ""), ("x", '"x":', '"\\"model\\":"', "")], {"model": "b"}, "", "\n")
@example([("model", '"\\u006dodel":', '"a"', ""), ("x", '"x":', '{"model":1}', "")], {"model": "b"}, "", "")
@example([("model", '"model":', '"a"', ""), ("model", '"model":', '["b"]', "")], {"model": "c"}, "", "")
def test_exactly_the_changed_members_differ(
    members: list[tuple[str, str, str, str]], changes: dict[str, Any], before: str, after: str
) -> None:
    def write(values: list[str], added: str) -> bytes:
        inside = ",".join(head + value + tail for (_, head, _, tail), value in zip(members, values, strict=True))
        return f"{before}{{{inside}{added}}}{after}".encode("utf-8", "surrogatepass")

    body = write([value for _, _, value, _ in members], "")
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:  # a lone surrogate: no such body gets as far as here
        return
    texts = {name: orjson.dumps(value).decode() for name, value in changes.items()}
    added = [f'"{name}":{text}' for name, text in texts.items() if name not in payload]
    expected = write(
        [texts.get(key, value) for key, _, value, _ in members],
        ("," if payload and added else "") + ",".join(added),
    )

    spliced = splice(body, payload, changes)

    assert expected == spliced
    assert {**payload, **changes} == orjson.loads(spliced)


def test_a_large_body_with_many_strings_is_scanned_in_linear_time() -> None:
    messages = [{"role": "user", "content": 'say "model" \\u00e9 {[' * 10}] * 2000
    payload = {"messages": messages, "model": "a", "tools": [{"model": "x"}]}
    body = json.dumps(payload).encode()

    spliced = splice(body, payload, {"model": "b"})

    assert {**payload, "model": "b"} == orjson.loads(spliced)


@pytest.mark.parametrize(
    ("payload", "endpoint", "expected"),
    [
        ({}, "chat", {"max_completion_tokens": 10}),
        ({}, "completions", {"max_tokens": 10}),
        ({}, "responses", {"max_output_tokens": 10}),
        ({}, "embeddings", {}),
        ({"max_tokens": 11}, "chat", {"max_tokens": 10}),
        ({"max_tokens": 10}, "chat", {}),
        ({"max_tokens": 9, "max_completion_tokens": 12}, "chat", {"max_completion_tokens": 10}),
        ({"max_tokens": None}, "chat", {"max_completion_tokens": 10}),
        ({"max_tokens": True}, "completions", {"max_tokens": 10}),
        ({"max_tokens": 10.5}, "completions", {"max_tokens": 10}),
        ({"max_output_tokens": 10**30}, "responses", {"max_output_tokens": 10}),
    ],
)
def test_the_completion_limit_is_lowered_or_added_and_never_raised(
    payload: dict[str, Any], endpoint: Any, expected: dict[str, Any]
) -> None:
    assert expected == limit_changes(payload, endpoint, 10)


def test_without_a_cap_no_limit_is_touched() -> None:
    assert limit_changes({"max_tokens": 10**6}, "chat", None) == {}
