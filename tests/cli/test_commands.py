from __future__ import annotations

import json
from pathlib import Path

import pytest

DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'
BARE = "[chain]\nplugins = []\n" + DEMO

PLUGIN = '''
import asyncio
from hookline import hookimpl
from pydantic import BaseModel, ConfigDict

class Plugin:
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        depth: int = 1

    def __init__(self, options, host):
        self.options, self.host = options, host

    @hookimpl
    def prepare(self, call):
        pass

    @hookimpl
    def register_commands(self, add):
        async def greet(name: str, loud: bool = False):
            """Say hello."""
            await asyncio.sleep(0)
            print(("HELLO " if loud else "hello ") + name, self.options.depth)
        add("greet", greet)
'''


def test_version_and_help_say_what_there_is(run) -> None:
    version, usage = run("--version"), run("--help")

    assert version.stdout.startswith("hookline 0.")
    assert all(word in usage.stdout for word in ("serve", "check", "plugins", "schema"))
    assert "worker" not in usage.stdout
    assert (version.returncode, usage.returncode) == (0, 0)


def test_help_imports_nothing_heavy(run, folder: Path) -> None:
    script = "import sys; from hookline.cli import app; print(sorted(m for m in sys.modules if m in HEAVY))"
    (folder / "look.py").write_text(
        f"HEAVY = {{'pydantic', 'aiohttp', 'sqlalchemy', 'asyncio', 'uvloop', 'rich'}}\n{script}\n"
    )
    import subprocess
    import sys

    # `import hookline` itself brings pydantic and asyncio; the command line adds nothing to that.
    plain = subprocess.run(
        [sys.executable, "-c", (folder / "look.py").read_text()], capture_output=True, text=True, check=True
    )

    assert set(json.loads(plain.stdout.replace("'", '"'))) <= {"pydantic", "asyncio"}


def test_check_prints_what_would_run(run, folder: Path) -> None:
    (folder / "proxy.toml").write_text(
        BARE + '[models.best]\ndeployments = ["demo/echo"]\n[providers.o]\nkind = "openai"\napi_key = "${NOPE}"\n'
    )

    done = run("check")

    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "proxy.toml: nothing is wrong",
        "serves     http://127.0.0.1:8080/v1, 1 process",
        "plugins    none",
        "provider   demo (demo, default)",
        "provider   o (openai)",
        "model      best: demo/echo",
        "note       proxy.toml:10: [providers.o] api_key: environment variable NOPE is not set; calls that need it will fail",
    ]


def test_check_says_all_that_is_wrong_at_once_and_touches_nothing(run, folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "proxy.toml").write_text(
        "[server]\nprot = 1\nhost = '0.0.0.0'\n[chain]\n"
        "plugins = ['loging', { name = 'mine', path = 'mine.py', depht = 3 }]\n"
        "[providers.a]\nkind = 'opnai'\n[providers.b]\nkind = 'openai'\nbase_url = 3\n[state]\nshared = 'redsi://x'\n"
    )

    done = run("check")

    assert done.returncode == 1
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert said[0] == 'proxy.toml:2: [server] prot: unknown key; did you mean "port"?'
    assert any(line.startswith("proxy.toml:3: [server] host: 0.0.0.0 can be reached by others") for line in said)
    assert any(
        line.startswith('proxy.toml:7: [providers.a] kind: no provider kind "opnai"; did you mean "openai"?')
        for line in said
    )
    assert "proxy.toml:10: [providers.b] base_url: must be text in quotes, not a whole number" in said
    assert any(line.startswith('proxy.toml:12: [state] shared: no store for "redsi"') for line in said)
    assert said[-1].endswith(" problems")
    assert "Traceback" not in done.stderr
    assert 'proxy.toml:5: plugin "loging" is not installed; did you mean "logging"?' in said
    assert 'proxy.toml:5: [plugins.mine] depht: unknown key; did you mean "depth"?' in said
    assert [line for line in said if line.startswith("proxy.toml")] == said[:-1]
    assert sorted(p.name for p in folder.iterdir()) == ["mine.py", "proxy.toml"]


def test_an_empty_host_listens_everywhere_and_is_refused_like_it(run, folder: Path) -> None:
    (folder / "proxy.toml").write_text(BARE)

    for command in ("check", "serve"):
        assert "every address of this machine can be reached by others" in run(command, "--host", "").stderr


