from __future__ import annotations

from pathlib import Path

import pytest

from hookline.config import Settings
from hookline.config_loading import check
from hookline.config_rules import exposure_problems, unused_plugin_tables, worker_problems
from hookline.config_source import parse_source

KEYS = '[[plugins.auth.keys]]\nname = "a"\nkey = "k"\n'


def settings_of(text: str) -> Settings:
    settings, problems = check(parse_source(text, file="proxy.toml", path=Path("proxy.toml"), environ={}))
    assert problems == []
    return settings


@pytest.mark.parametrize(
    ("text", "host", "is_refused"),
    [
        ("", "127.0.0.1", False),
        ("", "::1", False),
        ("", "localhost", False),
        ("", "0.0.0.0", True),
        ("", "::", True),
        ("", "192.168.1.5", True),
        ("", "gateway.example", True),
        ("[server]\nopen = true", "0.0.0.0", False),
        (KEYS, "0.0.0.0", False),
        ('[[plugins.auth.issuers]]\nname = "corp"', "0.0.0.0", False),
        (KEYS + '[chain]\nplugins = ["logging"]', "0.0.0.0", True),
        ("[plugins.auth]\nopen = true\n" + KEYS, "0.0.0.0", True),
    ],
)
def test_a_host_that_others_reach_is_refused_while_everyone_gets_in(text: str, host: str, is_refused: bool) -> None:
    problems = list(exposure_problems(settings_of(text), has_other_authentication=False, host=host))

    assert [("can be reached by others" in problem) for problem in problems] == [True] * is_refused


def test_another_plugin_that_authenticates_opens_the_host() -> None:
    assert list(exposure_problems(settings_of(""), has_other_authentication=True, host="0.0.0.0")) == []


def test_several_workers_are_refused_with_the_line_to_add() -> None:
    (problem,) = worker_problems(settings_of("[server]\nport = 1\nworkers = 2"), ["rate_limit", "budget"], 2)

    assert problem.startswith("proxy.toml:3: [server] workers: 2 processes would each keep their own")
    assert "(rate_limit, budget)" in problem
    assert 'add `shared = "redis://127.0.0.1:6379/0"` to [state]' in problem


@pytest.mark.parametrize(
    ("text", "stateful", "workers"),
    [("", ["budget"], 1), ("", [], 4), ('[state]\nshared = "redis://127.0.0.1/0"', ["budget"], 4)],
)
def test_workers_are_allowed(text: str, stateful: list[str], workers: int) -> None:
    assert list(worker_problems(settings_of(text), stateful, workers)) == []


def test_a_table_for_a_plugin_that_does_not_exist_is_a_misspelt_name() -> None:
    settings = settings_of('[chain]\nplugins = ["cache"]\n[plugins.cahce]\nx = 1\n[plugins.spare]\ny = 1\n')

    assert list(unused_plugin_tables(settings, ["spare", "auth"])) == [
        'proxy.toml:3: [plugins.cahce]: no plugin of this name; did you mean "cache"?'
    ]
