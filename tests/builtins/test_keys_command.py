"""`hookline keys`: what it prints and refuses, in this process; real processes are in tests/cli/test_keys.py."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from hookline.builtins.auth.commands import make_commands
from hookline.builtins.auth.key_desk import KeyDesk
from hookline.cli_plugins import make_command
from hookline.stores.sqlite import SqliteRecords


@pytest.fixture
def keys(tmp_path) -> Callable[..., Any]:
    records = SqliteRecords(tmp_path / "records.db")
    commands = make_commands(KeyDesk(lambda: records.keys, time, {"configured"}))  # type: ignore[arg-type]
    yield lambda *arguments: run(make_command("keys", commands, AsyncMock()), arguments)
    asyncio.run(records.aclose())


def run(command: Any, arguments: Sequence[str]) -> SimpleNamespace:
    """What a person sees of a command."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, pytest.raises(SystemExit) as end:
        command.main(arguments)
    return SimpleNamespace(exit_code=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def test_what_the_command_line_prints(keys):
    created = keys(
        *("create", "printed", "--tenant", "printing", "--user", "ann", "--requests-per-minute", "60"),
        *("--daily-usd", "5", "--tag", "a", "--metadata", "team=x=y", "--expires", "2099-01-31T00:00:00Z"),
    )
    (id_line, key_line), shown = created.stdout.splitlines(), json.loads(keys("show", "printed").stdout)

    assert "not shown again" in created.stderr
    assert id_line == f"id:  {shown['id']}"
    assert key_line.startswith(f"key: {shown['prefix']}")
    assert "key" not in shown
    assert (shown["budget"], shown["metadata"], shown["tags"]) == ({"daily_usd": 5.0}, {"team": "x=y"}, ["a"])
    listed = keys("list", "--tenant", "printing").stdout.splitlines()
    assert listed[0].split() == ["ID", "NAME", "PREFIX", "STATUS", "TENANT", "USER", "EXPIRES"]
    assert listed[1].split()[1:] == [
        "printed", shown["prefix"], "active", "printing", "ann", "2099-01-31", "00:00Z",
    ]  # fmt: skip
    changed = keys("update", "printed", "--monthly-usd", "7", "--clear", "user", "--clear", "tags", "--json")
    now = json.loads(changed.stdout)
    assert (now["budget"], now["user"], now["tags"]) == ({"daily_usd": 5.0, "monthly_usd": 7.0}, None, [])
    keys("revoke", "printed")
    nothing = keys("list", "--tenant", "printing")
    assert (nothing.stdout, nothing.stderr) == ("", "hookline: there is no key like that\n")
    assert len(keys("list", "--tenant", "printing", "--all", "--json").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nobody"], 'there is no key "nobody" in records; keys of proxy.toml are not kept there'),
        (["revoke", "sk-hk-secret"], "a key is named by its id (key_...) or its name, never by its secret"),
        (["create", "x", "--requests-per-minute", "0", "--expires", "soon"], '"requests_per_minute": must be'),
        (["create", "x", "--budget", '{"dayly_usd": 1}'], 'unknown parameter; did you mean "daily_usd"?'),
        (["create", "x", "--budget", "5"], "must be a JSON object"),
        (["create", "x", "--metadata", "a"], "must read NAME=TEXT"),
        (["create", "x", "--limit", "requests_per_minut=5"], 'did you mean "requests_per_minute"?'),
        (["create", "x", "--limit", "max_parallel=many"], '"max_parallel": must be a whole number'),
        (["create", "x", "--limit-by-model", "gpt-4o*"], "must read GLOB:NAME=NUMBER"),
        (["create", "x", "--limit-by-model", "m:max_paralell=5"], 'did you mean "max_parallel"?'),
        (["create", ""], '"name": must not be empty'),
        (["rotate", "x", "--overlap", "soon"], "--overlap must read like"),
    ],
)
def test_the_command_line_says_what_is_wrong(keys, arguments, told):
    done = keys(*arguments)

    assert done.exit_code == 1
    assert told in done.stderr
    assert "sk-hk-" not in done.stderr


def test_limits_by_model_are_set_and_changed_glob_by_glob(keys):
    keys("create", "x", "--limit-by-model", "ft:a:*:requests_per_minute=5", "--limit-by-model", "b:max_parallel=1")

    keys("update", "x", "--limit-by-model", "b:max_parallel=2", "--limit-by-model", "b:tokens_per_day=9")

    assert json.loads(keys("show", "x").stdout)["limits_by_model"] == {
        "ft:a:*": {"requests_per_minute": 5},
        "b": {"max_parallel": 2, "tokens_per_day": 9},
    }


def test_a_name_that_others_have_is_said(keys):
    first = json.loads(keys("create", "twice", "--json").stdout)["id"]

    assert keys("create", "other").stderr == "hookline: keep the key now: it is not shown again\n"
    assert f'hookline: {first}: named "twice", too' in keys("update", "other", "--name", "twice").stderr
    assert 'a key of proxy.toml is named "configured", too' in keys("create", "configured").stderr
    keys("revoke", first)
    assert "too" not in keys("update", "twice", "--name", "twice").stderr
