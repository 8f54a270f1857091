"""Commands that plugins add to `hookline`.

Lives here: finding them by name, running one. Elsewhere: built-in commands (cli.py), how a plugin adds one (`register_commands` in hookspecs.py).
Idea: a configuration is read and its plugins are loaded only for a name that is not built in, so that the built-in commands stay quick."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from hookline.cli import CONFIG_VARIABLE
from hookline.compilation import Process, compile_settings
from hookline.config_loading import load

HELP = frozenset({"--help", "-h"})


def find_plugin_command(args: list[str]) -> tuple[Any, list[str]]:
    """The command named by `args[0]` and the arguments that are its own; `--config` among them is ours. Raises StartupError."""
    config, rest = _take_config(args[1:])
    settings = load(config)
    # Nothing listens: the first key of a host that others reach is made by a command. And help leaves no database behind.
    process = Process("localhost", opens_stores=not HELP.intersection(rest))
    functions: dict[str, Callable[..., Any]] = {}
    compile_settings(settings, process, add_command=lambda name, function: functions.update({name: function}))
    function = functions.get(args[0])
    if function is None:
        return None, rest
    if isinstance(function, typer.Typer):
        group = typer.main.get_group(function)
        _close_after(group, process)
        return group, rest
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(args[0])(_run_whole(function, process))
    return typer.main.get_command(single), rest


def _take_config(args: list[str]) -> tuple[Path | None, list[str]]:
    rest: list[str] = []
    config = os.environ.get(CONFIG_VARIABLE) or None
    remaining = iter(args)
    for argument in remaining:
        if argument in ("--config", "-c"):
            config = next(remaining, config)
        elif argument.startswith("--config="):
            config = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return Path(config) if config else None, rest


def _close_after(group: Any, process: Process) -> None:
    """Have a group close what its commands use, when one has ended."""
    invoke = group.invoke

    def invoke_and_close(context: Any) -> Any:
        context.call_on_close(lambda: asyncio.run(process.aclose()))
        return invoke(context)

    group.invoke = invoke_and_close


def _run_whole(function: Callable[..., Any], process: Process) -> Callable[..., Any]:
    """The function, sync or async, and after it the closing of what it used."""

    async def run(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = function(*args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            await process.aclose()

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(run(*args, **kwargs))

    return command
