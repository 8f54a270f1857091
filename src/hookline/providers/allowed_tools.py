"""Allowed tools: a `tool_choice` of type `allowed_tools`, for servers that do not know it.

Lives here: reading it. Elsewhere: leaving the other tools out and sending its mode (anthropic_tools.py, responses_request.py).
Idea: a model may only call what it is told of, so a request with fewer tools says the same."""

from __future__ import annotations

from collections.abc import Callable, Container

from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_choice,
    read_list,
    read_object,
    show,
)


def read_allowed_tools(
    value: object, path: str, *, known: Container[str], read_function: Callable[[JsonObject, str], str]
) -> tuple[str, frozenset[str]]:
    """Mode (auto or required) and the names of the tools that may be called.

    In: the object that holds `mode` and `tools`; the names of the request's tools; how one entry tells its function's name. Raises `Untranslatable`."""
    allowed = read_object(value, path)
    mode = read_choice(allowed.get("mode"), f"{path}.mode", ("auto", "required"))
    names = set()
    for number, item in enumerate(read_list(allowed.get("tools"), f"{path}.tools")):
        where = f"{path}.tools[{number}]"
        name = read_function(read_object(item, where), where)
        if name not in known:
            raise Untranslatable(f'"{where}" is {show(name)}, which is not in "tools"', param=where)
        names.add(name)
    if not names:
        raise Untranslatable(f'"{path}.tools" is empty; send tool_choice = none', param=f"{path}.tools")
    return mode, frozenset(names)
