"""Texts for regular expressions: judged by Python's own `re`, which the demo itself never runs on a client's pattern."""

from __future__ import annotations

import re

import pytest

from hookline.providers.demo_pattern import text_for


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{5}$",
        r"^[A-Z]{2,3}-\d+$",
        r"^(foo|bar)baz?$",
        r"^(?:[a-z]+\.)+com$",
        r"^(?P<year>\d{4})-(?<month>\d\d)$".replace("(?<month>", "(?P<month>"),
        r"^[^a-z]+$",
        r"^[\w.-]+@[\w-]+\.[a-z]{2,}$",
        r"^\+?[1-9]\d{1,14}$",
        r"^#[0-9a-fA-F]{6}$",
        r"^(?!x)\S+$",
        r"[]x]",
        r"^\x41\u0042$",
        r"^a{2}b*?c+?$",
        r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        r"^$|^\d+$",
        r"",
    ],
)
def test_the_text_matches(pattern: str) -> None:
    text = text_for(pattern)

    assert text is not None
    assert re.search(pattern, text)


def test_groups_are_named_as_in_javascript_too() -> None:
    assert text_for(r"^(?<year>\d{2})$") == "11"


def test_a_count_with_room_gives_the_length_that_is_wanted() -> None:
    assert text_for(r"^x[a-z]+$", min_chars=6) == "xaaaaa"
    assert text_for(r"^(?:ab){1,3}c?$", min_chars=6) == "ababab"


@pytest.mark.parametrize(
    "pattern", [r"(", r")", r"[a", r"\p{L}", r"(a)\1", "(" * 500, "a{99999}", "(a{9999}){9999}", "\\", "(?i)a", "a" * 3000]
)  # fmt: skip
def test_what_is_not_understood_or_too_long_is_none(pattern: str) -> None:
    assert text_for(pattern) is None
