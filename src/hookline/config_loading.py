"""From a file to checked settings, with everything that is wrong said at once.

Lives here: `load`, `inspect_settings`, the embedded default, the JSON schema for editors. Elsewhere: the models (config.py), rules between tables
(config_rules.py), words for problems (config_problems.py).
Idea: a table that fails is left out and the rest is checked again, so that one misspelt key does not hide the mistakes behind it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from hookline.config import Settings
from hookline.config_locator import Path
from hookline.config_problems import problems_of, value_at
from hookline.config_rules import rule_problems
from hookline.config_source import Source, parse_source, read_source
from hookline.errors import StartupError
from hookline.model_problems import path_of

DEFAULT_FILE = "proxy.toml"
EMBEDDED = "the embedded default"
_ROUNDS = 50


class Inspected(NamedTuple):
    """Settings as far as they are sound, and what is wrong with the rest."""

    settings: Settings
    problems: list[str]


def load(path: FilePath | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Checked settings of `path`; None means ./proxy.toml, and without one the embedded default.

    Raises StartupError with all problems."""
    settings, problems = inspect_settings(path, environ)
    if problems:
        raise StartupError(problems)
    return settings


def inspect_settings(path: FilePath | None = None, environ: Mapping[str, str] | None = None) -> Inspected:
    """The same without raising for what the tables hold. Raises StartupError only if the file can't be read or is no TOML."""
    environ = os.environ if environ is None else environ
    if path is None and FilePath(DEFAULT_FILE).is_file():
        path = FilePath(DEFAULT_FILE)
    if path is not None:
        return check(read_source(path, environ))
    return check(parse_source(default_text(), file=EMBEDDED, path=None, environ=environ))


def check(source: Source) -> Inspected:
    """Check what was read."""
    problems = list(source.problems)
    data = copy.deepcopy(source.data)
    for path in source.unresolved:
        _drop(data, path)
    settings = Settings()
    said_of: set[str] = set()
    for _ in range(_ROUNDS):
        try:
            settings = Settings.model_validate(data)
            break
        except ValidationError as error:
            problems += [problem for problem in problems_of(error, (), source, Settings) if problem not in said_of]
            for path in sorted({path_of(detail, data) for detail in error.errors()}, key=_deepest_first):
                # A key that is left out because it is wrong is not missing, too.
                said_of.add(source.problem(path, "missing"))
                _drop(data, _culprit(path, data))
    settings._source = source
    problems += rule_problems(settings)
    return Inspected(settings, source.in_order(problems))


def default_text() -> str:
    """The embedded default: the same text as the repository's proxy.toml."""
    return resources.files("hookline").joinpath("data/default.toml").read_text(encoding="utf-8")


def json_schema(
    plugins: Mapping[str, type[BaseModel]] | None = None, providers: Mapping[str, type[BaseModel]] | None = None
) -> dict[str, Any]:
    """JSON Schema of proxy.toml for editors, with the options of the plugins and provider kinds given."""
    schema = Settings.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema.setdefault("$defs", {})
    tables: dict[str, Any] = {}
    for name, model in (plugins or {}).items():
        tables[name] = _adopt(definitions, f"plugin_{name}", model)
    schema["properties"]["plugins"] = {
        "type": "object",
        "properties": tables,
        "additionalProperties": {"type": "object"},
    }
    for kind, model in (providers or {}).items():
        options = _adopt(definitions, f"provider_{kind}", model)
        rule = {"if": {"properties": {"kind": {"const": kind}}}, "then": options}
        definitions["ProviderTable"].setdefault("allOf", []).append(rule)
    return schema


def _adopt(definitions: dict[str, Any], prefix: str, model: type[BaseModel]) -> dict[str, Any]:
    """Add a model's schema under names of its own; answers the reference to it."""
    template = f"#/$defs/{prefix}_{{model}}"
    schema = model.model_json_schema(ref_template=template)
    for name, inner in schema.pop("$defs", {}).items():
        definitions[f"{prefix}_{name}"] = inner
    if prefix.startswith("provider_"):
        schema.pop("additionalProperties", None)  # `kind` and `default` stand beside the options
    definitions[prefix] = schema
    return {"$ref": f"#/$defs/{prefix}"}


def _culprit(path: Path, data: Any) -> Path:
    """What to leave out so that the rest can be checked: the key, or for a missing key the table that lacks it."""
    if value_at(data, path) is None and len(path) > 1:
        path = path[:-1]
    if path[:1] == ("models",) and len(path) > 2:
        return path[:2]
    return path


def _deepest_first(path: Path) -> tuple[int, list[tuple[str, int]]]:
    order = [("", part) if isinstance(part, int) else (part, 0) for part in path]
    return -len(path), [(name, -number) for name, number in order]


def _drop(data: Any, path: Path) -> None:
    parent = value_at(data, path[:-1])
    if not path or parent is None:
        return
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
    elif isinstance(parent, list) and isinstance(path[-1], int) and path[-1] < len(parent):
        del parent[path[-1]]
