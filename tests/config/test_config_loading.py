from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from hookline.config_loading import default_text, inspect_settings, json_schema, load
from hookline.config_problems import problems_of
from hookline.errors import StartupError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write proxy.toml and go there, so that problems name it without a path."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("proxy.toml").write_text(text)
        return Path("proxy.toml")

    return write


def problems(path: Path, **environ: str) -> list[str]:
    with pytest.raises(StartupError) as caught:
        load(path, environ)
    return caught.value.problems


PROVIDER = '[providers.openai]\nkind = "openai"\n'

MISTAKES = {
    "[server]\nprot = 1": ['proxy.toml:2: [server] prot: unknown key; did you mean "port"?'],
    "[servr]\nport = 1": ['proxy.toml:1: [servr]: unknown table; did you mean "server"?'],
    '[server]\nport = "80"': ["proxy.toml:2: [server] port: must be a whole number, not text"],
    "[server]\nport = 80.5": ["proxy.toml:2: [server] port: must be a whole number, not a number"],
    "[server]\nopen = 1": ["proxy.toml:2: [server] open: must be true or false, not a whole number"],
    "server = 1": ["proxy.toml:1: [server]: must be a table, not a whole number"],
    "[server]\nport = 70000": ["proxy.toml:2: [server] port: must be less than or equal to 65535"],
    '[server]\non_disconnect = "drian"': [
        'proxy.toml:2: [server] on_disconnect: must be "cancel" or "drain"; did you mean "drain"?'
    ],
    "[server]\nport = ": ["proxy.toml:2: not TOML: Invalid value"],
    "[server\nport = 1": ["proxy.toml:1: not TOML: Expected ']' at the end of a table declaration"],
    "[server]\nport = 1\nport = 2": ["proxy.toml:3: not TOML: Cannot overwrite a value"],
    '[state]\nrecords = "${NOPE}"': ["proxy.toml:2: [state] records: environment variable NOPE is not set"],
    '[state]\nrecords = "${no pe}"': [
        "proxy.toml:2: [state] records: `${...}` must hold a variable's name; write `$${` for a plain `${`"
    ],
    "[providers.x]\ndefault = true": ["proxy.toml:1: [providers.x] kind: missing"],
    '[providers."a/b"]\nkind = "demo"': [
        'proxy.toml:1: [providers."a/b"]: a provider\'s name may hold letters, digits, `_`, `-`, `.`; at most 64'
    ],
    PROVIDER + 'default = true\n[providers.b]\nkind = "demo"\ndefault = true': [
        'proxy.toml:6: [providers.b] default: "openai" is the default already; one provider may be'
    ],
    '[models.m]\ndeployments = ["openai/x"]': [
        'proxy.toml:2: [models.m] deployments[0]: provider "openai" is not configured; there is no [providers.*] table'
    ],
    PROVIDER + '[models.m]\ndeployments = [\n"openai/x",\n"opnai/y"]': [
        'proxy.toml:6: [models.m] deployments[1]: provider "opnai" is not configured; did you mean "openai"?'
    ],
    PROVIDER + "[models.m]\ndeployments = []": ["proxy.toml:4: [models.m] deployments: must not be empty"],
    PROVIDER + '[models.m]\ndeployments = ["openai"]': [
        'proxy.toml:4: [models.m] deployments[0]: must be "provider/model" or a table'
    ],
    PROVIDER + '[models.m]\ndeployments = [{ provider = "openai", model = "x", wieght = 2 }]': [
        'proxy.toml:4: [models.m] deployments[0].wieght: unknown key; did you mean "weight"?'
    ],
    PROVIDER + '[models.m]\ndeployments = [{ provider = "openai", model = "x", capabilities = ["vison"] }]': [
        'proxy.toml:4: [models.m] deployments[0].capabilities[0]: must be "vision", "tools", "json_schema" or "audio"; did you mean "vision"?'
    ],
    PROVIDER + '[models.m]\ndeployments = [{ provider = "openai", model = "x", weight = inf }]': [
        "proxy.toml:4: [models.m] deployments[0].weight: must be less than or equal to 1000000"
    ],
    PROVIDER + '[models.m]\ndeployments = ["openai/x", "openai/x"]': [
        'proxy.toml:4: [models.m] deployments[1]: "openai/x" is listed twice; give one of them an `id` of its own'
    ],
    PROVIDER
    + '[models.m]\ndeployments = ["openai/x"]\n[models.n]\n'
    + 'deployments = [{ provider = "openai", model = "x", api_key = "k" }]': [
        'proxy.toml:6: [models.n] deployments[0]: "openai/x" has other settings in [models."m"]; '
        "give one of them an `id` of its own"
    ],
    PROVIDER + '[models.m]\ndeployments = ["openai/x"]\naliases = ["n"]\n[models.n]\ndeployments = ["openai/y"]': [
        'proxy.toml:5: [models.m] aliases[0]: "n" already names [models."n"]'
    ],
    '[chain]\nplugins = ["auth", "auth"]': ['proxy.toml:2: [chain] plugins[1]: plugin "auth" is listed twice'],
    '[chain]\nplugins = [{ name = "a", x = 1 }]\n[plugins.a]\nx = 2': [
        "proxy.toml:2: [chain] plugins[0].x: also set in [plugins.a]; keep one of them"
    ],
    '[prices."POST /v1/x"]\ninput = 1.0': [
        'proxy.toml:1: [prices."POST /v1/x"]: a route is priced by `call`, not by tokens'
    ],
    "[tenants.acme]\nbudget = { daily_usd = -1 }": [
        "proxy.toml:2: [tenants.acme] budget.daily_usd: must be greater than or equal to 0"
    ],
    '[users.ann]\nbudget = { daily_usd = 1, time_zone = "Mars" }': [
        'proxy.toml:2: [users.ann] budget.time_zone: unknown time zone; write one like "Europe/Berlin"'
    ],
    "[global]\nrequests_per_minut = 1": [
        'proxy.toml:2: [global] requests_per_minut: unknown key; did you mean "requests_per_minute"?'
    ],
}


