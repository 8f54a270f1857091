from __future__ import annotations

import textwrap
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline.config_locator import locate

TRICKY = r'''
# a comment with [brackets] and "quotes"
title = "a = 1"          # 3
[server]
host = "127.0.0.1"       # 5
limits.body = 3          # 6
"odd \"key\"" = 1        # 7
'lit.eral' = 2           # 8
text = """
[not.a.table]
port = 1
""""
after = 1                # 13
lit = \'\'\'
''[x]''
\'\'\'
[models."gpt-4o"]        # 17
deployments = [          # 18
  "openai/gpt-4o",       # 19
  { provider = "az", "model" = "]}", tags = ["a", "b"] },   # 20
  # a comment, with ] and }
  [1, [2]],              # 22
]
[[plugins.auth.keys]]    # 24
name = "a"               # 25
[plugins.auth.keys.budget]  # 26
daily_usd = 5.0          # 27
[[plugins.auth.keys]]    # 28
name = "b"               # 29
when = 1979-05-27 07:32:00  # 30
'''.replace(r"\'", "'")

PLACES = {
    ("title",): 3,
    ("server",): 4,
    ("server", "host"): 5,
    ("server", "limits", "body"): 6,
    ("server", 'odd "key"'): 7,
    ("server", "lit.eral"): 8,
    ("server", "text"): 9,
    ("server", "after"): 13,
    ("models", "gpt-4o"): 17,
    ("models", "gpt-4o", "deployments", 0): 19,
    ("models", "gpt-4o", "deployments", 1): 20,
    ("models", "gpt-4o", "deployments", 1, "model"): 20,
    ("models", "gpt-4o", "deployments", 1, "tags", 1): 20,
    ("models", "gpt-4o", "deployments", 2, 1, 0): 22,
    ("plugins", "auth", "keys", 0): 24,
    ("plugins", "auth", "keys", 0, "name"): 25,
    ("plugins", "auth", "keys", 0, "budget", "daily_usd"): 27,
    ("plugins", "auth", "keys", 1): 28,
    ("plugins", "auth", "keys", 1, "name"): 29,
    ("plugins", "auth", "keys", 1, "when"): 30,
}


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_finds_the_line_of(path: tuple[str | int, ...]) -> None:
    assert locate(TRICKY)[path] == PLACES[path]


def test_knows_exactly_the_paths_that_tomllib_reads() -> None:
    assert set(locate(TRICKY)) == set(paths_in(tomllib.loads(TRICKY)))


def test_reads_windows_line_ends() -> None:
    assert locate("[a]\r\nb = 1\r\n\r\n[c]\r\nd = 2\r\n") == {("a",): 1, ("a", "b"): 2, ("c",): 4, ("c", "d"): 5}


VALUES = st.recursive(
    st.sampled_from(
        ['"x"', "'y'", "12", "1.5", "true", '"""a\n[b]\n"""', "'''\n#'''", '"\\"]}\\\\"', "2020-01-01", "[]", "{}"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ",\n".join(items) + "]")
        | st.lists(inner, max_size=3).map(
            lambda items: "{ " + ", ".join(f"k{n} = {item}" for n, item in enumerate(items)) + " }"
        )
    ),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.sampled_from(["a", '"b.c"', "'d e'", "f.g"]), VALUES), max_size=6), st.booleans())
def test_knows_every_path_of_any_file(entries: list[tuple[str, str]], is_array: bool) -> None:
    """Whatever tomllib accepts, the locator walks: same paths, and each path's line holds the key's text."""
    header = "[[t{}.x]]" if is_array else "[t{}.x]"
    text = "".join(f"{header.format(n)}\n# note\n{key} = {value}  # end\n" for n, (key, value) in enumerate(entries))

    lines = locate(text)

    assert set(lines) == set(paths_in(tomllib.loads(text)))
    rows = text.split("\n")
    for path, line in lines.items():
        if isinstance(path[-1], str):
            assert path[-1] in rows[line - 1], textwrap.shorten(text, 200)


def paths_in(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        return found + [p for key, inner in value.items() for p in paths_in(inner, (*path, key))]
    if isinstance(value, list):
        return found + [p for index, inner in enumerate(value) for p in paths_in(inner, (*path, index))]
    return found
