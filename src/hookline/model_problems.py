"""What pydantic found wrong with a model, in words.

Lives here: what is wrong, where, and the nearest right name. Elsewhere: sentences about proxy.toml (config_problems.py), about requests (parameters.py).
Idea: the known names at any depth are read from the model's JSON schema, so the same words serve tables and requests, ours and plugins'; values are never quoted, for
they may be secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]

WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "decimal_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""Of an error's type: what the value must be."""


def words_of(detail: ErrorDetails) -> str:
    """What is wrong with one value."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in WANTED:
        return f"must be {WANTED[kind]}"
    if kind == "literal_error":
        expected = str(context.get("expected", ""))
        near = difflib.get_close_matches(str(detail.get("input")), re.findall("'([^']*)'", expected), 1, 0.6)
        return f"must be {expected.replace(chr(39), chr(34))}" + (f'; did you mean "{near[0]}"?' if near else "")
    if kind == "string_too_short" and context.get("min_length") != 1:
        return f"must have at least {context.get('min_length')} characters"
    if kind in {"too_short", "string_too_short"}:
        return "must not be empty"
    if kind in {"value_error", "assertion_error"}:
        return str(context.get("error", detail["msg"]))
    for subject in ("Input should", "String should", "List should", "Dictionary should", "Value should"):
        if detail["msg"].startswith(subject):
            return detail["msg"].replace(subject, "must", 1).replace("'", '"')
    return detail["msg"].replace("'", '"')


def path_of(detail: ErrorDetails, data: Any) -> Path:
    """Where in the data an error is: its `loc` without pydantic's own markers (union branches, function names)."""
    path: list[str | int] = []
    for number, part in enumerate(detail["loc"], 1):
        is_inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if is_inside:
            data = data[part]
            path.append(part)
        elif detail["type"] == "missing" and number == len(detail["loc"]):
            path.append(part)
    return tuple(path)


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean "port"?`, or the list of what is known, or nothing."""
    near = difflib.get_close_matches(word, known, 1, 0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(sorted(known))}" if known else ""


def known_names(schema: Mapping[str, Any], path: Path) -> list[str]:
    """The names a model knows at `path`, by its JSON schema; empty if it takes any."""
    here: list[Mapping[str, Any]] = [schema]
    for part in path:
        here = [inner for node in _branches(here, schema) for inner in _inside(node, part)]
    return sorted({key for node in _branches(here, schema) for key in node.get("properties", {})})


def _branches(nodes: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Each node with references followed and alternatives laid side by side."""
    found: list[Mapping[str, Any]] = []
    for node in nodes:
        reference = node.get("$ref")
        if isinstance(reference, str):
            node = schema.get("$defs", {}).get(reference.rsplit("/", 1)[-1], {})
        found.append(node)
        for word in ("anyOf", "oneOf", "allOf"):
            found += _branches(node.get(word, []), schema)
    return found


def _inside(node: Mapping[str, Any], part: str | int) -> list[Mapping[str, Any]]:
    if isinstance(part, int):
        items = node.get("items")
        return [items] if isinstance(items, dict) else []
    inner = node.get("properties", {}).get(part, node.get("additionalProperties"))
    return [inner] if isinstance(inner, dict) else []
