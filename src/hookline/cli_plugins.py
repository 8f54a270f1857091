"""Commands that plugins add to `hookline`.

Lives here: finding them by name, running one. Elsewhere: built-in commands (cli.py), how a plugin adds one (`register_commands` in hookspecs.py).
Idea: a configuration is read and its plugins are loaded only for a name that is not built in, so that the built-in commands stay quick."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import typer

from hookline.cli import CONFIG_VARIABLE
from hookline.compilation import Process, compile_settings
from hookline.config_loading import load
from hookline.errors import ApiError

FAILED = 1
"""Exit status of a command that was refused, or could not do what it was asked."""
HELP = frozenset({"--help", "-h"})


def find_plugin_command(args: list[str]) -> tuple[Any, list[str]]:
    """The command named by `args[0]` and the arguments that are its own; `--config` among them is ours. If there is none: None, and the names that there are.

    Raises StartupError."""
    config, rest = _take_config(args[1:])
    settings = load(config)
    # Nothing listens: the first key of a host that others reach is made by a command. And help leaves no database behind.
    process = Process("localhost", opens_stores=not HELP.intersection(rest))
    functions: dict[str, Callable[..., Any]] = {}
    compile_settings(settings, process, add_command=lambda name, function: functions.update({name: function}))
    function = functions.get(args[0])
    if function is None:
        asyncio.run(process.aclose())
        return None, list(functions)
    return make_command(args[0], function, process.aclose), rest


def make_command(name: str, function: Callable[..., Any], close: Callable[[], Awaitable[None]]) -> Any:
    """What a plugin registered, a function or a typer.Typer, sync or async, as a command that ends with `close`; an ApiError is a sentence on stderr and exit status 1."""
    if isinstance(function, typer.Typer):
        command: Any = typer.main.get_group(function)
    else:
        single = typer.Typer(
            add_completion=False,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        single.command(name)(function)
        command = typer.main.get_command(single)
    make_context, invoke = command.make_context, command.invoke

    def make_context_or_close(*args: Any, **kwargs: Any) -> Any:
        try:
            return make_context(*args, **kwargs)
        except BaseException:  # a wrong option, or --help
            asyncio.run(_finish(None, close))
            raise

    def invoke_and_close(context: Any) -> Any:
        try:
            try:
                answer = invoke(context)  # of an async function: not begun yet
            except BaseException:
                asyncio.run(_finish(None, close))
                raise
            return asyncio.run(_finish(answer, close))
        except ApiError as error:
            print(f"hookline: {error.message}", file=sys.stderr)
            raise typer.Exit(FAILED) from None

    command.make_context, command.invoke = make_context_or_close, invoke_and_close
    return command


async def _finish(answer: Any, close: Callable[[], Awaitable[None]]) -> Any:
    try:
        return await answer if inspect.isawaitable(answer) else answer
    finally:
        await close()


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
