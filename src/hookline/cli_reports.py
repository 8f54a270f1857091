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
from hookline.launch import counted, unset_variables, url_of


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
    yield from (f"note       {text}" for text in unset_variables(settings))


def chain_table(compiled: Compiled) -> Iterator[str]:
    """The compiled hooks, and which installed plugins are not active."""
    rows = [("HOOK", "ORDER", "PLUGIN", "LOCATION")]
    rows += [(hook, str(order), plugin, location) for hook, order, plugin, location in compiled.chain.table()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
    empty = [hook for hook in PHASES if not compiled.chain.hook(hook)]
    if empty:
        yield f"\nnobody implements: {', '.join(empty)}"
    active = {plugin.name for plugin in compiled.chain.plugins}
    spare = sorted(set(importlib.metadata.entry_points(group="hookline").names) - active)
    if spare:
        yield f"installed, not in [chain]: {', '.join(spare)}"


def editor_schema() -> dict[str, Any]:
    """JSON Schema of proxy.toml with the options of every installed plugin and built-in provider kind."""
    from hookline.config_loading import json_schema

    plugins: dict[str, type[BaseModel]] = {}
    for point in importlib.metadata.entry_points(group="hookline"):
        options = getattr(point.load(), "Options", None)
        if options is not None:
            plugins[point.name] = options
    kinds = {kind: options for kind, (_, options) in builtin_registry().kinds.items() if options is not None}
    return json_schema(plugins, kinds)
