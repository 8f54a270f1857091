"""What pydantic found wrong, as sentences for the person who wrote the file.

Lives here: ValidationError -> `proxy.toml:12: [server] prot: unknown key; did you mean "port"?`. Elsewhere: file and line (config_source.py), the models (config.py).
Idea: the known keys at any depth are read from the model's JSON schema, so the same words serve our tables, plugins' and providers'; values are never
quoted, for they may be secrets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hookline.config_locator import Path
from hookline.config_source import Source

_WANTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "decimal_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list, [ ... ]",
    "tuple_type": "a list, [ ... ]",
    "set_type": "a list, [ ... ]",
    "frozen_set_type": "a list, [ ... ]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_TOML_NAMES: dict[type[Any], str] = {
    bool: "a boolean", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table",
}  # fmt: skip


def problems_of(
    error: ValidationError, prefix: Sequence[str], source: Source, model: type[BaseModel] | None = None
) -> list[str]:
    """One sentence per error. `prefix` is where the checked table stands in the file, `model` what it was checked by."""
    schema = model.model_json_schema() if model is not None else {}
    return [
        _sentence(detail, tuple(prefix), source, schema)
        for detail in error.errors(include_url=False)
        # A key whose ${VARIABLE} is not set is among the problems already; it is not missing, too.
        if not (detail["type"] == "missing" and (*prefix, *detail["loc"]) in source.unresolved)
    ]


def merged_problems_of(
    error: ValidationError, prefix: Sequence[str], source: Source, model: type[BaseModel] | None = None
) -> list[str]:
    """The same for a table that was merged over another: only what stands in this one."""
    data = value_at(source.data, prefix)
    schema = model.model_json_schema() if model is not None else {}
    details = [d for d in error.errors(include_url=False) if len(path_of(d, data)) == len(d["loc"]) > 0]
    return [_sentence(detail, tuple(prefix), source, schema) for detail in details]


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


def value_at(data: Any, path: Sequence[str | int]) -> Any:
    """What stands at a path; None if nothing does."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean "port"?`, or the list of what is known, or nothing."""
    near = difflib.get_close_matches(word, known, 1, 0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _sentence(detail: ErrorDetails, prefix: Path, source: Source, schema: Mapping[str, Any]) -> str:
    data = value_at(source.data, prefix)
    inner = path_of(detail, data) if data is not None else tuple(detail["loc"])
    path = (*prefix, *inner)
    return source.problem(path, _words(detail, inner, value_at(data, inner), schema, is_top=len(path) == 1))


def _words(detail: ErrorDetails, path: Path, value: Any, schema: Mapping[str, Any], *, is_top: bool) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown {'table' if is_top else 'key'}{nearest(str(path[-1]), _known_keys(schema, path[:-1]))}"
    if kind == "missing":
        return "missing"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {_TOML_NAMES.get(type(value), type(value).__name__)}"
    if kind == "literal_error":
        return f"must be {str(context.get('expected', '')).replace(chr(39), chr(34))}"
    if kind == "string_too_short":
        return f"must have at least {context.get('min_length')} characters"
    if kind == "too_short":
        return "must not be empty"
    if kind in {"value_error", "assertion_error"}:
        return str(context.get("error", detail["msg"]))
    return detail["msg"].replace("Input should be", "must be").replace("'", '"')


def _known_keys(schema: Mapping[str, Any], path: Path) -> list[str]:
    """The keys a model knows at `path`; empty if it takes any."""
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
