"""The command line: serve, check, plugins, schema, and what plugins add.

Lives here: options, exit statuses, which sentences a person reads. Elsewhere: what the commands do (process.py, supervisor.py, compilation.py,
cli_reports.py), commands of plugins (cli_plugins.py).
Idea: `--help` must be quick, so everything heavy is imported inside the command that needs it; an error is a plain sentence on stderr with status 2,
never a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from hookline.config import Settings

USAGE = 2
"""Exit status for a wrong command line or configuration."""
CONFIG_VARIABLE = "HOOKLINE_CONFIG"


class _Group(TyperGroup):
    """The built-in commands, and below an unknown name those of the plugins in `[chain]`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from hookline.cli_plugins import find_plugin_command
            from hookline.model_problems import nearest

            found, rest = find_plugin_command(args)
            if found is None:
                visible = [name for name, command in self.commands.items() if not command.hidden]
                ctx.fail(f"No such command '{args[0]}'{nearest(args[0], [*visible, *rest])}")
            return args[0], found, rest
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="hookline",
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An exact, fast, pluggable LLM gateway. Plugins in [chain] may add commands: auth has `keys`, budget `spend` and `ledger`, cache `cache purge`.",
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar=CONFIG_VARIABLE,
        help="Default: ./proxy.toml, else the embedded default.",
        show_default=False,
    ),
]


def main() -> None:
    """The entry point. Ends the process: 0 for success, 1 for problems that `check` found, calls that were cut, or what a plugin's command was refused, 2 for a wrong
    command line or configuration, 130 after Ctrl-C."""
    from hookline.errors import StartupError

    try:
        app()
    except StartupError as error:
        for problem in error.problems:
            print(f"hookline: {problem}", file=sys.stderr)
        raise SystemExit(USAGE) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"hookline {version('hookline')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="In place of [server] host.", show_default=False)] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="In place of [server] port; 0 takes a free one.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="In place of [server] workers.", show_default=False)
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Reload when proxy.toml or a plugin's file changes.")
    ] = False,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the port over from the server at [server] handover_socket.")
    ] = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one cuts running calls. SIGHUP reloads, SIGUSR2 replaces workers one by one."""
    from hookline.launch import Plan, ignore_hangups, set_up_logging

    ignore_hangups()
    set_up_logging()
    settings = _load_all(config, host, workers)
    plan = Plan(
        config=config,
        host=host if host is not None else settings.server.host,
        port=port if port is not None else settings.server.port,
        workers=workers if workers is not None else settings.server.workers,
        watches_files=reload,
        takes_over=takeover,
    )
    if plan.workers == 1:
        from hookline.process import serve_alone

        raise SystemExit(serve_alone(settings, plan))
    from hookline.supervisor import supervise

    raise SystemExit(supervise(settings, plan))


@app.command(hidden=True)
def worker(
    listener_fd: Annotated[int, typer.Option()],
    supervisor_fd: Annotated[int, typer.Option()],
    host: Annotated[str, typer.Option()],
    workers: Annotated[int, typer.Option()],
    config: ConfigOption = None,
    reload: Annotated[bool, typer.Option("--reload")] = False,
) -> None:
    """One process of `serve --workers N`; started by the supervisor only."""
    from hookline.config_loading import load
    from hookline.launch import Plan, ignore_hangups, set_up_logging

    ignore_hangups()
    set_up_logging()
    from hookline.process import serve_supervised

    plan = Plan(config=config, host=host, port=0, workers=workers, watches_files=reload)
    raise SystemExit(serve_supervised(load(config), plan, listener_fd, supervisor_fd))


@app.command()
def check(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="As `serve` would be given it.", show_default=False)] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="As `serve` would be given it.", show_default=False)
    ] = None,
) -> None:
    """Say all that is wrong with the configuration, or what would run."""
    from hookline.cli_reports import summary
    from hookline.errors import StartupError

    try:
        compiled = _compile(config, host, workers)
    except StartupError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"{count} problem{'s' if count != 1 else ''}", file=sys.stderr)
        raise SystemExit(1) from None
    print("\n".join(summary(compiled)))


@app.command()
def plugins(
    config: ConfigOption = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Print the compiled chain: hook, order, plugin, file:line."""
    from hookline.cli_reports import chain_object, chain_table

    compiled = _compile(config, None, None)
    if as_json:
        import json

        print(json.dumps(chain_object(compiled)))
    else:
        print("\n".join(chain_table(compiled)))


@app.command()
def migrate(config: ConfigOption = None) -> None:
    """Bring the database of [state] records to this version's schema; several at once are safe. SQLite files are migrated by `serve`, too."""
    from hookline.assembly import plugin_entries, records_url
    from hookline.config_loading import load
    from hookline.plugin_loading import load_class
    from hookline.stores.migration import migrate as run
    from hookline.stores.records_url import split_url
    from hookline.stores.table_migration import migrate_tables

    settings = load(config)
    url = records_url(settings)
    print(run(url))
    models = [model for entry in plugin_entries(settings) for model in getattr(load_class(entry), "tables", ())]
    if models:
        print("\n".join(migrate_tables(split_url(url).plain, models) or ["plugins' tables are as they should be"]))


@app.command()
def schema() -> None:
    """Print a JSON Schema of proxy.toml for editors, with the options of every installed plugin."""
    import json

    from hookline.cli_reports import editor_schema

    found, problems = editor_schema()
    for problem in problems:
        print(f"hookline: {problem}", file=sys.stderr)
    print(json.dumps(found, indent=2))


def _load_all(config: Path | None, host: str | None, workers: int | None) -> Settings:
    """Settings without problems; with problems, those of plugins and providers are found as well, and all are raised together."""
    from hookline.config_loading import inspect_settings

    settings, problems = inspect_settings(config)
    if problems:
        _compile(config, host, workers)
    return settings


def _compile(config: Path | None, host: str | None, workers: int | None) -> Any:
    from hookline.compilation import Process, compile_settings
    from hookline.config_loading import inspect_settings

    settings, problems = inspect_settings(config)
    listens_on = settings.server.host if host is None else host
    process = Process(listens_on, workers or settings.server.workers, opens_stores=False)
    return compile_settings(settings, process, problems=problems)
