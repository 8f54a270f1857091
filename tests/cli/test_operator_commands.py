"""`hookline spend`, `ledger` and `cache purge` beside a real gateway: what they print, refuse and leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hookline.testing.process import HOOKLINE, ProxyProcess, clean_environ
from hookline.testing.redis import RedisServer

TEXT = """
[server]
port = 0
[state]
shared = "{shared}"
[admin]
key = "sk-admin"
[chain]
plugins = ["auth", "cache", "budget"]
[providers.demo]
kind = "demo"
default = true
[prices."demo/echo"]
call = 0.25
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
tenant = "acme"
[[plugins.auth.keys]]
name = "cd"
key = "sk-cd"
tenant = "be"
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HOOKLINE, *arguments],
        cwd=folder,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(proxy: ProxyProcess, method: str, path: str, key: str, body: object = None) -> dict[str, Any]:
    request = urllib.request.Request(
        proxy.base_url + path,
        method=method,
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        data=None if body is None else json.dumps(body).encode(),
    )
    with urllib.request.urlopen(request) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


CHAT = {"model": "demo/echo", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def proxy(folder: Path) -> Iterator[ProxyProcess]:
    """A gateway that has served acme two calls for 0.25 USD each and one from its cache, and be one call."""
    with ProxyProcess(folder, TEXT.format(shared="memory")) as proxy:
        for key, text in (("sk-ci", "a"), ("sk-ci", "b"), ("sk-ci", "b"), ("sk-cd", "c")):
            ask(proxy, "POST", "/v1/chat/completions", key, {**CHAT, "messages": [{"role": "user", "content": text}]})
        ask(proxy, "GET", "/admin/spend", "sk-admin")  # reads wait for what was booked before
        yield proxy


def test_both_doors_say_the_same(proxy: ProxyProcess, folder: Path) -> None:
    by_command = run(folder, "spend", "--by", "tenant,key", "--by", "model", "--json")
    by_route = ask(proxy, "GET", "/admin/spend?by=tenant,key&by=model", "sk-admin")
    rows = run(folder, "ledger", "--key", "ci", "--limit", "1", "--json")

    assert json.loads(by_command.stdout) == by_route
    assert json.loads(rows.stdout) == ask(proxy, "GET", "/admin/ledger?key=ci&limit=1", "sk-admin")
    assert by_command.stderr == ""


def test_a_person_gets_a_table_and_is_told_of_more(proxy: ProxyProcess, folder: Path) -> None:
    sums, rows = run(folder, "spend", "--by", "tenant"), run(folder, "ledger", "--limit", "2")

    assert [line.split() for line in sums.stdout.splitlines()] == [
        ["TENANT", "CALLS", "INPUT_TOKENS", "OUTPUT_TOKENS", "COST_USD"],
        ["acme", "2", *sums.stdout.split()[7:9], "0.50"],
        ["be", "1", *sums.stdout.split()[12:14], "0.25"],
    ]
    assert [line.split()[-1] for line in rows.stdout.splitlines()] == ["COST_USD", "0.25", "0.25"]
    assert "there is more: add --after" in rows.stderr
    after = rows.stderr.split("--after ")[1].split(",")[0]
    assert len(run(folder, "ledger", "--after", after, "--csv").stdout.splitlines()) == 2
    nothing = run(folder, "ledger", "--tenant", "nobody")
    assert (nothing.stdout, nothing.stderr) == ("", "hookline: nothing was booked that matches\n")


def test_sums_come_page_by_page(proxy: ProxyProcess) -> None:
    first = ask(proxy, "GET", "/admin/spend?by=tenant&limit=1", "sk-admin")
    second = ask(proxy, "GET", f"/admin/spend?by=tenant&limit=1&after={first['last_id']}", "sk-admin")

    assert [line["tenant"] for page in (first, second) for line in page["data"]] == ["acme", "be"]
    assert (first["has_more"], second["has_more"]) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("spend", "--by", "modle"), 1, 'did you mean "model"?'),
        (("spend", "--json", "--csv"), 1, "--json and --csv: keep one of them"),
        (("spend", "--modle", "x"), 2, "No such option: --modle"),
        (("cache", "purge"), 1, "one thing at a time: key, model, tenant, or all"),
        (("cache", "purge", "--all"), 1, "the cache is in the server's own memory"),
        (("cache", "prge"), 2, "No such command 'prge'. Did you mean 'purge'?"),
        (("spnd",), 2, "No such command 'spnd'; did you mean \"spend\"?"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    proxy: ProxyProcess, folder: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    done = run(folder, *arguments)

    assert (done.returncode, told in done.stderr, done.stdout) == (status, True, ""), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("spend", "--limit", "x"), ("cache",), ("cache", "prge")])
def test_a_wrong_command_line_leaves_no_journal_open(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "proxy.toml").write_text(TEXT.format(shared="memory"))

    assert run(tmp_path, *arguments).returncode == 2

    assert list((tmp_path / "hookline.db.journal").iterdir()) == []


def test_ctrl_c_ends_a_command(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a PostgreSQL that never answers
        text = f'[state]\nrecords = "postgresql://x:y@127.0.0.1:{silent.getsockname()[1]}/x"\n'
        (tmp_path / "proxy.toml").write_text(text)
        command = subprocess.Popen(
            [*HOOKLINE, "spend"],
            cwd=tmp_path,
            env=clean_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        connection, _ = silent.accept()
        os.kill(command.pid, signal.SIGINT)
        said, _ = command.communicate(timeout=30)
        connection.close()

    assert (command.returncode, b"Traceback" in said) == (130, False), said


def test_a_shared_cache_is_purged_by_a_command(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis_server, ProxyProcess(tmp_path, TEXT.format(shared=redis_server.url)) as proxy:
        ask(proxy, "POST", "/v1/chat/completions", "sk-ci", CHAT)

        none, one = (
            run(tmp_path, "cache", "purge", "--tenant", "be"),
            run(tmp_path, "cache", "purge", "--tenant", "acme"),
        )
        again = run(tmp_path, "cache", "purge", "--model", "demo/echo", "--json")

    assert (none.stdout, one.stdout, one.stderr) == ("0 removed\n", "1 removed\n", "")
    assert json.loads(again.stdout) == {"object": "cache.purge", "model": "demo/echo", "deleted": 0}
