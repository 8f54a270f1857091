"""What the command line prints about a configuration.

Lives here: the summary of `check`, the table of `plugins`, the schema. Elsewhere: options and exit statuses (cli.py), the ready line (launch.py).
Idea: functions from a compiled configuration to lines, so that a test reads them without a process."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from hookline.assembly import builtin_registry
from hookline.chain import PHASES
from hookline.compilation import Compiled
from hookline.config import Settings
from hookline.config_loading import json_schema
from hookline.launch import counted, remarks, url_of
from hookline.plugin_loading import said


def summary(compiled: Compiled) -> Iterator[str]:
    """What would run."""
    settings = compiled.settings
    server = settings.server
    catalog = compiled.catalog
    yield f"{settings.source.file}: nothing is wrong"
    yield f"serves     {url_of(server.host, server.port)}/v1, {counted(server.workers, 'process', 'processes')}"
    yield f"plugins    {', '.join(plugin.name for plugin in compiled.chain.plugins) or 'none'}"
    for name, made in compiled.providers.items():
        default = ", default" if name == catalog.default_provider else ""
        yield f"provider   {name} ({made.kind}{default})"
    for name in catalog.model_names():
        yield f"model      {name}: {', '.join(d.id for d in catalog.resolve(name))}"
    yield from (f"note       {text}" for text in remarks(settings))


def chain_table(compiled: Compiled) -> Iterator[str]:
    """The compiled hooks, and which installed plugins are not active."""
    rows = [("HOOK", "ORDER", "PLUGIN", "LOCATION")]
    rows += [(hook, str(order), plugin, location) for hook, order, plugin, location in compiled.chain.table()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
    empty, spare = _empty_hooks(compiled), _spare_plugins(compiled)
    if empty:
        yield f"\nnobody implements: {', '.join(empty)}"
    if spare:
        yield f"installed, not in [chain]: {', '.join(spare)}"


def chain_object(compiled: Compiled) -> dict[str, Any]:
    """The same, for a script."""
    names = ("hook", "order", "plugin", "location")
    rows = [dict(zip(names, row, strict=True)) for row in compiled.chain.table()]
    return {"hooks": rows, "not_implemented": _empty_hooks(compiled), "not_active": _spare_plugins(compiled)}


def _empty_hooks(compiled: Compiled) -> list[str]:
    return [hook for hook in PHASES if not compiled.chain.hook(hook)]


def _spare_plugins(compiled: Compiled) -> list[str]:
    active = {plugin.name for plugin in compiled.chain.plugins}
    return sorted(set(importlib.metadata.entry_points(group="hookline").names) - active)


def editor_schema() -> tuple[dict[str, Any], list[str]]:
    """JSON Schema of proxy.toml with the options of every installed plugin and built-in provider kind; and the plugins that do not load."""
    plugins: dict[str, type[BaseModel]] = {}
    problems: list[str] = []
    for point in importlib.metadata.entry_points(group="hookline"):
        try:
            options = getattr(point.load(), "Options", None)
        except Exception as error:  # somebody else's code: the schema without its options is better than none
            problems.append(f'plugin "{point.name}" does not load, its options are left out: {said(error)}')
            continue
        if options is not None:
            plugins[point.name] = options
    kinds = {kind: options for kind, (_, options) in builtin_registry(Settings()).kinds.items() if options is not None}
    return json_schema(plugins, kinds), problems
