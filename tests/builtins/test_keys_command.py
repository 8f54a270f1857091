"""`hookline keys`: what it prints and refuses, in this process; real processes are in tests/cli/test_keys.py."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from hookline.builtins.auth.commands import make_commands
from hookline.builtins.auth.key_desk import KeyDesk
from hookline.stores.sqlite import SqliteRecords


@pytest.fixture
def keys(tmp_path) -> Callable[..., Any]:
    records = SqliteRecords(tmp_path / "records.db")
    commands = make_commands(KeyDesk(lambda: records.keys, time))  # type: ignore[arg-type]
    yield lambda *arguments: CliRunner().invoke(commands, arguments)
    asyncio.run(records.aclose())


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
    assert keys("list", "--tenant", "printing").stdout == ""
    assert len(keys("list", "--tenant", "printing", "--all", "--json").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nobody"], 'there is no key "nobody" in records; keys of proxy.toml are not kept there'),
        (["create", "x", "--requests-per-minute", "0", "--expires", "soon"], '"requests_per_minute": must be'),
        (["create", "x", "--budget", '{"dayly_usd": 1}'], 'unknown field; did you mean "daily_usd"?'),
        (["create", "x", "--budget", "5"], "must be a JSON object"),
        (["create", "x", "--metadata", "a"], "must read NAME=TEXT"),
        (["create", "x", "--limit", "requests_per_minut=5"], 'did you mean "requests_per_minute"?'),
        (["create", "x", "--limit", "max_parallel=many"], '"max_parallel": must be a whole number'),
        (["create", ""], '"name": must not be empty'),
        (["rotate", "x", "--overlap", "soon"], "--overlap must read like"),
    ],
)
def test_the_command_line_says_what_is_wrong(keys, arguments, told):
    done = keys(*arguments)

    assert done.exit_code == 1
    assert told in done.stderr
    assert "Traceback" not in done.output
