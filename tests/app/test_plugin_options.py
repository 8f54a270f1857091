"""What `hookline check` says of wrong options of plugins, in their own tables and per model: found before anything starts, and named."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from hookline.app import App
from hookline.config_loading import load
from hookline.errors import StartupError

CHAIN = '"load_shedding", "model_selection", "circuit_breaker", "hedging", "fallback", "degradation"'
TOML = f"""
[chain]
plugins = [{CHAIN}]
[providers.up]
kind = "demo"
[models.m]
deployments = ["up/echo"]
"""


def problems_of(folder: Path, table: str) -> list[str]:
    (folder / "proxy.toml").write_text(TOML + table)
    with pytest.raises(StartupError) as refused:
        App(load(folder / "proxy.toml", {}))
    return refused.value.problems


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('[plugins.fallback]\nmodels = ["gone"]', '[plugins.fallback] models: model "gone" does not exist'),
        (
            '[models.m.plugins.fallback]\nrate_limit = ["no/m"]',
            '[models."m".plugins.fallback] rate_limit: model "no/m" does not exist',
        ),
        ('[plugins.degradation]\nmodel = "gone"', '[plugins.degradation] model: model "gone" does not exist'),
        ("[plugins.circuit_breaker]\nopen_s = 9.0\nmax_open_s = 1.0", "open_s 9 is above max_open_s 1"),
        ("[models.m.plugins.circuit_breaker]\nopen_s = 90.0\nmax_open_s = 60.0", "open_s 90 is above max_open_s 60"),
        ("[models.m.plugins.load_shedding]\nmin_limit = 10\nmax_limit = 5", "min_limit 10 is above max_limit 5"),
        ('[models.m.plugins.model_selection.complexity]\neasy = ["up/echo"]', "complexity"),
        ("[models.m.plugins.hedging]\nbudget = 0.5", "budget: is the same for every model; move it to [plugins.hedging]"),
        ("[models.m.plugins.circuit_breaker]\nwindow_s = 5.0", "window_s: is the same for every model"),
        ("[models.m.plugins.fallback]\nretry_budget = 0.1", "retry_budget: is the same for every model"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_and_named(table: str, says: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, table)

    assert says in problem


def test_a_default_provider_takes_any_name(tmp_path: Path) -> None:
    table = '[providers.rest]\nkind = "demo"\ndefault = true\n[plugins.fallback]\nmodels = ["any"]\n[plugins.degradation]\nmodel = "other"'
    (tmp_path / "proxy.toml").write_text(TOML + table)

    App(load(tmp_path / "proxy.toml", {}))


@pytest.mark.parametrize("point", entry_points(group="hookline"), ids=lambda point: point.name)
def test_what_is_described_as_not_per_model_is_marked_so(point: Any) -> None:
    options = getattr(point.load(), "Options", None)
    for name, field in options.model_fields.items() if options is not None else ():
        marked = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("per_model") is False
        assert marked == ("not per model" in (field.description or "")), name


@pytest.mark.parametrize("point", entry_points(group="hookline"), ids=lambda point: point.name)
def test_every_number_has_a_bound_above(point: Any) -> None:
    """TOML knows `inf`; a time that never ends can neither be stored nor told to another process."""
    options = getattr(point.load(), "Options", None)
    schema = options.model_json_schema() if options is not None else {}

    assert list(_endless(schema, "")) == []


def _endless(schema: Any, name: str) -> Iterator[str]:
    if isinstance(schema, dict):
        if schema.get("type") in ("number", "integer") and not schema.keys() & {"maximum", "exclusiveMaximum"}:
            yield name
        for key, value in schema.items():
            yield from _endless(value, f"{name}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from _endless(value, name)