def test_order_is_refused_with_its_line_and_a_failing_registration_with_its_plugin(run, folder: Path) -> None:
    hook = "    @hookimpl\n    def register_{0}(self, add):\n        add({1})\n"
    code = "from hookline import hookimpl\n\nclass Plugin:\n" + hook.format("stores", "'x', print, store='limit'")
    (folder / "mine.py").write_text(code + hook.format("providers", "'openai', print"))
    (folder / "proxy.toml").write_text(
        DEMO + "[chain]\nplugins = [{ name = 'mine', path = 'mine.py' }]\norder = { call_endet = ['mine'] }\n"
    )

    said = run("check").stderr

    assert (
        'proxy.toml:6: [chain] order.call_endet: there is no per-call hook of this name; did you mean "call_ended"?'
        in said
    )
    assert f'{folder}/mine.py:4: plugin "mine": store="limit": there are limits, replies, records' in said
    assert f'{folder}/mine.py:7: plugin "mine": provider kind "openai" is there already; choose another name' in said


def test_a_provider_that_can_t_be_made_is_a_sentence(run, folder: Path) -> None:
    hook = "    @hookimpl\n    def register_providers(self, add):\n        add('mine', lambda name, options, clock: 1 / 0)\n"
    (folder / "mine.py").write_text("from hookline import hookimpl\n\nclass Plugin:\n" + hook)
    (folder / "proxy.toml").write_text(
        "[chain]\nplugins = [{ name = 'mine', path = 'mine.py' }]\n[providers.x]\nkind = 'mine'\n"
    )

    said = run("check").stderr

    assert said.startswith('proxy.toml:3: [providers.x]: kind "mine" can\'t be made: ZeroDivisionError')


def test_check_says_what_is_wrong_with_plugins(run, folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN.replace("def prepare(self, call)", "def prepair(self, call)"))
    (folder / "proxy.toml").write_text(
        DEMO
        + "[chain]\nplugins = ['loging', { name = 'mine', path = 'mine.py' }]\n[plugins.mine]\ndepht = 3\n[plugins.other]\nx = 1\n"
    )

    said = run("check").stderr.splitlines()

    assert any('plugin "loging" is not installed' in line for line in said)
    assert 'proxy.toml:7: [plugins.mine] depht: unknown key; did you mean "depth"?' in said
    assert any(line.startswith("proxy.toml:8: [plugins.other]: no plugin of this name") for line in said)


def test_a_misspelt_hook_names_file_line_and_the_right_name(run, folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN.replace("def prepare(self, call)", "def prepair(self, call)"))
    (folder / "proxy.toml").write_text(DEMO + "[chain]\nplugins = [{ name = 'mine', path = 'mine.py' }]\n")

    said = run("check").stderr

    assert f'{folder}/mine.py:14: plugin "mine": there is no hook "prepair"; did you mean "prepare"?' in said


def test_options_of_a_plugin_that_is_not_active_are_no_secret(run, folder: Path) -> None:
    keys = "[[plugins.auth.keys]]\nname = 'ci'\nkey = 'sk-12345678'\n"
    (folder / "proxy.toml").write_text(f"[chain]\nplugins = ['logging']\n{keys}{DEMO}")

    done = run("check")

    assert done.returncode == 0
    assert 'proxy.toml:3: [plugins.auth]: has no effect: "auth" is not in [chain] plugins' in done.stdout


def test_nor_are_those_that_stand_in_a_model(run, folder: Path) -> None:
    model = "[models.best]\ndeployments = ['demo/echo']\nplugins.fallback.models = ['small']\n"
    (folder / "proxy.toml").write_text(f"[chain]\nplugins = ['logging']\n{model}{DEMO}")

    done = run("check")

    assert done.returncode == 0
    assert '[models.best] plugins.fallback: has no effect: "fallback" is not in [chain] plugins' in done.stdout


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('shared = "redis"', "shared: must be redis://[user:password@]host[:port][/number]"),
        ('shared = "redis://h?comand_timeout_s=1"', 'shared: no option "comand_timeout_s"; did you mean'),
        ('records = "sqlite://x.db"', "records: must be sqlite:///file.db, or sqlite:////folder/file.db"),
        ('records = "sqlite:////no-such-folder/x.db"', "records: there is no folder /no-such-folder"),
        ('records = "postgresql"', "records: must be postgresql://"),
        ('records = "postgresql://ann:sk-secret@h:port/db"', "records: must be postgresql://"),
    ],
)
def test_check_judges_the_addresses_of_stores(run, folder: Path, line: str, problem: str) -> None:
    (folder / "proxy.toml").write_text(f"[state]\n{line}\n{DEMO}")

    done = run("check")

    assert done.returncode == 1
    assert done.stderr.startswith(f"proxy.toml:2: [state] {problem}")
    assert "sk-secret" not in done.stderr