@pytest.mark.parametrize("text", MISTAKES)
def test_says_what_is_wrong_with(text: str, write) -> None:
    assert problems(write(text)) == MISTAKES[text]


def test_says_everything_at_once_in_the_order_of_the_file(write) -> None:
    text = (
        '[server]\nprot = 1\nport = "x"\n[models.m]\ndeployments = [{ provider = "nope", model = 3 }]\n'
        '[providers.b]\nkind = "demo"\ndefalt = true\n[admin]\nkey = "${NOPE}"\n[tenants.t]\nmax_parallel = 0\n'
    )

    lines = [int(p.split(":")[1]) for p in problems(write(text))]

    assert lines == [2, 3, 5, 5, 10, 12]


def test_never_quotes_a_value(write) -> None:
    secret = "sk-canary-0123456789"

    said = problems(write(f'[server]\nport = "{secret}"\non_disconnect = "{secret}"\n[admin]\nkey = ["{secret}"]\n'))

    assert len(said) == 3
    assert secret not in "".join(said)


def test_reads_the_environment_and_keeps_an_escaped_reference(write) -> None:
    settings = load(write('[state]\nrecords = "a-${X}-$${X}-$X"'), {"X": "1"})

    assert settings.state.records == "a-1-${X}-$X"


def test_a_missing_upstream_key_waits_for_its_use(write) -> None:
    text = (
        PROVIDER
        + 'api_key = "${NOPE}"\n[models.m]\ndeployments = [{ provider = "openai", model = "x", api_key = "${NOPE2}" }]'
    )

    settings = load(write(text), {})

    assert settings.source.missing_by_path == {
        ("providers", "openai", "api_key"): "NOPE",
        ("models", "m", "deployments", 0, "api_key"): "NOPE2",
    }


