"""What pydantic found wrong, as sentences for the person who wrote the file.

Lives here: ValidationError -> `proxy.toml:12: [server] prot: unknown key; did you mean "port"?`. Elsewhere: the words (model_problems.py), file and line (config_source.py),
the models (config.py).
Idea: the same words as for requests, with TOML's names of types; a value's type is told, the value never."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hookline.config_locator import Path
from hookline.config_source import Source
from hookline.model_problems import WANTED, known_names, nearest, path_of, words_of

_IN_TOML = {"text": "text in quotes", "a list": "a list, [ ... ]", "an object": "a table"}
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
    # Its first name tells whose it is: what follows may hold pydantic's own marks, or a name that is wrong itself.
    every = error.errors(include_url=False)
    details = [
        d for d in every if path_of(d, data)[:1] == tuple(d["loc"])[:1]
    ]  # without a name: of the table as a whole
    return [_sentence(detail, tuple(prefix), source, schema) for detail in details]


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


def _sentence(detail: ErrorDetails, prefix: Path, source: Source, schema: Mapping[str, Any]) -> str:
    data = value_at(source.data, prefix)
    inner = path_of(detail, data) if data is not None else tuple(detail["loc"])
    path = (*prefix, *inner)
    return source.problem(path, _words(detail, inner, value_at(data, inner), schema, is_top=len(path) == 1))


def _words(detail: ErrorDetails, path: Path, value: Any, schema: Mapping[str, Any], *, is_top: bool) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"unknown {'table' if is_top else 'key'}{nearest(str(path[-1]), known_names(schema, path[:-1]))}"
    if kind == "missing":
        return "missing"
    if kind in WANTED and WANTED[kind] != "a finite number":
        wanted = _IN_TOML.get(WANTED[kind], WANTED[kind])
        return f"must be {wanted}, not {_TOML_NAMES.get(type(value), type(value).__name__)}"
    return words_of(detail)