@pytest.mark.parametrize("command", [("serve",), ("keys", "list")])
def test_what_is_refused_at_start_leaves_no_journal_behind(run, folder: Path, command: tuple[str, ...]) -> None:
    (folder / "mine.py").write_text(PLUGIN.replace("def prepare(self, call)", "def prepair(self, call)"))
    (folder / "proxy.toml").write_text(DEMO + "[chain]\nplugins = ['auth', { name = 'mine', path = 'mine.py' }]\n")

    assert run(*command).returncode == 2

    assert list((folder / "hookline.db.journal").iterdir()) == []


def test_plugins_prints_hook_order_plugin_and_place(run, folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "proxy.toml").write_text(DEMO + "[chain]\nplugins = [{ name = 'mine', path = 'mine.py' }]\n")

    rows = [line.split() for line in run("plugins").stdout.splitlines()]

    assert rows[0] == ["HOOK", "ORDER", "PLUGIN", "LOCATION"]
    assert rows[1] == ["prepare", "1", "mine", f"{folder}/mine.py:14"]


def test_schema_holds_plugins_and_provider_kinds(run) -> None:
    schema = json.loads(run("schema").stdout)

    assert {
        "server",
        "chain",
        "providers",
        "models",
        "prices",
        "plugins",
        "tenants",
        "users",
        "global",
        "admin",
    } <= set(schema["properties"])
    assert {"plugin_fallback", "provider_openai", "provider_anthropic", "provider_demo"} <= set(schema["$defs"])


def test_a_plugin_adds_a_command(run, folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "other.toml").write_text(DEMO + "[chain]\nplugins = [{ name = 'mine', path = 'mine.py', depth = 7 }]\n")

    done = run("greet", "Ann", "--loud", "--config", "other.toml")
    usage = run("greet", "--help", "-c", "other.toml")

    assert (done.stdout, done.stderr, done.returncode) == ("HELLO Ann 7\n", "", 0)
    assert "Say hello." in usage.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'"),
        (["serve", "--nope"], "No such option: --nope"),
        (["serve", "--port", "x"], "Invalid value for '--port'"),
        (["serve", "-c", "nope.toml"], "hookline: nope.toml: can't be read: No such file or directory"),
        (["serve", "--host", "0.0.0.0"], "0.0.0.0 can be reached by others"),
        (["serve", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
    ],
)
def test_a_wrong_command_line_is_a_sentence_and_status_2(arguments: list[str], said: str, run, folder: Path) -> None:
    (folder / "proxy.toml").write_text(BARE)

    done = run(*arguments)

    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_several_workers_with_state_in_memory_are_refused_with_the_line_to_add(run, folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN.replace("class Plugin:", "class Plugin:\n    needs_shared_state = True"))
    (folder / "proxy.toml").write_text(
        DEMO + "[chain]\nplugins = [{ name = 'mine', path = 'mine.py' }]\n[server]\nworkers = 2\n"
    )

    said = run("check")

    assert said.returncode == 1
    assert said.stderr.startswith("proxy.toml:7: [server] workers: 2 processes would each keep their own")
    assert "(mine)" in said.stderr
    assert 'shared = "redis://' in said.stderr


def test_options_per_model_are_said_where_they_stand_and_only_there(run, folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "proxy.toml").write_text(
        DEMO + "[chain]\nplugins = [{ name = 'mine', path = 'mine.py' }]\n[plugins.mine]\ndepht = 1\n"
        "[models.m]\ndeployments = ['demo/echo']\naliases = ['n']\n[models.m.plugins.mine]\ndepth = 'deep'\n"
    )

    assert run("check").stderr.splitlines() == [
        'proxy.toml:7: [plugins.mine] depht: unknown key; did you mean "depth"?',
        "proxy.toml:12: [models.m] plugins.mine.depth: must be a whole number, not text",
        "2 problems",
    ]


def test_plugins_json_says_what_the_table_says(run) -> None:
    table, found = run("plugins").stdout, json.loads(run("plugins", "--json").stdout)

    assert all(f"{row['hook']} " in table and row["location"] in table for row in found["hooks"])
    assert {row["plugin"] for row in found["hooks"]} >= {"auth", "budget"}
    assert f"nobody implements: {', '.join(found['not_implemented'])}" in table
