"""The estimate: what it says of questions whose class their authors would not doubt, and that every point is told."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline.builtins.model_selection.complexity import CLASSES, READ_CHARS, class_of, estimate

TOOL = {"type": "function", "function": {"name": "f"}}

LABELLED = [
    ("simple", "Hi!"),
    ("simple", "What is the capital of France?"),
    ("simple", "Translate to German: good morning, how are you today?"),
    ("simple", "Give me a synonym for happy."),
    ("simple", "Wie spät ist es in Tokio, wenn es in Berlin 9 Uhr ist?"),
    ("simple", "Summarize this in one sentence: The meeting was moved from Tuesday to Thursday at 3 pm."),
    ("simple", "Is 97 a prime number?"),
    ("medium", "Compare PostgreSQL and SQLite for a small web shop and explain how they differ in concurrency."),
    ("medium", "Why does this fail?\n```python\nprint(x)\n```"),
    ("medium", "Write a regular expression:\nimport re\nwhich matches ISO dates."),
    ("medium", "Plan a three-day trip to Rome:\n- museums\n- food\n- walks"),
    ("medium", "Summarize the following report.\n" + "The committee met again to discuss the budget. " * 150),
    (
        "complex",
        "Prove step by step that the algorithm terminates, analyze its complexity and compare it with:\n```python\nwhile x: x = f(x)\n```",
    ),
    (
        "complex",
        "Design a distributed rate limiter, evaluate the trade-offs between token bucket and sliding window, and justify the choice.\n"
        "1. state\n2. failures\n3. latency\n```go\nfunc Allow() bool {\n```",
    ),
    (
        "complex",
        "Refactor this module, debug the race and explain how you found the root cause.\n```python\n"
        + "x = 1\n" * 300
        + "```",
    ),
]


@pytest.mark.parametrize(("expected", "question"), LABELLED)
def test_the_estimate_agrees_with_people(make_call, expected, question):
    made = estimate(make_call({"messages": [{"role": "user", "content": question}]}))

    assert made.complexity == expected, str(made)


@pytest.mark.parametrize(
    ("payload", "points"),
    [
        ({"tools": [TOOL]}, [("tools", 1)]),
        ({"tools": [TOOL] * 5}, [("tools", 2)]),
        ({"response_format": {"type": "json_schema"}}, [("JSON schema", 1)]),
        ({"reasoning_effort": "high"}, [("reasoning effort", 5)]),
        ({"reasoning": {"effort": "medium"}}, [("reasoning effort", 1)]),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 3}, [("turns", 1)]),
        ({"instructions": "x" * 1_500}, [("length", 1)]),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "why?"}]}]}, [("reasoning", 1)]),
        ({"prompt": "def f(x):"}, [("code", 2)]),
    ],
)
def test_each_point_has_a_name(make_call, payload, points):
    assert list(estimate(make_call(payload)).points) == points


def test_only_the_last_question_is_judged_by_its_words(make_call):
    hard = {"role": "user", "content": "Prove, derive, analyze and compare it."}
    thanks = {"role": "user", "content": "Thanks!"}

    assert estimate(make_call({"messages": [hard, {"role": "assistant", "content": "..."}, thanks]})).score == 0


@pytest.mark.parametrize(
    ("total", "complexity"),
    [(0, "simple"), (1, "simple"), (2, "medium"), (4, "medium"), (5, "complex"), (99, "complex")],
)
def test_classes_by_score(total, complexity):
    assert class_of(total) == complexity


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "effort"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "input",
                "prompt",
                "instructions",
                "tools",
                "reasoning",
                "reasoning_effort",
                "response_format",
                "text",
            ]
        ),
        json_values,
    )
)
def test_any_shape_has_a_class(payload):
    class Call:
        pass

    call = Call()
    call.payload = orjson.loads(orjson.dumps(payload))

    assert estimate(call).complexity in CLASSES


@pytest.mark.parametrize(
    "text",
    [
        "why? " * 400_000,
        "```" * 600_000,
        "\n- " * 600_000,
        " " * 2_000_000,
        "\n" * 2_000_000,
        "\n " * 1_000_000,
        "\n1" * 1_000_000,
        ";" * 2_000_000,
    ],
)
def test_a_huge_question_costs_no_more_than_a_long_one(make_call, text):
    """What the patterns read is cut to `READ_CHARS`; CPU of this process, so other load does not matter."""
    call = make_call({"messages": [{"role": "user", "content": text}]})
    cut = make_call({"messages": [{"role": "user", "content": text[:READ_CHARS]}]})

    def cpu(of) -> float:
        started = time.process_time()
        estimate(of)
        return time.process_time() - started

    assert min(cpu(call) for _ in range(3)) < 10 * min(cpu(cut) for _ in range(3)) + 0.01
