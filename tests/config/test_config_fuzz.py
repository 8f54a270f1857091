from __future__ import annotations

import copy
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hookline.assembly import plugin_entries, public_settings, tenant_names
from hookline.config_loading import check
from hookline.config_masking import masked
from hookline.config_rules import exposure_problems, unused_plugin_tables
from hookline.config_source import Source

WORDS = st.sampled_from(
    ["server", "port", "host", "providers", "demo", "kind", "default", "models", "deployments", "plugins", "auth", "keys",
     "tenant", "chain", "name", "path", "order", "prices", "input", "budget", "daily_usd", "time_zone", "rolling", "admin",
     "key", "global", "tenants", "users", "aliases", "cors", "POST /v1/x", "a/b", "", "état"]
)  # fmt: skip
SCALARS = st.one_of(
    WORDS, st.booleans(), st.integers(-5, 70_000), st.floats(allow_nan=True, allow_infinity=True), st.just("demo/echo")
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=12
)
WHOLE = tomllib.loads("""
[server]
port = 8080
cors = { allow_origins = ["*"] }
[state]
shared = "memory"
[chain]
plugins = ["auth", { name = "mask", path = "./mask.py", depth = 2 }]
order = { call_ended = ["auth"] }
[providers.demo]
kind = "demo"
default = true
[models.best]
deployments = ["demo/echo", { provider = "demo", model = "x", weight = 2 }]
aliases = ["good"]
[models.best.plugins.auth]
x = 1
[prices."demo/echo"]
input = 2.5
[[plugins.auth.keys]]
tenant = "acme"
key = "k"
[tenants.acme]
models = ["*"]
budget = { daily_usd = 5.0, rolling = [{ hours = 5, usd = 1.0 }], time_zone = "UTC" }
[users.ann]
max_parallel = 3
[global]
requests_per_minute = 5
[admin]
key = "admin-key-1"
""")


def places_in(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places_in(item, (*path, key))]


PLACES = places_in(WHOLE)


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_the_tables_hold_the_answer_is_settings_and_sentences(changes: list[tuple[Any, Any]]) -> None:
    data = copy.deepcopy(WHOLE)
    for path, value in changes:
        parent: Any = data
        try:
            for part in path[:-1]:
                parent = parent[part]
            if isinstance(parent, dict) and not isinstance(path[-1], str):
                continue  # a list became a table, and TOML has no keys that are numbers
            parent[path[-1]] = value
        except (LookupError, TypeError):
            continue  # an earlier change took the place away
    source = Source(file="proxy.toml", path=None, text="", data=data)

    found, problems = check(source)
    problems += [*exposure_problems(found, has_other_authentication=False, host="::"), *unused_plugin_tables(found, [])]
    plugin_entries(found), public_settings(found), tenant_names(found), masked(source)

    assert all(problem.startswith("proxy.toml") for problem in problems)


def test_the_whole_file_is_sound() -> None:
    assert check(Source(file="proxy.toml", path=None, text="", data=WHOLE)).problems == []
