"""What the OpenAI wire says: which object is an error, which usage can be believed."""

from __future__ import annotations

from typing import Any

import pytest

from hookline import Usage
from hookline.openai_wire import error_in, usage_in, usage_of


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b'data: {"error":{"message":"m"}}\n\n', "m"),
        (b'data: {"error":{"message":"m"},"choices":[]}\r\n\r\n', "m"),
        (b'event: error\ndata: {"error":{"message":"m"}}\n\n', "m"),
        (b'event: error\ndata: {"type":"error","code":"c","message":"m","sequence_number":1}\n\n', "m"),
        (b'data: {"error":{"message":"m"},"object":"chat.completion.chunk","choices":[]}\n\n', "m"),
        (b'data: {"error":{"message":"m"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}\n\n', "m"),
        (b'data:{"error":"m","error_type":"generation"}\n\n', "m"),
        (b'data: {"error":null,"choices":[]}\n\n', None),
        (b'data: {"error":{},"choices":[]}\n\n', None),
        (b'data: {"error":{"message":"m"},"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n', None),
        (b'data: {"type":"response.failed","response":{"error":{"message":"m"}}}\n\n', None),
        (b'data: {"object":"thread.run","error":{"message":"m"}}\n\n', None),
        (b'data: {"choices":[{"delta":{"content":"\\"error\\""}}]}\n\n', None),
        (b"data: error\n\n", None),
        (b'data: ["error"]\n\n', None),
        (b'data: {"error":{"message":"m"}\n\n', None),
    ],
)  # fmt: skip
def test_what_is_an_error_in_a_stream(block, message):
    found = error_in(block)

    assert (found or {}).get("message") == message


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"prompt_tokens": 20, "completion_tokens": 5}, (20, 5)),
        ({"prompt_tokens": 20.0, "completion_tokens": 5.0, "total_tokens": 25.0}, (20, 5)),
        ({"prompt_tokens": 20, "total_tokens": 25}, (20, 5)),
        ({"completion_tokens": 5, "total_tokens": 25}, (20, 5)),
        ({"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 125}, (20, 105)),
        ({"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 7}, (20, 5)),
        ({"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": "many"}, (20, 5)),
        ({"input_tokens": 20, "output_tokens": 5, "total_tokens": 25}, (20, 5)),
        ({"prompt_tokens": 20}, None),
        ({"completion_tokens": 5}, None),
        ({"total_tokens": 25}, None),
        ({"prompt_tokens": -20, "completion_tokens": 5}, None),
        ({"prompt_tokens": 20, "completion_tokens": -5}, None),
        ({"prompt_tokens": "20", "completion_tokens": 5, "total_tokens": 25}, None),
        ({"prompt_tokens": 20.5, "completion_tokens": 5}, None),
        ({"prompt_tokens": None, "completion_tokens": None}, None),
        ({"prompt_tokens": True, "completion_tokens": False}, None),
        ({"prompt_tokens": 10**18, "completion_tokens": 5}, None),
        ({"prompt_tokens": float("inf"), "completion_tokens": 5}, None),
        ({}, None),
        ([20, 5], None),
    ],
)
def test_a_usage_is_what_it_says_or_nothing(told: Any, usage: tuple[int, int] | None) -> None:
    """Odd counts are no zeros: the answer would be free. Tokens that only the total has are reasoning that some leave out of the completion."""
    found = usage_of(told)

    assert (found and found[:2]) == usage


def test_a_reply_without_text_may_tell_its_total_alone() -> None:
    assert usage_in({"data": [], "usage": {"total_tokens": 25}}) == Usage(25, 0)
    assert usage_in({"data": [], "usage": {"prompt_tokens": 25}}) == Usage(25, 0)
    assert usage_in({"choices": [], "usage": {"total_tokens": 25}}) is None


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_response_that_is_being_made_has_no_usage_yet(status: str) -> None:
    zeros = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}

    assert usage_in({"status": status, "output": [], "usage": zeros}) is None
