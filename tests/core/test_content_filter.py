"""Whether an answer, or what has come of one, was stopped by the provider's content filter."""

from __future__ import annotations

from typing import Any

import pytest

from hookline.content_filter import is_filtered, verdict_of


def choice(finish: Any = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"choices": [{"finish_reason": "content_filter"}]}, True),
        ({"choices": [{"finish_reason": "content_filter"}, {"finish_reason": "stop"}]}, False),
        ({"choices": [{"finish_reason": "stop"}]}, False),
        ({"choices": []}, False),
        ({"choices": [5]}, False),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, True),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, False),
        ({"incomplete_details": None}, False),
        ([], False),
        (None, False),
    ],
)
def test_a_whole_reply_is_filtered_if_all_of_it_is(reply: Any, expected: bool) -> None:
    assert is_filtered(reply) is expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (choice(role="assistant", content=""), None),
        (choice(content="a"), "said"),
        (choice(reasoning_content="hm"), "said"),
        (choice(tool_calls=[{}]), "said"),
        (choice("content_filter"), "filtered"),
        (choice("content_filter", content="a"), "said"),
        (choice("stop"), "said"),
        ({"choices": [], "prompt_filter_results": []}, None),
        ({"choices": 5}, None),
        ({"choices": [{"text": "a"}]}, "said"),
        ({"choices": [{"text": "", "finish_reason": "content_filter"}]}, "filtered"),
        ({"type": "response.created", "response": {}}, None),
        ({"type": "response.output_text.delta", "delta": "a"}, "said"),
        ({"type": "response.incomplete", "response": {"incomplete_details": {"reason": "content_filter"}}}, "filtered"),
        ({"type": "response.completed", "response": {}}, "said"),
        (None, "said"),
    ],
)
def test_an_event_says_something_or_that_nothing_will_be_said(event: Any, expected: str | None) -> None:
    assert verdict_of(event) == expected