def test_an_empty_variable_counts_as_missing(write) -> None:
    assert problems(write('[admin]\nkey = "${K}"'), K="") == [
        "proxy.toml:2: [admin] key: environment variable K is not set"
    ]


def test_without_a_file_the_embedded_default_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    settings = load(None, {})

    assert settings.is_embedded_default
    assert [entry.name for entry in settings.chain.plugins] == [
        "auth", "owners", "rate_limit", "idempotency", "cache", "budget", "model_selection", "circuit_breaker", "fallback", "logging", "metrics", "explain",
    ]  # fmt: skip
    assert settings.providers["demo"].default


def test_the_embedded_default_is_the_repository_s_proxy_toml() -> None:
    assert (ROOT / "proxy.toml").read_text() == default_text()


def test_a_missing_or_unreadable_file_is_a_sentence(write, tmp_path: Path) -> None:
    write("")
    Path("latin.toml").write_bytes(b"[server]\n# caf\xe9\n")

    assert problems(Path("nope.toml")) == ["nope.toml: can't be read: No such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: can't be read: Is a directory"]
    assert problems(Path("latin.toml")) == ["latin.toml:2: not UTF-8; save the file as UTF-8"]


def test_a_deployment_that_is_only_named_is_what_another_model_says_of_it(write) -> None:
    """Whichever comes first in the file; what a model says about the others of its own list is not taken over."""
    said = (
        '{ provider = "openai", model = "x", context_tokens = 9, capabilities = ["vision"], weight = 3, priority = 1 }'
    )
    text = f'{PROVIDER}[models.first]\ndeployments = ["openai/x"]\n[models.m]\ndeployments = [{said}, "openai/y"]\n'

    models = load(write(text), {}).models

    (named,), (told, other) = models["first"].deployments, models["m"].deployments
    assert (named.context_tokens, named.capabilities, named.weight, named.priority) == (9, ["vision"], 1.0, 0)
    assert (told.weight, told.priority, other.context_tokens) == (3, 1, None)


def test_a_file_with_a_byte_order_mark_is_read(write) -> None:
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf[server]\r\nport = 81\r\n")

    assert load(Path("bom.toml"), {}).server.port == 81


def test_an_unsound_table_leaves_the_sound_ones_to_be_checked_on(write) -> None:
    settings, said = inspect_settings(write('[server]\nport = 81\nprot = 1\n[providers.a]\nkind = "demo"\n'), {})

    assert len(said) == 1
    assert settings.server.port == 81
    assert list(settings.providers) == ["a"]


def test_options_of_a_plugin_are_explained_with_line_and_nearest_key(write) -> None:
    class Key(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: str
        tokens: int = 0

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        keys: list[Key] = []

    settings = load(write('[[plugins.auth.keys]]\nname = "a"\n[[plugins.auth.keys]]\nnme = "b"\ntokens = "many"\n'), {})
    with pytest.raises(ValidationError) as caught:
        Options.model_validate(settings.plugins["auth"])

    assert sorted(problems_of(caught.value, ("plugins", "auth"), settings.source, Options)) == [
        "proxy.toml:3: [plugins.auth] keys[1].name: missing",
        'proxy.toml:4: [plugins.auth] keys[1].nme: unknown key; did you mean "name"?',
        "proxy.toml:5: [plugins.auth] keys[1].tokens: must be a whole number, not text",
    ]


def test_the_schema_for_editors_holds_plugin_and_provider_options() -> None:
    class Options(BaseModel):
        """What it does."""

        depth: int = 3

    schema = json_schema({"mine": Options}, {"mywire": Options})

    assert schema["$defs"]["plugin_mine"]["properties"]["depth"]["default"] == 3
    assert schema["properties"]["plugins"]["properties"]["mine"] == {"$ref": "#/$defs/plugin_mine"}
    assert schema["$defs"]["ProviderTable"]["allOf"] == [
        {"if": {"properties": {"kind": {"const": "mywire"}}}, "then": {"$ref": "#/$defs/provider_mywire"}}
    ]
    assert "global" in schema["properties"]
