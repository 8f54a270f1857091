"""Cost on the wire: one member is spliced, nothing else moves; and what a reply says of its usage."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline import Usage, usage_in
from hookline.cost_on_wire import add_cost
from hookline.openai_wire import UNREAD_CALLS
from hookline.stream_watch import EVENT_BYTES_MAX, StreamWatch

USAGE = Usage(10, 5)
COUNTED = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}

members = st.dictionaries(
    st.text(max_size=8), st.text(max_size=20) | st.integers(-(2**60), 2**60) | st.none(), max_size=4
)


@given(before=members, after=members, content=st.text(max_size=40), cost=st.integers(0, 10**15), spaces=st.booleans())
def test_the_cost_is_in_the_usage_and_everything_else_is_as_it_was(
    before: Any, after: Any, content: str, cost: int, spaces: bool
) -> None:
    """Whatever stands around it, also text that looks like a usage."""
    chunk = {
        **before,
        "choices": [{"delta": {"content": content + '"usage":{"prompt_tokens":10,"completion_tokens":5}'}}],
        **after,
    }
    chunk.pop("usage", None)
    chunk["usage"] = COUNTED
    text = json.dumps(chunk).encode() if spaces else orjson.dumps(chunk)
    event = b"data: %b\n\ndata: [DONE]\n\n" % text

    told = add_cost(event, USAGE, cost)

    data = orjson.loads(told.split(b"\n\n")[0][6:])
    assert round(data["usage"].pop("cost_usd") * 10**9) == cost
    assert data == chunk
    at = next(i for i, (a, b) in enumerate(zip(event, told, strict=False)) if a != b)
    assert told[:at] + told[at + len(told) - len(event) :] == event


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[]}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        b'data: {"usage":{"type":"string"}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tok',
    ],
)
def test_another_usage_or_half_a_one_is_left_alone(event: bytes) -> None:
    assert add_cost(event, USAGE, 1) == event


def test_a_cost_that_is_there_already_is_replaced() -> None:
    event = b'data: {"usage":{"prompt_tokens":10,"completion_tokens":5,"cost_usd":7}}\n\n'

    assert orjson.loads(add_cost(event, USAGE, 10**9)[6:])["usage"]["cost_usd"] == 1


def test_hosted_tools_that_ran_are_counted_and_the_clients_own_are_not() -> None:
    output = [
        {"type": t}
        for t in (
            "web_search_call",
            "message",
            "function_call",
            "web_search_call",
            "code_interpreter_call",
            "custom_tool_call",
        )
    ]
    reply = {"usage": {"input_tokens": 10, "output_tokens": 5}, "output": output}

    assert usage_in(reply) == Usage(10, 5, tool_calls=(("web_search", 2), ("code_interpreter", 1)))
    event = b"data: %b\n\n" % orjson.dumps({"type": "response.completed", "response": reply})
    watch = StreamWatch("responses")
    watch.feed(event)
    assert watch.usage == usage_in(reply)


def test_a_response_too_large_to_look_into_says_that_nobody_counted() -> None:
    picture = {"type": "image_generation_call", "result": "x" * 2 * EVENT_BYTES_MAX}
    response = {"output": [picture], "usage": {"input_tokens": 10, "output_tokens": 5}}
    event = b"data: %b\n\n" % orjson.dumps({"type": "response.completed", "response": response})
    watch = StreamWatch("responses")

    for at in range(0, len(event), 65_536):
        watch.feed(event[at : at + 65_536])
    watch.finish()

    assert watch.usage == Usage(10, 5, tool_calls=UNREAD_CALLS)


def test_audio_tokens_are_read() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"audio_tokens": 4},
        "completion_tokens_details": {"audio_tokens": 3},
    }

    assert usage_in({"usage": usage}) == Usage(10, 5, audio_input_tokens=4, audio_output_tokens=3)
