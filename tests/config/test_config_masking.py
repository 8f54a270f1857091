from __future__ import annotations

from hookline.config_masking import MASK, masked
from hookline.config_source import parse_source

TEXT = """
[state]
records = "postgresql://me:pass-canary@db.example/hookline"
shared = "${SHARED}"
[providers.up]
api_key = ["list-canary"]
base_url = "https://up.example/v1"
headers = { x-team = "header-canary" }
[[plugins.auth.keys]]
name = "ci"
key = "key-canary"
tokens_per_minute = 5
[plugins.alerts]
webhook_secret = "secret-canary"
note = "from ${NOTE}"
"""


def test_secrets_and_what_came_from_the_environment_are_not_shown() -> None:
    environ = {"SHARED": "redis://:env-canary@x", "NOTE": "env-canary"}

    shown = masked(parse_source(TEXT, file="proxy.toml", path=None, environ=environ))

    assert "canary" not in str(shown)
    assert shown == {
        "state": {"records": f"postgresql://me:{MASK}@db.example/hookline", "shared": MASK},
        "providers": {"up": {"api_key": [MASK], "base_url": "https://up.example/v1", "headers": {"x-team": MASK}}},
        "plugins": {
            "auth": {"keys": [{"name": "ci", "key": MASK, "tokens_per_minute": 5}]},
            "alerts": {"webhook_secret": MASK, "note": MASK},
        },
    }


def test_a_key_that_is_no_string_is_shown_as_it_is() -> None:
    source = parse_source("", file="proxy.toml", path=None, environ={})
    source.data["plugins"] = {"mine": {7: "seven", None: {"api_key": "canary"}}}

    assert masked(source)["plugins"] == {"mine": {7: "seven", None: {"api_key": MASK}}}
